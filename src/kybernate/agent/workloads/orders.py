"""What is ordered of a workload, as values, and what becomes of an order that meets another one of its kind. Pure.

`joined` says the one order that does what both want; None where they are to be carried out one after the other.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Protocol

from kybernate.agent.records.ledger import USER
from kybernate.model.types import Depth, EndedBy, GpuUuid, TierName, WorkloadName
from kybernate.process.preflight import Connections


class Freed(Protocol):
    """Who waits for what a pause frees. Called in a thread of the engine, for each piece of memory as it becomes free."""

    def __call__(self, gpu: GpuUuid, size: int, /) -> None:
        """`size`: bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseOrder:
    depth: Depth
    tier: TierName = TierName.RAM
    connections: Connections | None = None
    allow_changes: bool | None = None
    by: str
    why: str
    timeout_s: float
    """How long requests in flight, and then the GPU, may take."""
    freed: Freed | None = None
    requester: WorkloadName | None = None
    """Who waits for its VRAM."""
    drain: bool = True
    """Let its requests in flight end. False: they wait with it, and end when it runs again."""

    def joined(self, other: PauseOrder) -> PauseOrder | None:
        """A person's word is stronger than the arbiter's: what it paused it would resume unasked."""
        if self._what() != other._what():
            return None
        both = replace(self, timeout_s=max(self.timeout_s, other.timeout_s), drain=self.drain and other.drain)
        if other.by == USER != self.by:
            both = replace(both, by=USER, why=other.why)
        # Another try must not tell of the same bytes once more; what is told of none is counted at the end.
        return both if both == self else replace(both, freed=None)

    def _what(self) -> tuple[object, ...]:
        return self.depth, self.tier, self.connections, self.allow_changes


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeOrder:
    may_evict: bool
    wait_s: float
    """For room, in seconds."""
    why: str
    take_over: bool = False
    """Also if another agent said that it resumes it."""
    victims: tuple[WorkloadName, ...] = ()
    """Who shall make room, if that suffices."""
    by_person: bool = False
    """A person's."""

    def joined(self, other: ResumeOrder) -> ResumeOrder:
        """Whatever one of them may, both may."""
        stronger = (other.may_evict, other.by_person) > (self.may_evict, self.by_person)
        return ResumeOrder(
            may_evict=self.may_evict or other.may_evict,
            wait_s=max(self.wait_s, other.wait_s),
            why=other.why if stronger else self.why,
            take_over=self.take_over or other.take_over,
            victims=tuple(dict.fromkeys((*self.victims, *other.victims))),
            by_person=self.by_person or other.by_person,
        )


class Stored(enum.Enum):
    """What becomes at its stop of one that lies below RAM, and so has no process to end."""

    ENDS = enum.auto()
    """It is given up, and its snapshot deleted."""
    STAYS = enum.auto()
    """It lies there as before."""
    HELD = enum.auto()
    """The same, and only a person resumes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrder:
    grace_s: float
    """Between SIGTERM and SIGKILL, from the first order on."""
    by: EndedBy
    stored: Stored = Stored.ENDS

    def joined(self, other: StopOrder) -> StopOrder | None:
        """Who has less patience has it his way."""
        if self.stored is not other.stored:
            return None
        by = EndedBy.ORDER if EndedBy.ORDER in (self.by, other.by) else self.by
        return replace(self, grace_s=min(self.grace_s, other.grace_s), by=by)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchOrder:
    by_person: bool
    """A person's: the agent doesn't give it up for something else."""

    def joined(self, other: PrefetchOrder) -> PrefetchOrder:
        return PrefetchOrder(by_person=self.by_person or other.by_person)
