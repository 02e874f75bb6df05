"""The states of a workload and what leads from one to the next: a table and one pure function.

The workload's owner task (workloads/operations.py) is the only one to apply it, so there is no lock here and no clock.
`EXITED` and `LOST` are ends: a new run of the same name begins a new entry in the ledger.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from kybernate.model.errors import Conflict
from kybernate.model.types import WorkloadState

_S = WorkloadState


class Event(enum.StrEnum):
    """What happened to a workload. Orders are in the imperative, facts in the past tense."""

    STARTED = "started"
    START_FAILED = "start-failed"
    PAUSE = "pause"
    """Also of a paused workload: to a greater depth."""
    PAUSED = "paused"
    PAUSE_UNDONE = "pause-undone"
    """Refused or failed before anything was lost: it runs on."""
    DEEPEN_UNDONE = "deepen-undone"
    """The deeper pause failed: paused as before."""
    RESUME = "resume"
    RESUMED = "resumed"
    RESUME_UNDONE = "resume-undone"
    """Failed with the host copy intact: paused as before."""
    STOP = "stop"
    STOP_FAILED = "stop-failed"
    """The process tree is still there; stop can be asked for again."""
    EXITED = "exited"
    LOST = "lost"
    FOUND_RUNNING = "found-running"
    """A new agent took it over and it runs."""
    FOUND_PAUSED = "found-paused"


ENDED = frozenset({_S.EXITED, _S.LOST})
"""Nothing runs any more (of a lost one at most leftovers)."""
ALIVE = frozenset(_S) - ENDED

_TABLE: Mapping[tuple[WorkloadState, Event], WorkloadState] = MappingProxyType(
    {
        (_S.STARTING, Event.STARTED): _S.RUNNING,
        (_S.STARTING, Event.START_FAILED): _S.EXITED,
        (_S.RUNNING, Event.PAUSE): _S.PAUSING,
        (_S.PAUSED, Event.PAUSE): _S.PAUSING,
        (_S.PAUSING, Event.PAUSED): _S.PAUSED,
        (_S.PAUSING, Event.PAUSE_UNDONE): _S.RUNNING,
        (_S.PAUSING, Event.DEEPEN_UNDONE): _S.PAUSED,
        (_S.PAUSED, Event.RESUME): _S.RESUMING,
        (_S.RESUMING, Event.RESUMED): _S.RUNNING,
        (_S.RESUMING, Event.RESUME_UNDONE): _S.PAUSED,
        (_S.STARTING, Event.STOP): _S.STOPPING,
        (_S.RUNNING, Event.STOP): _S.STOPPING,
        (_S.PAUSED, Event.STOP): _S.STOPPING,
        (_S.LOST, Event.STOP): _S.STOPPING,
        (_S.STOPPING, Event.STOP): _S.STOPPING,
        (_S.STOPPING, Event.STOP_FAILED): _S.STOPPING,
        **{(state, Event.EXITED): _S.EXITED for state in ALIVE},
        **{(state, Event.LOST): _S.LOST for state in ALIVE},
        **{(state, Event.FOUND_RUNNING): _S.RUNNING for state in ALIVE},
        **{(state, Event.FOUND_PAUSED): _S.PAUSED for state in ALIVE},
    }
)


def next_state(state: WorkloadState, event: Event) -> WorkloadState:
    """The state after `event`.

    Raises:
        Conflict: the event makes no sense in this state; the message says which would.
    """
    after = _TABLE.get((state, event))
    if after is None:
        possible = sorted(e.value for s, e in _TABLE if s is state)
        raise Conflict(
            f"a workload that is {state} can't take {event}",
            hint=f"possible now: {', '.join(possible)}" if possible else f"{state} is an end; run it again",
        )
    return after
