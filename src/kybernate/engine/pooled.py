"""What lies in the pool: workloads' host copies and what was staged of snapshots; and which of it may go when space is short.

A paused workload's copy is the only one there is and never goes. A running one's is a cache that makes its next pause
cheap; a staged one can be read again. Both go when a pause or a staging needs the slots: caches first, since they cost
less to have again.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kybernate.cuda.copying import ExtentCopy
from kybernate.cuda.planning import Slots
from kybernate.cuda.pool import PinnedPool
from kybernate.engine.copies import Manifest
from kybernate.engine.stored import Described
from kybernate.model.types import CHUNK_BYTES, ExtentId, WorkloadName


@dataclass(slots=True)
class HostCopy:
    """A workload's content in the pool."""

    manifest: Manifest
    paused: bool
    """True: the only copy. False: a cache of a running workload."""
    pausing: bool = False
    """A pause is under way that builds on this copy: its clean slots are about to be the only copy again."""

    @property
    def expendable(self) -> bool:
        return not self.paused and not self.pausing

    @property
    def by_extent(self) -> dict[ExtentId, ExtentCopy]:
        return {held.id: held.copy for held in self.manifest.extents}


@dataclass(slots=True)
class Staged:
    """A snapshot's content in the pool, before any process has it; clones share it."""

    described: Described
    copies: list[ExtentCopy]
    """One for each of the snapshot's extents, in its order."""
    slots: Slots
    """All of them."""
    users: int = 0
    """Those who are just reading it or making a workload of it: it can't go."""
    last_use: int = 0


@dataclass(frozen=True, slots=True)
class StagedView:
    """A staged snapshot, for whoever decides what is to stay. Sizes in bytes."""

    uid: str
    snapshot: str
    bytes: int
    """Of pool memory, also where workloads share it."""
    in_use: bool


def _nobody(uid: str) -> None:
    """Nobody keeps anything beside it."""


@dataclass(slots=True)
class _Book:
    copies: dict[WorkloadName, HostCopy] = field(default_factory=dict)
    staged: dict[str, Staged] = field(default_factory=dict)


class Pooled:
    """See the module. Thread-safe; one operation a workload at a time."""

    def __init__(self, pool: PinnedPool, *, unstaged: Callable[[str], None] = _nobody) -> None:
        """`unstaged` is told of staged snapshots that went, by their uid."""
        self._pool = pool
        self._unstaged = unstaged
        self._lock = threading.Lock()
        self._book = _Book()
        self._uses = itertools.count(1)

    # -- workloads ---------------------------------------------------------------------------------------------------

    def get(self, name: WorkloadName) -> HostCopy | None:
        return self._book.copies.get(name)

    def put(self, name: WorkloadName, copy: HostCopy) -> None:
        with self._lock:
            self._book.copies[name] = copy

    def names(self) -> list[WorkloadName]:
        return list(self._book.copies)

    def begin_pause(self, name: WorkloadName) -> HostCopy | None:
        """The copy a pause builds on; a running workload's can't be taken from it until `end_pause`."""
        with self._lock:
            copy = self._book.copies.get(name)
            if copy is not None and not copy.paused:
                copy.pausing = True
            return copy

    def end_pause(self, copy: HostCopy) -> None:
        with self._lock:
            copy.pausing = False

    def set_paused(self, copy: HostCopy, *, paused: bool) -> None:
        """Whether it is the only copy there is, or a cache of a running workload."""
        with self._lock:
            copy.paused = paused

    def drop(self, name: WorkloadName) -> None:
        """Forget a workload's copy, whatever it is, and give its slots back."""
        with self._lock:
            copy = self._book.copies.pop(name, None)
        if copy is not None:
            self.free(copy.manifest.slots())

    def drop_cache(self, name: WorkloadName) -> int:
        """Give up the host copy of a running workload. Returns the bytes of pool that became free."""
        with self._lock:
            copy = self._book.copies.get(name)
            if copy is None or not copy.expendable:
                return 0
            del self._book.copies[name]
        return self.free(copy.manifest.slots()) * CHUNK_BYTES

    def free(self, slots: Slots) -> int:
        """Give slots back; returns how many became free."""
        return self._pool.free(slots) if len(slots) else 0

    # -- staged snapshots --------------------------------------------------------------------------------------------

    def hold(self, uid: str) -> Staged | None:
        """The staged copy of a snapshot, which stays until `unhold`; None when there is none."""
        with self._lock:
            staged = self._book.staged.get(uid)
            if staged is not None:
                self._use(staged)
            return staged

    def put_and_hold(self, staged: Staged) -> None:
        """A snapshot has just been staged; it stays until `unhold` at least."""
        with self._lock:
            self._book.staged[staged.described.uid] = staged
            self._use(staged)

    def unhold(self, staged: Staged) -> None:
        with self._lock:
            staged.users -= 1

    def _use(self, staged: Staged) -> None:
        staged.users += 1
        staged.last_use = next(self._uses)

    def drop_staged(self, uid: str) -> int:
        """Forget a staged snapshot unless somebody uses it. Returns the bytes of pool that became free."""
        with self._lock:
            staged = self._book.staged.get(uid)
            if staged is None or staged.users:
                return 0
            del self._book.staged[uid]
        self._unstaged(uid)
        return self.free(staged.slots) * CHUNK_BYTES

    def staged(self) -> list[StagedView]:
        """Least recently used first."""
        with self._lock:
            found = sorted(self._book.staged.items(), key=lambda item: item[1].last_use)
        return [
            StagedView(uid, staged.described.snapshot, len(staged.slots) * CHUNK_BYTES, staged.users > 0)
            for uid, staged in found
        ]

    # -- when slots are short -----------------------------------------------------------------------------------------

    def give_up(self, asking: WorkloadName | None, keep_slots: int | None = None) -> bool:
        """Drop what may go, but for the asking workload's own; with `keep_slots`, only until that many slots are free.

        Returns whether that was enough, or without `keep_slots` whether anything became free.
        """
        freed = False
        for name in self.names():
            if keep_slots is not None and self._pool.free_slots >= keep_slots:
                return True
            if name != asking:
                freed = self.drop_cache(name) > 0 or freed
        for view in self.staged():
            if keep_slots is not None and self._pool.free_slots >= keep_slots:
                return True
            freed = self.drop_staged(view.uid) > 0 or freed
        return freed if keep_slots is None else self._pool.free_slots >= keep_slots
