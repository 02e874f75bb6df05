"""First-fit allocation of address ranges, with neighbours joined when they come back. Pure bookkeeping."""

from __future__ import annotations

import bisect

from kybernate.model.errors import NoRoom


class RangeAllocator:
    """Hands out pieces of one range. Not thread-safe; addresses and sizes in bytes."""

    def __init__(self, *, start: int, size: int) -> None:
        self._starts = [start]
        self._sizes = [size]

    @property
    def free_bytes(self) -> int:
        return sum(self._sizes)

    def take(self, size: int) -> int:
        """The start of a free piece of that size.

        Raises:
            NoRoom: no piece is that long.
        """
        if size <= 0:
            raise ValueError(f"a range of {size} bytes")
        for i, length in enumerate(self._sizes):
            if length < size:
                continue
            start = self._starts[i]
            if length == size:
                del self._starts[i], self._sizes[i]
            else:
                self._starts[i] += size
                self._sizes[i] -= size
            return start
        raise NoRoom(f"no address range of {size} bytes is free; the longest has {max(self._sizes, default=0)}")

    def give(self, start: int, size: int) -> None:
        """Take back a piece, whole or in parts. Raises ValueError when some of it is free already (a bug)."""
        i = bisect.bisect_left(self._starts, start)
        if i > 0 and self._starts[i - 1] + self._sizes[i - 1] > start:
            raise ValueError(f"range {start:#x} is free already")
        if i < len(self._starts) and start + size > self._starts[i]:
            raise ValueError(f"range {start:#x} is free already")
        joins_left = i > 0 and self._starts[i - 1] + self._sizes[i - 1] == start
        joins_right = i < len(self._starts) and start + size == self._starts[i]
        if joins_left and joins_right:
            self._sizes[i - 1] += size + self._sizes[i]
            del self._starts[i], self._sizes[i]
        elif joins_left:
            self._sizes[i - 1] += size
        elif joins_right:
            self._starts[i] = start
            self._sizes[i] += size
        else:
            self._starts.insert(i, start)
            self._sizes.insert(i, size)
