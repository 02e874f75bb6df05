"""Where the agent's directory is, and that everything of it lies below it, each thing in a place of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kybernate.model.layout import STATE_VARIABLE, StateDirectory
from kybernate.model.types import WorkloadName

pytestmark = pytest.mark.unit


def test_the_variable_names_it_before_anything_else() -> None:
    assert StateDirectory.default({STATE_VARIABLE: "/somewhere", "XDG_RUNTIME_DIR": "/run/user/1"}).root == Path(
        "/somewhere"
    )


def test_a_relative_one_is_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StateDirectory.default({STATE_VARIABLE: "here"}).root == tmp_path / "here"


@pytest.mark.parametrize(
    ("uid", "environment", "root"),
    [
        pytest.param(0, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/kybernate", id="root's is the machine's"),
        pytest.param(0, {STATE_VARIABLE: ""}, "/run/kybernate", id="an empty variable says nothing"),
        pytest.param(1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/kybernate", id="a user's session"),
        pytest.param(1000, {}, "/tmp/kybernate-1000/kybernate", id="a user without a session"),
    ],
)
def test_without_it_the_user_decides(
    uid: int, environment: dict[str, str], root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert StateDirectory.default(environment).root == Path(root)


def test_everything_lies_below_it_and_nothing_twice() -> None:
    state = StateDirectory(Path("/run/kybernate"))
    places = [getattr(state, name) for name, value in vars(StateDirectory).items() if isinstance(value, property)]
    assert len(places) >= 8
    assert len(set(places)) == len(places)
    assert all(place.parent == state.root for place in places)


def test_each_workload_has_its_own_run_directory() -> None:
    state = StateDirectory(Path("/run/kybernate"))
    assert state.run_directory(WorkloadName("a")) == Path("/run/kybernate/workloads/a")
    assert state.run_directory(WorkloadName("a")) != state.run_directory(WorkloadName("b"))
