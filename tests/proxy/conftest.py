"""A worker with its agent for each test that asks for `rig`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.proxy.rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    try:
        yield made
    finally:
        made.stop()
