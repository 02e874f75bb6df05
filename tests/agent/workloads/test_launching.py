"""A new life of a name: its first entry, and what of its former life it must leave alone."""

from __future__ import annotations

import pytest
from tests.agent.building import NOW, A, entry

from kybernate.agent.records.ledger import Entry
from kybernate.agent.workloads.launching import first_entry, left_of
from kybernate.model.api import RunRequest
from kybernate.model.types import Backend, WorkloadState

pytestmark = pytest.mark.unit


def test_the_first_entry_says_what_was_ordered_and_when() -> None:
    request = RunRequest(name="a", argv=["python", "serve.py"], directory="/srv", backend=Backend.DRIVER)
    found = first_entry(request, A, now=NOW, why="ordered")
    assert (found.state, found.since, found.last_use, found.reason) == (WorkloadState.STARTING, NOW, NOW, "ordered")
    assert (found.argv, found.directory, found.backend) == (("python", "serve.py"), "/srv", Backend.DRIVER)


@pytest.mark.parametrize(
    ("old", "left"),
    [
        pytest.param(None, (), id="a name that is new"),
        pytest.param(entry(), (), id="nothing was stored of it"),
        pytest.param(entry(snapshot="a-3"), ("a-3",), id="its last state"),
        pytest.param(
            entry(kept=("a-1", "a-2"), snapshot="a-3"), ("a-1", "a-2", "a-3"), id="and what was kept, in order"
        ),
        pytest.param(entry(kept=("a-1", "a-3"), snapshot="a-3"), ("a-1", "a-3"), id="each once"),
    ],
)
def test_snapshots_of_a_former_life_are_kept(old: Entry | None, left: tuple[str, ...]) -> None:
    assert left_of(old) == left
