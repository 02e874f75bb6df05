"""Orders to pause and resume: a person's, the policy's, the arbiter's; who may ask for what when.

Each goes to its workload's owner task, where switching/pausing.py, switching/resuming.py and tiering.py do it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from kybernate.agent.orders.tiering import Tiering
from kybernate.agent.records.ledger import ARBITER, USER, Ledger, refuse_ended
from kybernate.agent.switching.gate import RequestGate
from kybernate.agent.switching.pause_orders import PauseOrders
from kybernate.agent.switching.resuming import Resuming
from kybernate.agent.tiers.capture import DumpOptions
from kybernate.agent.workloads.operations import RunningOrder
from kybernate.agent.workloads.orders import PauseOrder, ResumeOrder
from kybernate.agent.workloads.runtime import GpuRuntime, need_gpu
from kybernate.agent.workloads.starts import Starts
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import TIMEOUT_S_DEFAULT, SwitchView
from kybernate.model.errors import BadInput, KybernateError
from kybernate.model.types import Depth, TierName, WorkloadName, WorkloadState

log = logging.getLogger(__name__)

T = TypeVar("T")

_AS_SET = DumpOptions()


class Switching:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gpu: GpuRuntime | None,
        ledger: Ledger,
        starts: Starts,
        workloads: Workloads,
        pause_orders: PauseOrders,
        resuming: Resuming,
        tiering: Tiering,
        gate: Callable[[], RequestGate],
    ) -> None:
        """`gate`: who lets requests through to workloads; asked at each use, since it is made after this."""
        self._gpu = gpu
        self._ledger = ledger
        self._starts = starts
        self._workloads = workloads
        self._pause_orders = pause_orders
        self._resuming = resuming
        self._tiering = tiering
        self._gate = gate

    # -- orders --------------------------------------------------------------------------------------------------

    async def pause(
        self,
        name: WorkloadName,
        *,
        depth: Depth,
        timeout_s: float,
        tier: TierName = TierName.RAM,
        options: DumpOptions = _AS_SET,
    ) -> SwitchView:
        """Pause on a person's behalf. Of an equal pause under way it gets the report; a paused one is fine.

        Args:
            tier: where its state shall lie; one that lies deeper already stays there.
            options: of its dump, where it goes below RAM.

        Raises:
            NotFound: no such workload.
            Conflict: it is not in a state to be paused.
            Busy, Unsupported, NoRoom: it runs on unchanged.
            WorkloadLost: it could not be brought back either.
            what the store raises: it is paused in RAM.
        """
        gpu = need_gpu(self._gpu)
        entry = self._ledger.entry(name)
        refuse_ended(entry, "paused")
        if tier is not TierName.RAM:
            if depth is not Depth.ZERO:
                raise BadInput(
                    f"a workload whose state goes to {tier} leaves nothing in VRAM", hint="leave out --depth"
                )
            await self._tiering.prepare(entry, tier, options)

        async def go_deeper(view: SwitchView) -> SwitchView:
            return await self._tiering.go_deeper(gpu, name, tier, view, options)

        wanted = PauseOrder(
            depth=depth,
            tier=tier,
            connections=options.connections,
            allow_changes=options.allow_changes,
            by=USER,
            why="paused by order",
            timeout_s=timeout_s,
        )
        then = None if tier is TierName.RAM else go_deeper
        view = await self._pause_orders.order(name, wanted, begin_within_s=max(timeout_s, 1.0), then=then)
        if tier is TierName.RAM:
            await self._ledger.flush()  # that a person paused it is known to the next agent, whenever this one dies
            view = view.model_copy(update={"tier": self._ledger.entry(name).tier})
        return view

    async def resume(self, name: WorkloadName, *, timeout_s: float, take_over: bool = False) -> SwitchView:
        """Resume on a person's behalf, pausing others where it needs their room. A running one is fine.

        Args:
            take_over: also if another agent said that it resumes it.

        Raises:
            NotFound: no such workload.
            NoRoom: it doesn't fit; paused as before.
            WorkloadLost: it could not be brought back.
        """
        wanted = ResumeOrder(
            may_evict=True, wait_s=timeout_s, why="resumed by order", take_over=take_over, by_person=True
        )
        return await self._order_resume(name, wanted, begin_within_s=max(timeout_s, 1.0))

    async def _order_resume(
        self, name: WorkloadName, wanted: ResumeOrder, *, begin_within_s: float | None = None
    ) -> SwitchView:
        """The same work for everybody: whoever's order it was first, it is carried out as the strongest of them."""
        gpu, ledger, starts = need_gpu(self._gpu), self._ledger, self._starts
        refuse_ended(ledger.entry(name), "resumed")
        starts.refuse()
        if wanted.may_evict:
            self._workloads.make_way(name)

        def tell_request(order: RunningOrder[ResumeOrder]) -> None:
            entry = ledger.get(name)
            if (
                order.now.by_person
                and entry is not None
                and not entry.ended
                and entry.state is not WorkloadState.STOPPING
            ):
                self._gate().on_requested(name)

        async def resume(order: RunningOrder[ResumeOrder]) -> SwitchView:
            refuse_ended(ledger.entry(name), "resumed")  # a stop that was in line before has come to nothing otherwise
            starts.refuse()
            tell_request(order)
            try:
                return await self._resuming.resume(gpu, name, order)
            finally:
                tell_request(order)

        return await self._workloads.order(name, "resume", resume, wanted, begin_within_s=begin_within_s)

    # -- for whoever is in the workload's owner task already ---------------------------------------------------------

    async def while_paused(
        self, name: WorkloadName, work: Callable[[], Awaitable[T]], *, why: str
    ) -> tuple[T, str | None]:
        """Do something to a workload that stands still at depth zero; then it goes on if it ran before.

        Returns also what there is to say of its going on. Should the agent die meanwhile, the next one lets it go on.
        """
        need_gpu(self._gpu)
        entry = self._ledger.entry(name)
        ran = entry.state is WorkloadState.RUNNING
        if ran or entry.depth is not Depth.ZERO:
            by = ARBITER if ran else entry.paused_by or USER
            order = PauseOrder(depth=Depth.ZERO, timeout_s=TIMEOUT_S_DEFAULT, by=by, why=f"paused {why}")
            await self._pause_orders.at_once(name, order)
        try:
            done = await work()
        finally:
            note: str | None = None
            if ran:
                try:
                    again = f"resumed after it was paused {why}"
                    await self.resume_within(name, may_evict=True, wait_s=TIMEOUT_S_DEFAULT, why=again)
                except KybernateError as e:
                    note = f"it could not be resumed at once: {e.message}"
                    log.warning("workload %s, paused %s: %s", name, why, note)
        return done, note

    async def resume_within(self, name: WorkloadName, *, may_evict: bool, wait_s: float, why: str) -> SwitchView:
        order = ResumeOrder(may_evict=may_evict, wait_s=wait_s, why=why)
        return await self._resuming.resume(need_gpu(self._gpu), name, RunningOrder(order))

    async def resume_to_end(self, name: WorkloadName, why: str) -> SwitchView:
        """For its last things: nobody's requests come to it, and nobody is paused for it."""
        order = ResumeOrder(may_evict=False, wait_s=0.0, why=why)
        return await self._resuming.resume(need_gpu(self._gpu), name, RunningOrder(order), serve=False)

    # -- the policy's and the arbiter's orders -----------------------------------------------------------------------

    async def bring(
        self, name: WorkloadName, *, victims: Sequence[WorkloadName], wait_s: float, why: str
    ) -> SwitchView:
        """Resume on the policy's behalf; these victims make room, or others where they don't suffice any more."""
        return await self._order_resume(
            name, ResumeOrder(may_evict=True, wait_s=wait_s, why=why, victims=tuple(victims))
        )

    async def give_back(self, name: WorkloadName, *, why: str) -> SwitchView:
        """Pause on the policy's behalf, though nobody needs its room."""
        return await self._pause_orders.give_back(name, why=why)

    async def bring_back(self, name: WorkloadName, *, may_evict: bool) -> None:
        """Resume what was evicted. `may_evict`: pausing others for it, as far as they can be paused now."""
        why = "resumed by the arbiter: " + ("others have had their turn" if may_evict else "its VRAM is free")
        await self._order_resume(name, ResumeOrder(may_evict=may_evict, wait_s=0.0, why=why))
