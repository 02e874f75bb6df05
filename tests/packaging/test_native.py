"""The native libraries are found where they lie, and their absence says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

import kybernate
from kybernate.model.errors import Unsupported
from kybernate.model.native import preload_library, simulated_driver

pytestmark = pytest.mark.unit


def test_the_override_is_looked_at_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KYBERNATE_NATIVE_DIR", str(tmp_path))
    with pytest.raises(Unsupported, match="preload library is not at") as refusal:
        preload_library()
    assert "make native" in str(refusal.value)
    wanted = tmp_path / kybernate.__version__ / "libkybernate-preload.so"
    wanted.parent.mkdir()
    wanted.touch()
    assert preload_library() == wanted


def test_the_preload_library_lies_in_a_directory_of_its_version() -> None:
    assert preload_library().parent.name == kybernate.__version__, "an upgrade must never overwrite a mapped file"


def test_the_simulated_driver_bears_the_name_programs_load() -> None:
    assert simulated_driver().name == "libcuda.so.1"
