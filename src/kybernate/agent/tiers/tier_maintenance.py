"""What the agent does about its tiers by itself: opens them, takes in what they hold, deletes what was left behind, and lets
what has been idle for long go to the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kybernate.agent.records.ledger import Ledger
from kybernate.agent.tiers import prefetched
from kybernate.agent.tiers.demotion import idle_too_long
from kybernate.agent.tiers.pool_eviction import PoolEviction
from kybernate.agent.tiers.stale_snapshots import StaleSnapshots
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.tiers.workload_discovery import WorkloadDiscovery
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.threads import in_thread
from kybernate.engine.engine import Engine
from kybernate.model.types import TierName

_LOOK_S = 0.25
_SWEEP_AGAIN_S = 15.0
"""What could not be deleted, or opened, is tried again so often."""
_STAGED_AGAIN_S = 60.0
"""What others have deleted is looked for so often: a bucket's every listing costs something."""


class TierMaintenance:
    """`run` is a task's body. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        stores: Stores,
        engine: Engine | None,
        discovery: WorkloadDiscovery,
        stale_snapshots: StaleSnapshots,
        demotion: IdleDemotion,
        tasks: Tasks,
    ) -> None:
        """`engine`: None without a GPU."""
        self._clock = clock
        self._stores = stores
        self._engine = engine
        self._discovery = discovery
        self._stale_snapshots = stale_snapshots
        self._demotion = demotion
        self._tasks = tasks

    async def run(self) -> None:
        """Ends by cancellation."""
        await in_thread("open the tiers", self._stores.open_all)
        if (space := self._stores.ready(TierName.NVME)) is not None:
            try:
                self._discovery.take_in(TierName.NVME, space.snapshots())
            except Exception as e:  # what isn't taken in here is found when somebody asks for it by its name
                self._tasks.failed("tiers", e)
        self._stale_snapshots.due.set()
        again = self._clock() + _SWEEP_AGAIN_S
        staged_again = self._clock() + _STAGED_AGAIN_S
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if self._clock() >= again:
                    again = self._clock() + _SWEEP_AGAIN_S
                    await in_thread("look at the tiers", self._stores.look_again)
                    self._stale_snapshots.due.set()
                if self._clock() >= staged_again:
                    staged_again = self._clock() + _STAGED_AGAIN_S
                    await self._drop_gone()
                if self._stale_snapshots.due.is_set():
                    await self._stale_snapshots.sweep_all()
                await self._demotion.demote_one()
            except Exception as e:  # whatever one workload's snapshot may do must not end the care for the others
                self._tasks.failed("tiers", e)

    async def _drop_gone(self) -> None:
        engine = self._engine
        if engine is not None:
            await in_thread("look what is staged", lambda: prefetched.drop_gone(engine, self._stores))


class IdleDemotion:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Callable[[], float],
        pool_eviction: PoolEviction,
        idle_s: float | None,
    ) -> None:
        """`idle_s`: after so many seconds in RAM; None: never."""
        self._ledger = ledger
        self._clock = clock
        self._pool_eviction = pool_eviction
        self._idle_s = idle_s

    async def demote_one(self) -> None:
        """The one that has been paused longest, if it has been for long enough."""
        if self._idle_s is None:
            return
        may = [entry for entry in self._ledger.entries().values() if self._pool_eviction.may_demote(entry)]
        for entry in idle_too_long(may, now=self._clock(), idle_s=self._idle_s)[:1]:
            await self._pool_eviction.demote(entry, TierName.NVME, why="went to the disk, being idle for long")
