"""Snapshots from tier to tier below RAM: a parked workload's move, an image's second copy.

A copy is whole in the second tier before the first is deleted. Where a tier is full its garbage is collected, once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from kybernate import store
from kybernate.agent.records.events import Events
from kybernate.agent.records.jobs import Job, Jobs
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.tiers.claims import Claims
from kybernate.agent.tiers.stale_snapshots import StaleSnapshots
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.errors import Busy, NoRoom
from kybernate.model.types import TierName, WorkloadName
from kybernate.store.moving import Step

T = TypeVar("T")


class Transfers:
    """Use it in the loop's thread, where nothing else is said."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        jobs: Jobs,
        stores: Stores,
        claims: Claims,
        stale_snapshots: StaleSnapshots,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._jobs = jobs
        self._stores = stores
        self._claims = claims
        self._stale_snapshots = stale_snapshots

    async def move(self, name: WorkloadName, tier: TierName, *, keep: bool = False) -> store.Manifest | None:
        """Copy a parked workload into another tier below RAM and, unless it is to be kept, forget it in the first. In its
        owner task.

        None: it is there already.

        Raises:
            NotFound, Damaged, NoRoom, TierAway, ...: it lies where it lay.
        """
        ledger, events = self._ledger, self._events
        entry = ledger.entry(name)
        if entry.tier is tier or entry.snapshot is None:
            return None
        snapshot, source = entry.snapshot, entry.tier
        if tier in entry.also:
            await in_thread(f"look for {snapshot}", lambda: self._claims.still_there(entry, snapshot, tier))
        with self._jobs.begin("move", name) as job:
            manifest = await self.copy(job, snapshot, source, tier, away=not keep)
        if keep:
            ledger.update(name, also=(*(other for other in entry.also if other is not tier), tier))
            events.record("copied", f"from {source} to {tier}, too", workload=name, data={"snapshot": snapshot})
            return manifest
        also = tuple(other for other in entry.also if other not in (tier, source))
        ledger.update(name, tier=tier, also=also, reason=f"moved from {source} to {tier}")
        await ledger.flush()
        await in_thread(f"forget {snapshot}", lambda: self._stale_snapshots.delete(snapshot, source))
        events.record("moved", f"from {source} to {tier}", workload=name, data={"snapshot": snapshot})
        return manifest

    async def move_snapshot(self, snapshot: str, source: TierName, tier: TierName, *, keep: bool) -> None:
        """An image, or what no workload lies in.

        Args:
            keep: it stays in the first tier, too.
        """
        with self._jobs.begin("move", snapshot) as job:
            await self.copy(job, snapshot, source, tier, away=not keep)
        if not keep:
            await in_thread(f"forget {snapshot}", lambda: self._stale_snapshots.delete(snapshot, source))
        self._events.record("moved", f"snapshot {snapshot} from {source} to {tier}{', too' if keep else ''}")

    async def prefetch(self, gpu: GpuRuntime, snapshot: str, source: TierName) -> int:
        """Read its content into the pool, beside. Returns how many bytes were read: 0 where it was there already."""
        with self._jobs.begin("stage", snapshot) as job:
            report = await in_thread(
                f"stage {snapshot}",
                lambda: gpu.engine.stage(self._stores.space(source), snapshot, progress=job.tell, cancel=job.stop),
            )
        return report.bytes_read

    async def copy(
        self, job: Job, snapshot: str, source: TierName, tier: TierName, *, away: bool = False
    ) -> store.Manifest:
        """A snapshot's second copy, in another tier.

        Args:
            away: the first is about to be deleted: from a place of several agents it is claimed before.
        """
        step = Step()
        stores = self._stores

        def work() -> store.Manifest:
            with job.stop.forwarded_to(step.cancel):
                here = stores.space(source)
                if away:
                    self._claims.take(here, snapshot)
                try:
                    return self.with_space(
                        tier, lambda there: store.copy(here, there, snapshot, progress=job.tell, step=step)
                    )
                except BaseException:
                    if away:
                        self._claims.release([here], snapshot)
                    raise

        try:
            return await in_thread(f"copy {snapshot}", work)
        except BaseException as e:
            self._stores.trouble(tier, e)
            raise

    def with_space(self, tier: TierName, write: Callable[[store.Space], T]) -> T:
        """In a thread: write into a tier; where it is full, once more after its garbage was collected."""
        space = self._stores.space(tier)
        try:
            return write(space)
        except NoRoom:
            with contextlib.suppress(Busy):
                if store.collect(space).freed:
                    return write(space)
            raise
