"""No file of the directory in which somebody happens to stand is imported by a program of ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kybernate.model.isolation import environment, python

pytestmark = pytest.mark.unit

HERE = Path("/home/somebody")


def test_the_command_leaves_the_current_directory_out() -> None:
    assert python("kybernate.proxy") == [sys.executable, "-P", "-m", "kybernate.proxy"]


@pytest.mark.parametrize(
    ("given", "left"),
    [
        pytest.param("", None, id="an empty variable would mean the current directory, and goes"),
        pytest.param(".", None, id="said outright"),
        pytest.param("./", None, id="likewise"),
        pytest.param(":", None, id="two empty entries"),
        pytest.param("/opt/a::/opt/b:.", "/opt/a:/opt/b", id="empty ones among others"),
        pytest.param("lib:../up", "/home/somebody/lib:/home/somebody/../up", id="what was meant becomes absolute"),
        pytest.param("/home/somebody", "/home/somebody", id="named in full it was meant"),
    ],
)
def test_only_what_was_meant_stays_in_the_search_path(given: str, left: str | None) -> None:
    found = environment({"PYTHONPATH": given}, directory=HERE)
    assert found.get("PYTHONPATH") == left
    assert ("PYTHONPATH" in found) is (left is not None)


def test_everything_else_is_passed_on_and_the_original_stays() -> None:
    own = {"PATH": "/bin", "PYTHONPATH": "lib", "EMPTY": ""}
    assert environment(own, directory=HERE) == {"PATH": "/bin", "EMPTY": "", "PYTHONPATH": f"{HERE}/lib"}
    assert own["PYTHONPATH"] == "lib"


def test_without_a_directory_it_is_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment({"PYTHONPATH": "lib"})["PYTHONPATH"] == str(tmp_path / "lib")
    assert os.pathsep not in environment({"PYTHONPATH": "lib:"})["PYTHONPATH"]
