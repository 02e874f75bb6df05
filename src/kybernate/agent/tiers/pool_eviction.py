"""Room in the host pool for whoever is to come into it: a pause, or a workload that is read back from the store.

The engine gives up caches of running workloads by itself. Where that isn't enough, a workload that is just on its way back into
VRAM is waited for, as its copy is a cache a moment later. Only then the least valuable one that is paused in RAM goes to the disk,
which takes twenty times as long and makes its own next request wait. Waiting is bounded, because the one that comes may itself
wait for VRAM that the asking workload holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import TypeVar

from kybernate import store
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.tiers.demotion import least_valuable
from kybernate.agent.tiers.parking import Parking
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.workloads.runtime import GpuRuntime, need_gpu
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.errors import Cancelled, KybernateError, NoRoom
from kybernate.model.types import Depth, TierName, WorkloadName, WorkloadState

log = logging.getLogger(__name__)

T = TypeVar("T")

_BACK_S = 3.0
"""How long workloads that are coming are waited for: a swap of 40 GiB takes 1.3 s, writing 24 GiB to a disk 18 s (measured)."""


class PoolEviction:
    """See the module. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gpu: GpuRuntime | None,
        ledger: Ledger,
        stores: Stores,
        workloads: Workloads,
        parking: Parking,
        under_pressure: bool,
        keeps_in_ram: Callable[[WorkloadName], bool],
    ) -> None:
        """
        Args:
            under_pressure: workloads may be sent to the disk to make room for others.
            keeps_in_ram: whether somebody said of a workload that it goes no deeper by itself.
        """
        self._gpu = gpu
        self._ledger = ledger
        self._stores = stores
        self._workloads = workloads
        self._parking = parking
        self._under_pressure = under_pressure
        self._keeps_in_ram = keeps_in_ram
        self._stuck: dict[WorkloadName, float] = {}
        """Since when workloads are paused that could not be parked for want of room: not tried again in that pause."""

    async def with_room(self, name: WorkloadName, work: Callable[[], T], *, requester: WorkloadName | None = None) -> T:
        """Run `work` in a thread; as long as the pool is too small for it, room is made and it is tried again.

        Args:
            requester: whose coming waits for this one, so that it isn't waited for.

        Raises:
            NoRoom: nobody can go.
        """
        until = asyncio.get_running_loop().time() + _BACK_S
        while True:
            try:
                return await in_thread(f"for {name}", work)
            except NoRoom:
                back = await self._somebody_back(but=(name, requester), until=until)
                if not back and not await self._somebody_down(name):
                    raise

    async def _somebody_back(self, *, but: Collection[WorkloadName | None], until: float) -> bool:
        """Whether a workload that was on its way into VRAM arrived in time, or gave up."""
        before = self._coming(but)
        left = until - asyncio.get_running_loop().time()
        return bool(before) and await self._workloads.wait_until(lambda: not before <= self._coming(but), left)

    def _coming(self, but: Collection[WorkloadName | None]) -> set[WorkloadName]:
        gpu = need_gpu(self._gpu)
        return {
            entry.name
            for entry in self._ledger.entries().values()
            if entry.state is WorkloadState.RESUMING
            and entry.name not in but
            and gpu.engine.host_copy(entry.name) is not None
        }

    async def _somebody_down(self, asking: WorkloadName) -> bool:
        """Send the least valuable workload that is paused in RAM to the disk. Whether one went.

        Only idle ones are taken, and parking waits for nobody, so this never waits for one that waits for us.
        """
        tier = TierName.NVME
        if not self._under_pressure or not self._stores.exists(tier):
            return False
        while True:
            candidates = [
                entry for entry in self._ledger.entries().values() if entry.name != asking and self.may_demote(entry)
            ]
            chosen = least_valuable(candidates)
            if chosen is None:
                return False
            if await self.demote(chosen, tier, why=f"went to the disk to make room for {asking} in the host pool"):
                return True

    def may_demote(self, entry: Entry) -> bool:
        """Whether the agent may park it by itself: it is paused in RAM, whole, ours, nobody works on it, and no earlier try
        failed in this pause."""
        gpu = self._gpu
        return (
            gpu is not None
            and entry.state is WorkloadState.PAUSED
            and entry.tier is TierName.RAM
            and entry.depth is Depth.ZERO
            and not entry.external
            and not gpu.engine.unfinished(entry.name)
            and self._workloads.idle(entry.name)
            and self._stuck.get(entry.name) != entry.since
            and not self._keeps_in_ram(entry.name)
        )

    async def demote(self, entry: Entry, tier: TierName, *, why: str) -> bool:
        """Park a workload by the agent's own idea. Whether it left; one that can't is not tried again in this pause."""
        gpu = need_gpu(self._gpu)
        try:
            await self._workloads.submit(
                entry.name,
                "park",
                lambda: self._parking.park(gpu, entry.name, tier, by_itself=True, why=why),
                detail=(tier, why),
            )
        except KybernateError as e:
            log.warning("workload %s stays in RAM: %s", entry.name, e)
            if not isinstance(e, Cancelled | store.TierAway):
                self._stuck[entry.name] = entry.since
            return False
        return True
