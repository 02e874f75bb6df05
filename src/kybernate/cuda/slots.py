"""Which of the pool's slots are free: counts of owners and runs, in numpy. Pure bookkeeping, no memory behind it.

A slot may have several owners: clones of one image have the same content in common until they change it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kybernate.cuda.planning import Slots


def run_starts(values: Slots) -> Slots:
    """Indices at which a new run of consecutive values begins."""
    return np.flatnonzero(np.diff(values, prepend=values[:1] - 2) != 1)


class SlotMap:
    """Slots of a pool; not thread-safe. Usable are those of enabled segments that have no owner."""

    def __init__(self, *, count: int, segment_slots: int) -> None:
        self._segment_slots = segment_slots
        self._owners = np.zeros(count, dtype=np.int32)
        self._enabled = np.zeros(count, dtype=np.bool_)
        self.free = 0
        """Usable slots."""
        self.ready = 0
        """Slots of enabled segments, owned or not."""

    def enable(self, segment: int) -> None:
        """A segment's memory is ready."""
        part = slice(segment * self._segment_slots, (segment + 1) * self._segment_slots)
        self._enabled[part] = True
        self.ready = int(np.count_nonzero(self._enabled))
        self.free = int(np.count_nonzero(self._enabled & (self._owners == 0)))

    def take(self, count: int) -> Slots:
        """Free slots, ascending: the first run that is long enough, else the longest runs. The caller checks `free`."""
        if count > self.free:
            raise ValueError(f"{count} slots of {self.free}")
        if count <= 0:
            return np.empty(0, dtype=np.int64)
        usable = np.flatnonzero(self._enabled & (self._owners == 0))
        starts = run_starts(usable)
        lengths = np.diff(starts, append=len(usable))
        enough = np.flatnonzero(lengths >= count)
        if len(enough):
            first = starts[enough[0]]
            chosen = usable[first : first + count]
        else:
            longest = np.argsort(-lengths, kind="stable")
            used = longest[: int(np.searchsorted(np.cumsum(lengths[longest]), count)) + 1]
            keep = np.zeros(len(starts), dtype=np.bool_)
            keep[used] = True
            # The last run chosen gives only what is still missing: cut from its end.
            chosen = usable[np.repeat(keep, lengths)]
            surplus = len(chosen) - count
            if surplus:
                end = starts[used[-1]] + lengths[used[-1]]
                dropped = usable[end - surplus : end]
                chosen = np.setdiff1d(chosen, dropped, assume_unique=True)
        self._owners[chosen] = 1
        self.free -= count
        return chosen.astype(np.int64, copy=False)

    def share(self, slots: Slots) -> None:
        """One owner more for each. Raises ValueError when a slot has none or is named twice; nothing is changed then."""
        self._check(slots)
        if not self._owners[slots].all():
            raise ValueError("a slot that isn't taken can't be shared")
        self._owners[slots] += 1

    def shared(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which of them have more than one owner."""
        shared: npt.NDArray[np.bool_] = self._owners[slots] > 1
        return shared

    def give(self, slots: Slots) -> int:
        """One owner less for each; returns how many have none any more and are free.

        Raises ValueError when a slot isn't taken or is named twice; nothing is changed then.
        """
        self._check(slots)
        if not self._owners[slots].all():
            raise ValueError("a slot that isn't taken can't be given back")
        self._owners[slots] -= 1
        gone = slots[self._owners[slots] == 0]
        self.free += int(np.count_nonzero(self._enabled[gone]))
        return len(gone)

    def claim(self, slots: Slots) -> None:
        """One owner more for each, also for those that have none yet.

        Raises ValueError when a slot is named twice; nothing is changed then.
        """
        self._check(slots)
        new = slots[self._owners[slots] == 0]
        self._owners[slots] += 1
        self.free -= int(np.count_nonzero(self._enabled[new]))

    def _check(self, slots: Slots) -> None:
        if len(slots) and (np.min(slots) < 0 or np.max(slots) >= len(self._owners)):
            raise ValueError(f"slots {np.min(slots)} to {np.max(slots)} of a pool of {len(self._owners)}")
        if len(np.unique(slots)) != len(slots):
            raise ValueError("a slot is named twice")
