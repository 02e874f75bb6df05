"""Pauses by order: put in the line of their workload, where pausing.py does them. Also what the arbiter asks for to make room."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kybernate.agent.records.ledger import ARBITER
from kybernate.agent.switching.pausing import Pausing
from kybernate.agent.workloads.operations import RunningOrder
from kybernate.agent.workloads.orders import Freed, PauseOrder
from kybernate.agent.workloads.runtime import GpuRuntime, need_gpu
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import SwitchView
from kybernate.model.errors import Busy
from kybernate.model.types import WorkloadName
from kybernate.settings import ArbiterSettings


class PauseOrders:
    """Use it in the loop's thread. All of it raises Unsupported without a GPU, and what the pause raises."""

    def __init__(
        self, *, gpu: GpuRuntime | None, workloads: Workloads, pausing: Pausing, settings: ArbiterSettings
    ) -> None:
        self._gpu = gpu
        self._workloads = workloads
        self._pausing = pausing
        self._settings = settings

    async def order(
        self,
        name: WorkloadName,
        wanted: PauseOrder,
        *,
        begin_within_s: float | None = None,
        then: Callable[[SwitchView], Awaitable[SwitchView]] | None = None,
    ) -> SwitchView:
        """
        Args:
            begin_within_s: it is withdrawn, and answered with Busy, if it hasn't begun by then.
            then: goes on with the paused workload, in its owner task.
        """
        gpu = need_gpu(self._gpu)

        async def pause(order: RunningOrder[PauseOrder]) -> SwitchView:
            view = await self._pausing.pause(gpu, name, order)
            return view if then is None else await then(view)

        return await self._workloads.order(name, "pause", pause, wanted, begin_within_s=begin_within_s)

    async def at_once(self, name: WorkloadName, wanted: PauseOrder) -> SwitchView:
        """For whoever is in the workload's owner task already."""
        return await self._pausing.pause(need_gpu(self._gpu), name, RunningOrder(wanted))

    # -- by the arbiter: it is the arbiter's to resume, too ----------------------------------------------------------

    def idle(self, name: WorkloadName) -> bool:
        """Nobody does anything to it, and nothing is in line."""
        return self._workloads.idle(name)

    async def evict(self, name: WorkloadName, *, requester: WorkloadName | None, freed: Freed | None = None) -> None:
        """Pause to make room. Raises Busy when somebody else got at the workload first."""
        if not self._workloads.idle(name):
            raise Busy(f"workload {name} is being worked on")
        why = "paused by the arbiter" + (f" to make room for {requester}" if requester else "")
        await self._by_arbiter(name, why, freed=freed, requester=requester)

    async def give_way(self, name: WorkloadName, *, why: str) -> None:
        """Pause one that waits for room, in its call. As `evict`; its requests in flight wait with it."""
        if not self._workloads.idle(name):
            raise Busy(f"workload {name} is being worked on")
        await self._by_arbiter(name, why, drain=False)

    async def give_back(self, name: WorkloadName, *, why: str) -> SwitchView:
        """Pause on the policy's behalf, though nobody needs its room."""
        return await self._by_arbiter(name, why)

    async def _by_arbiter(
        self,
        name: WorkloadName,
        why: str,
        *,
        freed: Freed | None = None,
        requester: WorkloadName | None = None,
        drain: bool = True,
    ) -> SwitchView:
        wanted = PauseOrder(
            depth=self._settings.depth,
            by=ARBITER,
            why=why,
            timeout_s=self._settings.drain,
            freed=freed,
            requester=requester,
            drain=drain,
        )
        return await self.order(name, wanted)
