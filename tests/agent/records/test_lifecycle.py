"""The table of states: orders and facts lead where they should, everything else is a conflict."""

from __future__ import annotations

import itertools

import pytest

from kybernate.agent.records.lifecycle import ALIVE, ENDED, Event, next_state
from kybernate.model.errors import Conflict
from kybernate.model.types import WorkloadState

pytestmark = pytest.mark.unit

S = WorkloadState


@pytest.mark.parametrize(
    ("state", "events", "end"),
    [
        pytest.param(
            S.STARTING, [Event.STARTED, Event.PAUSE, Event.PAUSED, Event.RESUME, Event.RESUMED], S.RUNNING, id="a cycle"
        ),
        pytest.param(S.RUNNING, [Event.PAUSE, Event.PAUSE_UNDONE], S.RUNNING, id="refused pause"),
        pytest.param(S.PAUSED, [Event.PAUSE, Event.DEEPEN_UNDONE], S.PAUSED, id="refused deeper pause"),
        pytest.param(S.PAUSED, [Event.RESUME, Event.RESUME_UNDONE], S.PAUSED, id="refused resume"),
        pytest.param(S.PAUSED, [Event.STOP, Event.EXITED], S.EXITED, id="stop of a paused one"),
        pytest.param(S.STARTING, [Event.START_FAILED], S.EXITED, id="failed start"),
        pytest.param(S.RESUMING, [Event.LOST, Event.STOP, Event.EXITED], S.EXITED, id="lost, then stopped"),
    ],
)
def test_path(state: S, events: list[Event], end: S) -> None:
    for event in events:
        state = next_state(state, event)
    assert state is end


@pytest.mark.parametrize("state", sorted(ALIVE))
def test_a_process_may_end_in_any_living_state(state: S) -> None:
    assert next_state(state, Event.EXITED) is S.EXITED
    assert next_state(state, Event.LOST) is S.LOST


@pytest.mark.parametrize(
    ("state", "event"),
    [(S.RUNNING, Event.RESUME), (S.PAUSING, Event.RESUME), (S.EXITED, Event.PAUSE), (S.STARTING, Event.PAUSE)],
)
def test_illegal_is_a_conflict_that_names_what_is_possible(state: S, event: Event) -> None:
    with pytest.raises(Conflict, match=state):
        next_state(state, event)


def test_an_exited_workload_stays_so() -> None:
    for event in Event:
        with pytest.raises(Conflict):
            next_state(S.EXITED, event)


def test_every_state_can_be_left_or_is_an_end() -> None:
    for state in S:
        ways = [e for s, e in itertools.product([state], Event) if _possible(s, e)]
        assert ways or state in ENDED


def _possible(state: S, event: Event) -> bool:
    try:
        next_state(state, event)
    except Conflict:
        return False
    return True
