"""Where the native libraries are looked for, and what is said where they aren't."""

from __future__ import annotations

from pathlib import Path

import pytest

import kybernate
from kybernate.model.errors import Unsupported
from kybernate.model.native import PRELOAD_NAME, native_directories, preload_library, simulated_driver

pytestmark = pytest.mark.unit


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_the_preload_library_is_of_this_very_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYBERNATE_NATIVE_DIR", str(tmp_path))
    made(tmp_path / "0.0.0-other" / PRELOAD_NAME)
    with pytest.raises(Unsupported):
        preload_library()
    library = made(tmp_path / kybernate.__version__ / PRELOAD_NAME)
    assert preload_library() == library.resolve()


def test_the_simulated_driver_lies_apart_so_that_its_directory_can_be_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYBERNATE_NATIVE_DIR", str(tmp_path))
    library = made(tmp_path / "simulated" / "libcuda.so.1")
    assert simulated_driver() == library.resolve()


def test_what_is_missing_is_said_with_every_place_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYBERNATE_NATIVE_DIR", str(tmp_path))
    with pytest.raises(Unsupported, match="the preload library is not at") as refused:
        preload_library()
    assert str(tmp_path) in refused.value.message
    assert refused.value.hint is not None
    assert "make native" in refused.value.hint


def test_a_directory_of_that_name_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYBERNATE_NATIVE_DIR", str(tmp_path))
    (tmp_path / "simulated" / "libcuda.so.1").mkdir(parents=True)
    with pytest.raises(Unsupported, match="the simulated driver is not at"):
        simulated_driver()


def test_the_package_comes_before_the_working_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KYBERNATE_NATIVE_DIR", raising=False)
    installed, built = native_directories()
    assert installed.parts[-2:] == ("kybernate", "native")
    assert built.parts[-2:] == ("build", "native")
