"""Orders to pause, resume and move: a person's, the policy's, the room keeper's; who may ask for what when.

Each goes to its workload's owner task, where switching/pausing.py, switching/resuming.py and tiering.py do it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from kybernate.agent.gear import Gear
from kybernate.agent.orders.tiering import Tiering
from kybernate.agent.records.ledger import ARBITER, USER, refuse_ended
from kybernate.agent.switching.failure_recovery import Aftermath
from kybernate.agent.switching.gate import Gate, OpenGate
from kybernate.agent.switching.pausing import Pausing
from kybernate.agent.switching.resuming import Resuming
from kybernate.agent.tiers.parking import Parking
from kybernate.agent.tiers.pool_eviction import PoolRoom
from kybernate.agent.tiers.stale_snapshots import Leftovers
from kybernate.agent.tiers.transfers import Transfers
from kybernate.agent.tiers.unparking import Unparking
from kybernate.agent.vram.overlapped_eviction import Freed
from kybernate.agent.vram.unmanaged import Unmanaged
from kybernate.agent.workloads.external import ExternalWatcher
from kybernate.agent.workloads.operations import Standing
from kybernate.agent.workloads.orders import PauseOrder, PrefetchOrder, ResumeOrder
from kybernate.agent.workloads.targets import external_name
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import TIMEOUT_S_DEFAULT, StoredView, SwitchView
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput, Busy, KybernateError, NotFound
from kybernate.model.types import Depth, TierName, WorkloadName, WorkloadState
from kybernate.process.preflight import Connections

log = logging.getLogger(__name__)

T = TypeVar("T")


class Switching:
    """Also what the room keeper asks for evictions (`idle`, `evict`, `bring_back`)."""

    def __init__(
        self,
        *,
        gear: Gear,
        workloads: Workloads,
        external: ExternalWatcher,
        parking: Parking,
        unparking: Unparking,
        transfers: Transfers,
        pool_room: PoolRoom,
        leftovers: Leftovers,
        unmanaged: Unmanaged,
    ) -> None:
        self._gear = gear
        self._workloads = workloads
        self._external = external
        self._parking = parking
        self._tiering = Tiering(gear=gear, parking=parking, unparking=unparking, transfers=transfers)
        self.gate: Gate = OpenGate()
        """Set before the first order by whoever serves requests."""
        aftermath = Aftermath(gear=gear, workloads=workloads, parking=parking)
        gate = lambda: self.gate  # noqa: E731
        self._pausing = Pausing(
            gear=gear, workloads=workloads, pool_room=pool_room, aftermath=aftermath, unmanaged=unmanaged, gate=gate
        )
        self._resuming = Resuming(
            gear=gear, workloads=workloads, unparking=unparking, leftovers=leftovers, aftermath=aftermath, gate=gate
        )
        workloads.resume_to_end = self._resume_to_end

    # -- orders --------------------------------------------------------------------------------------------------

    async def pause(
        self,
        name: WorkloadName,
        *,
        depth: Depth,
        timeout_s: float,
        tier: TierName = TierName.RAM,
        connections: Connections | None = None,
        allow_changes: bool | None = None,
    ) -> SwitchView:
        """Pause on a person's behalf. Of an equal pause under way it gets the report; a paused one is fine.

        Args:
            tier: where its state shall lie; one that lies deeper already stays there.

        Raises:
            NotFound: no such workload.
            Conflict: it is not in a state to be paused.
            Busy, Unsupported, NoRoom: it runs on unchanged.
            WorkloadLost: it could not be brought back either.
            what the store raises: it is paused in RAM.
        """
        gpu = self._gear.need_gpu()
        entry = self._gear.ledger.entry(name)
        refuse_ended(entry, "paused")
        if tier is not TierName.RAM:
            if depth is not Depth.ZERO:
                raise BadInput(
                    f"a workload whose state goes to {tier} leaves nothing in VRAM", hint="leave out --depth"
                )
            self._parking.refuse_early(entry)
            await in_thread(f"open {tier}", lambda: self._gear.stores.space(tier))
            await self._parking.refuse_undumpable(entry, connections, allow_changes, asked_at=self.gate.port_of(name))

        async def pause(order: Standing[PauseOrder]) -> SwitchView:
            view = await self._pausing.pause(gpu, name, order)
            if tier is TierName.RAM:
                return view
            return await self._tiering.go_deeper(gpu, name, tier, view, connections, allow_changes)

        wanted = PauseOrder(
            depth=depth,
            tier=tier,
            connections=connections,
            allow_changes=allow_changes,
            by=USER,
            why="paused by order",
            timeout_s=timeout_s,
        )
        view = await self._workloads.order(name, "pause", pause, wanted, begin_within_s=max(timeout_s, 1.0))
        if tier is TierName.RAM:
            await self._gear.flush()  # that a person paused it is known to the next agent, whenever this one dies
            view = view.model_copy(update={"tier": self._gear.ledger.entry(name).tier})
        return view

    async def move(
        self,
        name: WorkloadName,
        tier: TierName,
        *,
        connections: Connections | None = None,
        allow_changes: bool | None = None,
        keep: bool = False,
    ) -> StoredView:
        """Let a paused workload lie in another tier; RAM stands for its content in the pool, ahead of its resume.

        Raises:
            Conflict: it runs. Others as `pause` and the store.
        """
        gpu = self._gear.need_gpu()
        refuse_ended(self._gear.ledger.entry(name), "moved")
        began = self._gear.clock()

        async def move() -> StoredView:
            return await self._tiering.move(
                gpu, name, tier, connections=connections, allow_changes=allow_changes, keep=keep, began=began
            )

        return await self._workloads.submit(name, "move", move, detail=(tier, connections, allow_changes, keep))

    async def prefetch(self, name: WorkloadName, *, asked: bool = True) -> StoredView:
        """Read a workload's content from the store into the pool, so that its resume is quick. In RAM already is fine.

        Args:
            asked: by a person; else the agent may give it up for something else.
        """
        gpu = self._gear.need_gpu()
        refuse_ended(self._gear.ledger.entry(name), "prefetched")

        async def prefetch(order: Standing[PrefetchOrder]) -> StoredView:
            return await self._tiering.prefetch(gpu, name, asked=order.now.asked)

        return await self._workloads.order(name, "prefetch", prefetch, PrefetchOrder(asked=asked))

    async def resume(self, name: WorkloadName, *, timeout_s: float, take_over: bool = False) -> SwitchView:
        """Resume on a person's behalf, pausing others where it needs their room. A running one is fine.

        Args:
            take_over: also if another agent said that it resumes it.

        Raises:
            NotFound: no such workload.
            NoRoom: it doesn't fit; paused as before.
            WorkloadLost: it could not be brought back.
        """
        wanted = ResumeOrder(may_evict=True, wait_s=timeout_s, why="resumed by order", take_over=take_over, asked=True)
        return await self._order_resume(name, wanted, begin_within_s=max(timeout_s, 1.0))

    async def _order_resume(
        self, name: WorkloadName, wanted: ResumeOrder, *, begin_within_s: float | None = None
    ) -> SwitchView:
        """The same work for everybody: whoever's order it was first, it is carried out as the strongest of them."""
        gpu, ledger, starts = self._gear.need_gpu(), self._gear.ledger, self._gear.starts
        refuse_ended(ledger.entry(name), "resumed")
        starts.refuse()
        if wanted.may_evict:
            self._gear.jobs.make_way(name)

        def it_is_asked_for(order: Standing[ResumeOrder]) -> None:
            entry = ledger.get(name)
            if order.now.asked and entry is not None and not entry.ended and entry.state is not WorkloadState.STOPPING:
                self.gate.asked_for(name)

        async def resume(order: Standing[ResumeOrder]) -> SwitchView:
            refuse_ended(ledger.entry(name), "resumed")  # a stop that was in line before has come to nothing otherwise
            starts.refuse()
            it_is_asked_for(order)
            try:
                return await self._resuming.resume(gpu, name, order)
            finally:
                it_is_asked_for(order)

        return await self._workloads.order(name, "resume", resume, wanted, begin_within_s=begin_within_s)

    async def pause_external(self, pid: int, *, timeout_s: float, caller: Caller) -> SwitchView:
        """Pause a process that we did not start, by the driver's own checkpoint.

        Raises:
            NotFound: no such process.
            Conflict: it is one of ours, or the agent itself.
            BadInput: it has no CUDA context.
        """
        self._gear.need_gpu()
        name = external_name(pid)
        await self._external.adopt(pid, caller=caller)
        try:
            return await self.pause(name, depth=Depth.ZERO, timeout_s=timeout_s)
        except KybernateError:
            await self._let_go(name)
            raise

    async def resume_external(self, pid: int, *, caller: Caller) -> SwitchView:
        """Raises NotFound when it was never paused here."""
        name = external_name(pid)
        caller.require_owner(self._gear.ledger.entry(name).uid, f"process {pid}")
        view = await self.resume(name, timeout_s=30.0)
        await self._let_go(name)
        return view

    async def _let_go(self, name: WorkloadName) -> None:
        """An external process that runs is none of our workloads."""
        with contextlib.suppress(NotFound):
            await self._workloads.submit(name, "let go", lambda: self._external.let_go(name))

    async def while_paused(
        self, name: WorkloadName, work: Callable[[], Awaitable[T]], *, why: str
    ) -> tuple[T, str | None]:
        """Do something to a workload that stands still at depth zero, in its owner task; then it goes on if it ran before.

        Returns also what there is to say of its going on. Should the agent die meanwhile, the next one lets it go on.
        """
        gpu = self._gear.need_gpu()
        entry = self._gear.ledger.entry(name)
        ran = entry.state is WorkloadState.RUNNING
        if ran or entry.depth is not Depth.ZERO:
            by = ARBITER if ran else entry.paused_by or USER
            order = PauseOrder(depth=Depth.ZERO, timeout_s=TIMEOUT_S_DEFAULT, by=by, why=f"paused {why}")
            await self._pausing.pause(gpu, name, Standing(order))
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
        """For whoever is in the workload's owner task already."""
        order = ResumeOrder(may_evict=may_evict, wait_s=wait_s, why=why)
        return await self._resuming.resume(self._gear.need_gpu(), name, Standing(order))

    async def _resume_to_end(self, name: WorkloadName, why: str) -> SwitchView:
        order = ResumeOrder(may_evict=False, wait_s=0.0, why=why)
        return await self._resuming.resume(self._gear.need_gpu(), name, Standing(order), serve=False)

    # -- the policy's orders -------------------------------------------------------------------------------------

    async def bring(
        self, name: WorkloadName, *, victims: Sequence[WorkloadName], wait_s: float, why: str
    ) -> SwitchView:
        """Resume on the policy's behalf; these victims make room, or others where they don't suffice any more."""
        return await self._order_resume(
            name, ResumeOrder(may_evict=True, wait_s=wait_s, why=why, victims=tuple(victims))
        )

    async def give_back(self, name: WorkloadName, *, why: str) -> SwitchView:
        """Pause on the policy's behalf, though nobody needs its room."""
        return await self._order_pause(name, why)

    async def _order_pause(
        self,
        name: WorkloadName,
        why: str,
        *,
        freed: Freed | None = None,
        whom: WorkloadName | None = None,
        drain: bool = True,
    ) -> SwitchView:
        """By the arbiter: it is the arbiter's to resume, too."""
        gpu, settings = self._gear.need_gpu(), self._gear.settings.arbiter
        wanted = PauseOrder(
            depth=settings.depth, by=ARBITER, why=why, timeout_s=settings.drain, freed=freed, whom=whom, drain=drain
        )
        return await self._workloads.order(name, "pause", lambda order: self._pausing.pause(gpu, name, order), wanted)

    # -- the room keeper's orders --------------------------------------------------------------------------------

    def idle(self, name: WorkloadName) -> bool:
        return self._workloads.idle(name)

    async def evict(self, name: WorkloadName, *, requester: WorkloadName | None, freed: Freed | None = None) -> None:
        """Pause to make room. Raises Busy when somebody else got at the workload first."""
        if not self._workloads.idle(name):
            raise Busy(f"workload {name} is being worked on")
        why = "paused by the arbiter" + (f" to make room for {requester}" if requester else "")
        await self._order_pause(name, why, freed=freed, whom=requester)

    async def give_way(self, name: WorkloadName, *, why: str) -> None:
        """Pause one that waits for room, in its call. As `evict`; its requests in flight wait with it."""
        if not self._workloads.idle(name):
            raise Busy(f"workload {name} is being worked on")
        await self._order_pause(name, why, drain=False)

    async def bring_back(self, name: WorkloadName, *, may_evict: bool) -> None:
        """Resume what was evicted. `may_evict`: pausing others for it, as far as they can be paused now."""
        why = "resumed by the arbiter: " + ("others have had their turn" if may_evict else "its VRAM is free")
        await self._order_resume(name, ResumeOrder(may_evict=may_evict, wait_s=0.0, why=why))
