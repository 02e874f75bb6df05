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
from kybernate.model.errors import Busy, WorkloadLost


class ContentGone(WorkloadLost):
    """A witness says so: the content is nowhere any more."""


class Unfinished(Busy):
    """What is left to do can't be done just now (no room, no answer). The content is there; recover again."""


@dataclass(frozen=True, slots=True)
class Witness:
    """What one process says. `state` None: its control thread does not answer (it waits inside a locked driver)."""

    state: ProcessState | None
    committed: bool = False
    """It has discarded its memory, because all content was safe in the pool."""
    partial: bool = False
    """It has discarded some of it; the rest it still has."""
    complete: bool = False
    """The manifest's marks say that all its content is in the pool."""


@dataclass(frozen=True, slots=True)
class Facts:
    processes: Sequence[Witness]
    residuals: Sequence[ResidualState]
    manifest: bool
    """There is one that can be read."""
    frozen: bool = False

    @property
    def complete(self) -> bool:
        """All content is in the pool."""
        return self.manifest and all(witness.complete for witness in self.processes)


class Verdict(enum.Enum):
    RUNNING = "running"
    """It runs: adopt its extents."""
    RELEASE_DRIVER = "release driver"
    """Restore and unlock; the process then takes its memory back by itself and runs."""
    PAUSED = "paused"
    """It is paused, wholly: claim its slots."""
    FINISH_COPY = "finish copy"
    """Some content is in the pool, the rest still in VRAM: copy that, then look again."""
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
    if any(witness.partial and not witness.committed for witness in facts.processes):
        return Verdict.FINISH_COPY if facts.manifest else Verdict.LOST
    committed = [witness for witness in facts.processes if witness.committed]
    if not committed:
        return Verdict.RELEASE_DRIVER if shut else Verdict.RUNNING
    if not facts.manifest or not all(witness.complete for witness in committed):
        return Verdict.LOST
    return Verdict.FINISH_PAUSE if len(committed) == len(facts.processes) else Verdict.BRING_BACK
