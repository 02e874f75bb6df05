"""Prefetching: what comes next is read from the store into the pool while others compute. Within a budget, and stopped, or dropped
again, when something else became more likely. How often it was right is counted: right when the workload is resumed from what was
prefetched, wrong when that is dropped or its room is needed, neither when the resume overtakes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from kybernate.agent.records.events import Events
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.serving.surroundings import LiveWorkloads
from kybernate.agent.serving.wake import Wake
from kybernate.agent.workloads.tasks import Tasks
from kybernate.model.api import StoredView
from kybernate.model.errors import Cancelled, KybernateError
from kybernate.model.types import CHUNK_BYTES, TierName, WorkloadName, WorkloadState

log = logging.getLogger(__name__)

_PART_OF_POOL = 4
_AGAIN_S = 30.0
"""What could not be prefetched is not tried again sooner: its tier is away, or the pool is full."""
_JOB = "stage"
"""What a prefetch is called among the jobs of the store."""


class PrefetchedContent(Protocol):
    """Of one snapshot, in the pool."""

    @property
    def uid(self) -> str: ...

    @property
    def snapshot(self) -> str: ...

    @property
    def bytes(self) -> int: ...


class HostPool(Protocol):
    """The host pool, and what lies prefetched in it."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def free_slots(self) -> int: ...

    def prefetched(self) -> Iterable[PrefetchedContent]: ...

    def drop(self, uid: str) -> None:
        """Give the room of one content back."""

    async def prefetch(self, name: WorkloadName) -> StoredView:
        """Read what a workload has in the store. Raises KybernateError; Cancelled, when it was dropped meanwhile."""


class Prefetching:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        pool: HostPool | None,
        workloads: LiveWorkloads,
        jobs: Jobs,
        tasks: Tasks,
        clock: Callable[[], float],
        wake: Wake,
    ) -> None:
        """`pool`: None on a node without a GPU."""
        self._ledger = ledger
        self._events = events
        self._pool = pool
        self._workloads = workloads
        self._jobs = jobs
        self._tasks = tasks
        self._clock = clock
        self._wake = wake
        self._budget: int | None = None
        self._running: set[WorkloadName] = set()
        self._mine: dict[WorkloadName, str] = {}
        """Snapshots that were prefetched and still lie there."""
        self._dropped: set[WorkloadName] = set()
        self._again_at: dict[WorkloadName, float] = {}
        self.hits = 0
        self.misses = 0

    def configure(self, budget: int | None) -> None:
        """Bytes; None: a part of the pool."""
        self._budget = budget

    def budget(self) -> int:
        if self._pool is None:
            return 0
        return self._pool.size_bytes // _PART_OF_POOL if self._budget is None else self._budget

    def used_bytes(self) -> int:
        mine = set(self._mine.values())
        return sum(content.bytes for content in self._prefetched() if content.snapshot in mine)

    def free_bytes(self) -> int:
        """What may still be prefetched."""
        if self._pool is None:
            return 0
        return max(0, min(self.budget() - self.used_bytes(), self._pool.free_slots * CHUNK_BYTES))

    def is_prefetched(self, entry: Entry | None) -> bool:
        if entry is None or entry.snapshot is None:
            return False
        return any(content.snapshot == entry.snapshot for content in self._prefetched())

    def begin(self, name: WorkloadName) -> None:
        entry = self._ledger.get(name)
        if entry is None or entry.state is not WorkloadState.PAUSED or entry.tier is TierName.RAM:
            return
        if name in self._running or self.is_prefetched(entry) or self._again_at.get(name, 0.0) > self._clock():
            return
        self._running.add(name)
        self._tasks.start(self._prefetch(name), name=f"prefetch {name}")

    def drop(self, name: WorkloadName) -> None:
        """Something else is more likely."""
        if name in self._running:
            self._dropped.add(name)
        self._jobs.cancel(_JOB, name)
        snapshot = self._mine.pop(name, None)
        if snapshot is None:
            return
        self.misses += 1
        assert self._pool is not None
        for content in self._prefetched():
            if content.snapshot == snapshot:
                self._pool.drop(content.uid)
        self._events.record("unstaged", "given up again: something else is more likely", workload=name)

    def poll(self, _now: float) -> None:
        """Somebody may have needed the room for something else."""
        if not self._mine:
            return
        there = {content.snapshot for content in self._prefetched()}
        for name in [name for name, snapshot in self._mine.items() if snapshot not in there]:
            entry = self._ledger.get(name)
            if entry is not None and self._workloads.idle(name) and entry.tier is not TierName.RAM:
                del self._mine[name]
                self.misses += 1

    def on_changed(self, old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger: did it come to use?"""
        name = old.name if old is not None else new.name if new is not None else None
        if name not in self._mine:
            return
        if new is not None and new.state is WorkloadState.PAUSED and new.tier is not TierName.RAM:
            return  # lies where it lay
        del self._mine[name]
        if new is not None and new.state in (WorkloadState.PAUSED, WorkloadState.RESUMING):
            self.hits += 1
        else:
            self.misses += 1

    def _prefetched(self) -> list[PrefetchedContent]:
        return [] if self._pool is None else list(self._pool.prefetched())

    async def _prefetch(self, name: WorkloadName) -> None:
        assert self._pool is not None  # where there is none, nothing is paused
        try:
            view = await self._pool.prefetch(name)
        except Cancelled:
            self.misses += name in self._dropped
        except KybernateError as e:
            self._again_at[name] = self._clock() + _AGAIN_S
            log.info("workload %s could not be prefetched: %s", name, e)
        else:
            entry = self._ledger.get(name)
            if not view.already and entry is not None and entry.snapshot is not None and self.is_prefetched(entry):
                self._mine[name] = entry.snapshot
        finally:
            self._running.discard(name)
            self._dropped.discard(name)
            self._wake()
