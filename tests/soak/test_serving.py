"""A short part of `make soak-serving`: a real agent and activator, models that don't fit together, and a fixed seed."""

from __future__ import annotations

import pytest
from tests.conftest import SLOWER
from tests.soak.serving import answers, soak

SEED, SECONDS = 3, 25.0


@pytest.mark.root
@pytest.mark.timeout(300 * SLOWER)
def test_requests_while_everything_is_killed() -> None:
    wrong, counts = soak(seconds=SECONDS, seed=SEED, expected=answers(), say=print)
    assert wrong == []
    assert counts["exact"] > 0
