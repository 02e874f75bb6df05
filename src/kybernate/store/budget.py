"""A tier's budget: how much it holds, how much is promised to what is being written, how much it may hold at most."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kybernate.model.errors import NoRoom
from kybernate.model.quantities import format_size


@dataclass(frozen=True, slots=True)
class Usage:
    """Sizes in bytes."""

    used: int
    """Packs and manifests, garbage included, and what is being written."""
    budget: int | None
    """None: no limit but the place's own."""
    free: int | None
    """What the place has left; None where nobody can tell."""


class WriteBudget(Protocol):
    """Says how much may be written."""

    def reserve(self, minimum: int, maximum: int) -> int:
        """Bytes granted, between the two. Raises NoRoom; `settle` says what became of it."""

    def settle(self, granted: int, used: int) -> None:
        """What became of a grant, in bytes."""

    def recount(self) -> None:
        """Packs or manifests have gone or were found."""


class TierBudget:
    """The budget of a whole tier. Thread-safe."""

    def __init__(self, where: str, limit_bytes: int | None, count: Callable[[], int]) -> None:
        """
        Args:
            where: the place, for people.
            limit_bytes: what may be used at most; None is no limit.
            count: bytes of all that is known to lie there; called by `recount`.
        """
        self._where = where
        self._limit = limit_bytes
        self._count = count
        self._lock = threading.Lock()
        self._used = 0
        self._granted = 0
        """For what is being written."""

    def usage(self, free: int | None) -> Usage:
        """How it stands now; `free` is what the place itself has left, in bytes."""
        with self._lock:
            return Usage(self._used + self._granted, self._limit, free)

    def reserve(self, minimum: int, maximum: int) -> int:
        """Room to write, between `minimum` and `maximum` bytes. Raises NoRoom; `settle` says what became of it."""
        with self._lock:
            used = self._used + self._granted
            left = maximum if self._limit is None else min(maximum, self._limit - used)
            if left < minimum:
                raise NoRoom(
                    f"{self._where} may hold {format_size(self._limit or 0)} and holds {format_size(used)}:"
                    f" no room for {format_size(minimum)} more",
                    hint="`kybernate gc`, remove snapshots, move some to another tier, or raise its budget",
                )
            self._granted += left
        return left

    def settle(self, granted: int, used: int) -> None:
        with self._lock:
            self._granted -= granted
            self._used += used

    def recount(self) -> None:
        with self._lock:
            self._used = self._count()
