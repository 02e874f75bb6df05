"""Who may have VRAM and who has to give it: pure functions over a picture of the ledger.

Least recently used first, a minimum run quantum, never the requester. No clock, no effects, no logging: room.py
acts on the answers. Priorities, switch costs and schedules belong to a later, larger arbiter behind the same functions.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kybernate.model.types import WorkloadName


@dataclass(frozen=True, slots=True)
class Candidate:
    """One workload as seen from one GPU. Bytes on that GPU, times on one clock in seconds."""

    name: WorkloadName
    resident: int
    """Extents it holds now."""
    pausable: bool
    """Runs, nobody works on it, and the last attempt to pause it was not refused."""
    settling: bool
    """Not pausable now but may be soon, or is giving back memory just now."""
    running_since: float
    last_use: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Exactly one of: victims to pause; a time to wait before asking again; neither, which means no pause can help."""

    victims: tuple[WorkloadName, ...] = ()
    wait_s: float | None = None


class Room(enum.Enum):
    FITS = "fits"
    LATER = "later"
    NEVER = "never"


SETTLING_WAIT_S = 0.1
"""How soon to look again while somebody is switching; short against a switch, long against the look."""


def judge(*, size: int, own: int, free: int, capacity: int, handed_out: int, reserved: int) -> Room:
    """Whether `size` more bytes may be handed to a workload on one GPU.

    Args:
        own: what the requester holds there.
        free: free VRAM above the reserve, as the driver says.
        capacity: what the agent hands out at most.
        handed_out: extents of all workloads.
        reserved: promised to others that were told to ask again.
    """
    if own + size > capacity:
        return Room.NEVER
    if size + reserved <= min(free, capacity - handed_out):
        return Room.FITS
    return Room.LATER


def choose_victims(
    candidates: Iterable[Candidate], *, requester: WorkloadName | None, needed: int, now: float, quantum_s: float
) -> Choice:
    """Whom to pause so that `needed` more bytes (more than 0) become free."""
    others = [c for c in candidates if c.name != requester and c.resident > 0]
    ready = sorted(
        (c for c in others if c.pausable and now - c.running_since >= quantum_s), key=lambda c: (c.last_use, c.name)
    )
    taken: list[Candidate] = []
    freed = 0
    for candidate in ready:
        if freed >= needed:
            break
        taken.append(candidate)
        freed += candidate.resident
    if taken and freed >= needed:
        return Choice(victims=tuple(c.name for c in _without_needless(taken, needed)))
    if sum(c.resident for c in others if c.pausable or c.settling) < needed:
        return Choice()
    if any(c.settling for c in others):
        return Choice(wait_s=SETTLING_WAIT_S)
    left = [quantum_s - (now - c.running_since) for c in others if c.pausable and c not in ready]
    return Choice(wait_s=max(SETTLING_WAIT_S, min(left, default=SETTLING_WAIT_S)))


def _without_needless(taken: Sequence[Candidate], needed: int) -> list[Candidate]:
    """Spare those whose bytes turned out not to be needed, the most recently used first."""
    kept = list(taken)
    surplus = sum(c.resident for c in kept) - needed
    for candidate in reversed(taken):
        if candidate.resident <= surplus:
            kept.remove(candidate)
            surplus -= candidate.resident
    return kept


@dataclass(frozen=True, slots=True)
class Parked:
    """A workload the arbiter paused."""

    name: WorkloadName
    paused_at: float
    fits: bool
    """What it needs back is free now on each of its GPUs, with nobody else paused."""
    fits_since: float
    """Since when; without meaning where `fits` is false."""


def choose_resume(
    parked: Iterable[Parked], *, now: float, settle_s: float, somebody_waits: bool
) -> WorkloadName | None:
    """Whom to resume unasked: the longest paused of those that fit and have fitted for a while.

    Nobody while an allocation waits for room: the memory that is free is about to be taken.
    """
    if somebody_waits:
        return None
    settled = [p for p in parked if p.fits and now - p.fits_since >= settle_s]
    return min(settled, key=lambda p: (p.paused_at, p.name)).name if settled else None
