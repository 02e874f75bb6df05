"""Which of the pool's slots are free: bitmaps and runs, in numpy. Pure bookkeeping, no memory behind it."""

from __future__ import annotations

import numpy as np

from kybernate.cuda.planning import Slots


def run_starts(values: Slots) -> Slots:
    """Indices at which a new run of consecutive values begins."""
    return np.flatnonzero(np.diff(values, prepend=values[:1] - 2) != 1)


class SlotMap:
    """Slots of a pool; not thread-safe. Usable are those of enabled segments that nobody has taken or claimed."""

    def __init__(self, *, count: int, segment_slots: int) -> None:
        self._segment_slots = segment_slots
        self._taken = np.zeros(count, dtype=np.bool_)
        self._enabled = np.zeros(count, dtype=np.bool_)
        self.free = 0
        """Usable slots."""
        self.ready = 0
        """Slots of enabled segments, taken or not."""

    def enable(self, segment: int) -> None:
        """A segment's memory is ready."""
        part = slice(segment * self._segment_slots, (segment + 1) * self._segment_slots)
        self._enabled[part] = True
        self.ready = int(np.count_nonzero(self._enabled))
        self.free = int(np.count_nonzero(self._enabled & ~self._taken))

    def take(self, count: int) -> Slots:
        """Free slots, ascending: the first run that is long enough, else the longest runs. The caller checks `free`."""
        if count > self.free:
            raise ValueError(f"{count} slots of {self.free}")
        if count <= 0:
            return np.empty(0, dtype=np.int64)
        usable = np.flatnonzero(self._enabled & ~self._taken)
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
        self._taken[chosen] = True
        self.free -= count
        return chosen.astype(np.int64, copy=False)

    def give(self, slots: Slots) -> None:
        """Raises ValueError when a slot isn't taken or is named twice; nothing is changed then."""
        self._check(slots)
        if not self._taken[slots].all():
            raise ValueError("a slot that isn't taken can't be given back")
        self._taken[slots] = False
        self.free += int(np.count_nonzero(self._enabled[slots]))

    def claim(self, slots: Slots) -> None:
        """Raises ValueError when a slot is taken already or is named twice; nothing is changed then."""
        self._check(slots)
        if self._taken[slots].any():
            raise ValueError("a claimed slot is taken already: two manifests name it")
        self._taken[slots] = True
        self.free -= int(np.count_nonzero(self._enabled[slots]))

    def _check(self, slots: Slots) -> None:
        if len(slots) and (slots.min() < 0 or slots.max() >= len(self._taken)):
            raise ValueError(f"slots {slots.min()} to {slots.max()} of a pool of {len(self._taken)}")
        if len(np.unique(slots)) != len(slots):
            raise ValueError("a slot is named twice")
