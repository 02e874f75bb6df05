"""Which CRIU is taken: the one that is named, and else the best of those that are there. None is run here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import kybernate
from kybernate.process.criu import VARIABLE, Criu, candidates

pytestmark = pytest.mark.unit


def program(directory: Path, *, mode: int = 0o755) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "criu"
    path.write_text("#!/bin/false\n")
    path.chmod(mode)
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python's prefix, and the working tree, in which there is none."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(kybernate, "__file__", str(tmp_path / "tree" / "src" / "kybernate" / "__init__.py"))


def below(tmp_path: Path, environment: dict[str, str]) -> list[Path]:
    """Those of the test's own: this machine may have one in /usr/sbin."""
    return [path for path in candidates(environment) if path.is_relative_to(tmp_path)]


def test_the_one_that_is_named_is_the_only_one_even_if_it_is_not_there(tmp_path: Path) -> None:
    """Passed over in silence, it would hide a mistake in its name."""
    program(tmp_path / "bin")
    named = {VARIABLE: str(tmp_path / "nowhere"), "PATH": str(tmp_path / "bin")}
    assert list(candidates(named)) == [tmp_path / "nowhere"]


def test_an_empty_name_names_none(tmp_path: Path) -> None:
    there = program(tmp_path / "bin")
    assert below(tmp_path, {VARIABLE: "", "PATH": str(tmp_path / "bin")}) == [there]


def test_a_bundles_own_comes_before_the_working_trees_and_that_before_the_path(tmp_path: Path) -> None:
    on_path = program(tmp_path / "bin")
    environment = {"PATH": str(tmp_path / "bin")}
    assert below(tmp_path, environment) == [on_path]
    of_tree = program(tmp_path / "tree" / ".criu" / "bin")
    assert below(tmp_path, environment) == [of_tree, on_path]
    bundled = program(tmp_path / "prefix" / "share" / "kybernate" / "criu" / "bin")
    assert below(tmp_path, environment) == [bundled, of_tree, on_path]


def test_of_the_path_the_first_that_can_be_run_is_taken(tmp_path: Path) -> None:
    program(tmp_path / "a", mode=0o644)
    second = program(tmp_path / "b")
    program(tmp_path / "c")
    path = ":".join(str(tmp_path / name) for name in ("missing", "a", "b", "c"))
    assert below(tmp_path, {"PATH": path}) == [second]


def test_a_directory_of_that_name_is_none(tmp_path: Path) -> None:
    (tmp_path / "tree" / ".criu" / "bin" / "criu").mkdir(parents=True)
    (tmp_path / "bin" / "criu").mkdir(parents=True)
    assert below(tmp_path, {"PATH": str(tmp_path / "bin")}) == []


@pytest.mark.parametrize(("version", "text"), [((4, 2), "4.2"), ((4,), "4"), ((4, 10, 1), "4.10.1")])
def test_a_version_is_written_with_dots(version: tuple[int, ...], text: str) -> None:
    assert Criu(Path("/criu"), version).version_text == text
