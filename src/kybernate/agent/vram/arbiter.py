"""Whether there is room in VRAM, whether waiting for it makes sense, and who comes back into room that is free: pure functions over
numbers of the ledger.

Whom to pause for room is a policy's business (policy/victims.py). admission.py acts on the answers.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kybernate.model.types import GpuUuid, WorkloadName

Rank = tuple[bool, int]
"""Who comes before whom: interactive or not, then priority."""


class Fit(enum.Enum):
    FITS = "fits"
    LATER = "later"
    NEVER = "never"


def judge(*, size: int, own: int, free: int, capacity: int, handed_out: int, reserved: int) -> Fit:
    """Whether `size` more bytes may be handed to a workload on one GPU.

    Args:
        own: what the requester holds there.
        free: free VRAM above the reserve, as the driver says.
        capacity: what the agent hands out at most.
        handed_out: extents of all workloads.
        reserved: promised to others that were told to ask again.
    """
    if own + size > capacity:
        return Fit.NEVER
    if size + reserved <= min(free, capacity - handed_out):
        return Fit.FITS
    return Fit.LATER


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody else, on the GPU on which an allocation waits for room."""

    name: WorkloadName
    size: int
    """Bytes that it holds there."""
    rank: Rank
    stays: bool = False
    """It can't be paused at all."""
    moves: bool = False
    """It is in a switch, or has room reserved: who has what is about to change."""


def hopeless(*, size: int, own: int, free: int, capacity: int, holders: Sequence[Holder]) -> bool:
    """Whether `size` more bytes would not fit even if everybody gave way who could. Not while somebody is in a switch: what moves
    is in nobody's books for moments.

    Args: as of `judge`.
    """
    immovable = sum(holder.size for holder in holders if holder.stays)
    if own + size + immovable > capacity:
        return True
    if any(holder.moves for holder in holders):
        return False
    return size > free + sum(holder.size for holder in holders if not holder.stays)


def outranked(*, size: int, free: int, rank: Rank, holders: Sequence[Holder]) -> bool:
    """Whether it waits for somebody who comes before it: all others would not free enough."""
    others = sum(holder.size for holder in holders if not holder.stays and holder.rank <= rank)
    return size > free + others and any(holder.rank > rank and holder.size for holder in holders)


@dataclass(frozen=True, slots=True)
class Asking:
    """A workload that waits for room in an allocation. Bytes by GPU."""

    name: WorkloadName
    needed: Mapping[GpuUuid, int]
    held: Mapping[GpuUuid, int]
    rank: Rank
    since: float
    """When it first asked for what it hasn't got yet; a pause meanwhile makes it no younger."""
    pausable: bool = True


def circle(asking: Iterable[Asking], *, reachable: Mapping[GpuUuid, int]) -> list[Asking]:
    """Those that wait for each other: what they need would not be there even if everybody else gave way, and everybody else who
    waits had got what it needs and gave way then.

    Args:
        reachable: by GPU what is free, or held by those who don't wait and can be paused.
    """
    stuck = list(asking)
    total = dict(reachable)
    while True:
        goes_on = [one for one in stuck if all(size <= total.get(gpu, 0) for gpu, size in one.needed.items())]
        if not goes_on:
            return stuck
        for one in goes_on:
            stuck.remove(one)
            for gpu, size in one.held.items():
                total[gpu] = total.get(gpu, 0) + size


def deadlock_victim(asking: Iterable[Asking], *, reachable: Mapping[GpuUuid, int]) -> WorkloadName | None:
    """Who of those that wait for each other is paused in its call, so that another can go on; None: no circle, or nobody can.

    The lowest rank, of equals who has waited the shortest: so nobody gives way for ever, since whoever waits becomes the oldest.
    """
    stuck = circle(asking, reachable=reachable)
    able = [
        one
        for one in stuck
        if one.pausable and any(one.held.get(gpu, 0) for other in stuck if other is not one for gpu in other.needed)
    ]
    return min(able, key=lambda one: (one.rank, -one.since, one.name)).name if able else None


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
