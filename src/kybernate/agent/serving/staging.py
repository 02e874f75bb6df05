"""Staging ahead: what comes next is read from the store into the pool while others compute. Within a budget, and stopped, or given
up, when something else became more likely. How often it was right is counted: right when the workload is resumed from what was
staged, wrong when that is given up or its room is needed, neither when the resume overtakes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from kybernate.agent.gear import Gear
from kybernate.agent.orders.switching import Switching
from kybernate.agent.records.ledger import Entry
from kybernate.agent.workloads.tasks import Tasks
from kybernate.model.errors import KybernateError
from kybernate.model.types import CHUNK_BYTES, TierName, WorkloadName, WorkloadState
from kybernate.store import Cancelled

log = logging.getLogger(__name__)

_PART_OF_POOL = 4
_AGAIN_S = 30.0
"""What could not be staged is not tried again sooner: its tier is away, or the pool is full."""


class Pool(Protocol):
    """The host pool's numbers."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def free_slots(self) -> int: ...


class Staging:
    """Use it in the loop's thread."""

    def __init__(
        self, *, gear: Gear, pool: Pool | None, switching: Switching, tasks: Tasks, wake: Callable[[], None]
    ) -> None:
        self._gear = gear
        self._pool = pool
        self._tasks = tasks
        self._wake = wake
        self._budget: int | None = None
        self._running: set[WorkloadName] = set()
        self._mine: dict[WorkloadName, str] = {}
        """Snapshots that were staged ahead and still lie there."""
        self._given_up: set[WorkloadName] = set()
        self._again_at: dict[WorkloadName, float] = {}
        self.hits = 0
        self.misses = 0

    def configure(self, budget: int | None) -> None:
        """None: a part of the pool."""
        self._budget = budget

    def budget(self) -> int:
        if self._pool is None:
            return 0
        return self._pool.size_bytes // _PART_OF_POOL if self._budget is None else self._budget

    def used_bytes(self) -> int:
        gpu = self._gear.gpu
        if gpu is None:
            return 0
        mine = set(self._mine.values())
        return sum(view.bytes for view in gpu.engine.staged() if view.snapshot in mine)

    def free_bytes(self) -> int:
        """What staging may still take."""
        if self._pool is None:
            return 0
        return max(0, min(self.budget() - self.used_bytes(), self._pool.free_slots * CHUNK_BYTES))

    def is_staged(self, entry: Entry | None) -> bool:
        gpu = self._gear.gpu
        if gpu is None or entry is None or entry.snapshot is None:
            return False
        return any(view.snapshot == entry.snapshot for view in gpu.engine.staged())

    def begin(self, name: WorkloadName) -> None:
        entry = self._gear.ledger.get(name)
        if entry is None or entry.state is not WorkloadState.PAUSED or entry.tier is TierName.RAM:
            return
        if name in self._running or self.is_staged(entry) or self._again_at.get(name, 0.0) > self._gear.clock():
            return
        self._running.add(name)
        self._tasks.start(self._stage(name), name=f"stage {name}")

    def give_up(self, name: WorkloadName) -> None:
        """Something else is more likely."""
        if name in self._running:
            self._given_up.add(name)
        self._gear.jobs.cancel("stage", name)
        snapshot = self._mine.pop(name, None)
        if snapshot is None:
            return
        self.misses += 1
        gpu = self._gear.gpu
        assert gpu is not None
        for view in gpu.engine.staged():
            if view.snapshot == snapshot:
                gpu.engine.drop_staged(view.uid)
        self._gear.events.record("unstaged", "given up again: something else is more likely", workload=name)

    def look(self) -> None:
        """Somebody may have needed the room for something else."""
        gpu = self._gear.gpu
        if gpu is None or not self._mine:
            return
        there = {view.snapshot for view in gpu.engine.staged()}
        for name in [name for name, snapshot in self._mine.items() if snapshot not in there]:
            entry = self._gear.ledger.get(name)
            if entry is not None and self._gear.workloads.idle(name) and entry.tier is not TierName.RAM:
                del self._mine[name]
                self.misses += 1

    def changed(self, old: Entry | None, new: Entry | None) -> None:
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

    async def _stage(self, name: WorkloadName) -> None:
        try:
            view = await self._gear.tiering.prefetch(name, asked=False)
        except Cancelled:
            self.misses += name in self._given_up
        except KybernateError as e:
            self._again_at[name] = self._gear.clock() + _AGAIN_S
            log.info("workload %s could not be staged ahead: %s", name, e)
        else:
            entry = self._gear.ledger.get(name)
            if not view.already and entry is not None and entry.snapshot is not None and self.is_staged(entry):
                self._mine[name] = entry.snapshot
        finally:
            self._running.discard(name)
            self._given_up.discard(name)
            self._wake()
