"""Whether there is room in VRAM, and who comes back into room that is free: pure functions over numbers of the ledger.

Whom to pause for room is a policy's business (policy/victims.py). room.py acts on the answers.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from kybernate.model.types import WorkloadName


class Room(enum.Enum):
    FITS = "fits"
    LATER = "later"
    NEVER = "never"


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
