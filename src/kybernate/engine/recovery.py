"""After an agent's death: what is true of a workload, and what to do about it.

Three witnesses outlive an agent: the process (its preload library says whether it has its memory), the driver (its
checkpoint state), and the manifest beside the pool. The process is believed first. `decide` is the whole policy, pure.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from kybernate.cuda.residual import ResidualState
from kybernate.cuda.wire import ProcessState


@dataclass(frozen=True, slots=True)
class Witness:
    """What one process says. `state` None: its control thread does not answer (it waits inside a locked driver)."""

    state: ProcessState | None
    committed: bool = False
    """It has discarded its memory, because all content was safe in the pool."""


@dataclass(frozen=True, slots=True)
class Facts:
    processes: Sequence[Witness]
    residuals: Sequence[ResidualState]
    manifest: bool
    """There is one that can be read."""
    complete: bool = False
    """Its marks say that all content is in the pool."""
    frozen: bool = False


class Verdict(enum.Enum):
    RUNNING = "running"
    """It runs: adopt its extents."""
    RELEASE_DRIVER = "release driver"
    """Restore and unlock; the process then takes its memory back by itself and runs."""
    PAUSED = "paused"
    """It is paused, wholly: claim its slots."""
    FINISH_PAUSE = "finish pause"
    """All content is in the pool: do the rest (checkpoint, freeze)."""
    BRING_BACK = "bring back"
    """Some of its processes run and some have no memory: resume those."""
    LOST = "lost"
    """A process has given up its memory and nobody has the content."""


def decide(facts: Facts) -> Verdict:
    """The verdict for a workload of which an agent has died; the agent may have been doing anything."""
    away = [state is ResidualState.CHECKPOINTED for state in facts.residuals]
    shut = any(state in (ResidualState.CHECKPOINTED, ResidualState.LOCKED) for state in facts.residuals)
    if not facts.processes:  # the driver backend: the residual is all there is
        if facts.manifest and away and all(away):
            return Verdict.PAUSED if facts.frozen else Verdict.FINISH_PAUSE
        return Verdict.RELEASE_DRIVER if shut else Verdict.RUNNING
    if facts.frozen:  # the last step of a pause
        return Verdict.PAUSED if facts.complete else Verdict.LOST
    committed = [witness.committed for witness in facts.processes]
    if not any(committed):
        return Verdict.RELEASE_DRIVER if shut else Verdict.RUNNING
    if not facts.complete:
        return Verdict.LOST
    return Verdict.FINISH_PAUSE if all(committed) else Verdict.BRING_BACK
