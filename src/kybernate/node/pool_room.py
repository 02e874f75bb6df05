"""Room in the host pool: the least valuable workload that is paused in RAM goes to the disk for one that needs its slots."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from kybernate import store
from kybernate.model.errors import KybernateError, NoRoom
from kybernate.model.types import Depth, TierName, WorkloadName, WorkloadState
from kybernate.node.demotion import least_valuable
from kybernate.node.gear import Gear, GpuGear
from kybernate.node.ledger import Entry
from kybernate.node.parking import Parking
from kybernate.node.threads import in_thread
from kybernate.node.workloads import Workloads

log = logging.getLogger(__name__)

T = TypeVar("T")


class PoolRoom:
    """See the module. Use it in the loop's thread."""

    def __init__(self, *, gear: Gear, workloads: Workloads, parking: Parking) -> None:
        self._gear = gear
        self._workloads = workloads
        self._parking = parking
        self._stuck: dict[WorkloadName, float] = {}
        """Since when workloads are paused that could not be parked for want of room: not tried again in that pause."""
        self.keeps_in_ram: Callable[[WorkloadName], bool] = lambda _: False
        """Whether somebody said that it goes no deeper by itself."""

    async def with_room(self, gpu: GpuGear, name: WorkloadName, work: Callable[[], T]) -> T:
        """Run `work` in a thread; as long as the pool is too small for it, others leave the pool and it is tried again."""
        while True:
            try:
                return await in_thread(f"for {name}", work)
            except NoRoom:
                if not await self.make(gpu, name):
                    raise

    async def make(self, gpu: GpuGear, asking: WorkloadName) -> bool:
        """Send the least valuable workload that is paused in RAM to the disk. Whether one went.

        Only idle ones are taken, and parking waits for nobody, so this never waits for one that waits for us.
        """
        gear = self._gear
        tier = TierName.NVME
        if not gear.settings.store.demote.pressure or not gear.stores.exists(tier):
            return False
        while True:
            candidates = [
                entry for entry in gear.ledger.entries().values() if entry.name != asking and self.may_go(gpu, entry)
            ]
            chosen = least_valuable(candidates)
            if chosen is None:
                return False
            if await self.demote(gpu, chosen, tier, why=f"went to the disk to make room for {asking} in the host pool"):
                return True

    def may_go(self, gpu: GpuGear, entry: Entry) -> bool:
        """Whether the agent may park it by itself: it is paused in RAM, whole, ours, nobody works on it, and no earlier try
        failed in this pause."""
        return (
            entry.state is WorkloadState.PAUSED
            and entry.tier is TierName.RAM
            and entry.depth is Depth.ZERO
            and not entry.external
            and not gpu.engine.unfinished(entry.name)
            and self._workloads.idle(entry.name)
            and self._stuck.get(entry.name) != entry.since
            and not self.keeps_in_ram(entry.name)
        )

    async def demote(self, gpu: GpuGear, entry: Entry, tier: TierName, *, why: str) -> bool:
        """Park a workload by the agent's own idea. Whether it left; one that can't is not tried again in this pause."""
        try:
            await self._workloads.submit(
                entry.name,
                "park",
                lambda: self._parking.park(gpu, entry.name, tier, by_itself=True, why=why),
                detail=tier,
            )
        except KybernateError as e:
            log.warning("workload %s stays in RAM: %s", entry.name, e)
            if not isinstance(e, store.Cancelled | store.TierAway):
                self._stuck[entry.name] = entry.since
            return False
        return True
