"""Pausing and resuming: the rules about who may ask for what when, around the engine's calls.

Every switch runs in the workload's owner task. The engine promises that what fails before the point of no return leaves the
workload running; whatever else fails, the engine is asked what is true now (`recover`) and the ledger follows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from kybernate.engine.coming import ContentDiffers
from kybernate.engine.recovery import ContentGone
from kybernate.engine.target import Target
from kybernate.model.api import TIMEOUT_S_DEFAULT, StepView, StoredView, SwitchView
from kybernate.model.errors import BadInput, Busy, Conflict, KybernateError, NoRoom, NotFound, Unsupported
from kybernate.model.types import Backend, Depth, SwitchReport, TierName, WorkloadName, WorkloadState
from kybernate.node.caller import Caller
from kybernate.node.departure import Departure, Freed
from kybernate.node.external import ExternalWatcher
from kybernate.node.gate import Gate, OpenGate
from kybernate.node.gear import Gear, GpuGear
from kybernate.node.ledger import ARBITER, RECOVERY, USER, Entry
from kybernate.node.leftovers import Leftovers
from kybernate.node.lifecycle import Event
from kybernate.node.parking import Parking
from kybernate.node.pool_room import PoolRoom
from kybernate.node.targets import external_name, target_of
from kybernate.node.threads import in_thread
from kybernate.node.transfers import Transfers
from kybernate.node.unparking import Back, NoCopy, Unparking
from kybernate.node.views import switch_view
from kybernate.node.workloads import Workloads
from kybernate.process.preflight import Connections

log = logging.getLogger(__name__)

T = TypeVar("T")

_LEAST_DRAIN_S = 1.0
"""For the GPU, where requests in flight took nearly all of an order's time: kernels end within milliseconds."""
_UNCHANGED = (Busy, Unsupported, NoRoom, Conflict)
"""The engine's answers that promise the workload is as it was."""


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
    ) -> None:
        self._gear = gear
        self._workloads = workloads
        self._external = external
        self._parking = parking
        self._unparking = unparking
        self._transfers = transfers
        self._pool_room = pool_room
        self._leftovers = leftovers
        self.gate: Gate = OpenGate()
        """Set before the first order by whoever serves requests."""
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
        gpu = self._gpu()
        entry = self._gear.ledger.entry(name)
        self._refuse_ended(entry, "paused")
        if tier is not TierName.RAM:
            if depth is not Depth.ZERO:
                raise BadInput(
                    f"a workload whose state goes to {tier} leaves nothing in VRAM", hint="leave out --depth"
                )
            self._parking.refuse_early(entry)
            await in_thread(f"open {tier}", lambda: self._gear.stores.space(tier))
            await self._parking.refuse_undumpable(entry, connections, asked_at=self.gate.port_of(name))

        async def pause() -> SwitchView:
            view = await self._pause(gpu, name, depth=depth, timeout_s=timeout_s, by=USER, why="paused by order")
            if tier is TierName.RAM:
                return view.model_copy(update={"tier": self._gear.ledger.entry(name).tier})
            return await self._go_deeper(gpu, name, tier, view, connections)

        return await self._workloads.submit(
            name, "pause", pause, detail=(depth, tier, connections), begin_within_s=max(timeout_s, 1.0)
        )

    async def move(
        self, name: WorkloadName, tier: TierName, *, connections: Connections | None = None, keep: bool = False
    ) -> StoredView:
        """Let a paused workload lie in another tier; RAM stands for its content in the pool, ahead of its resume.

        Raises:
            Conflict: it runs. Others as `pause` and the store.
        """
        gpu = self._gpu()
        self._refuse_ended(self._gear.ledger.entry(name), "moved")
        began = self._gear.clock()

        async def move() -> StoredView:
            entry = self._gear.ledger.entry(name)
            self._refuse_ended(entry, "moved")
            if entry.state is not WorkloadState.PAUSED:
                raise Conflict(f"workload {name} is {entry.state}", hint=f"`kybernate pause {name} --tier {tier}`")
            if tier is TierName.RAM:
                return await self._prefetch(gpu, name)
            was, stored = entry.tier, 0
            if entry.tier is TierName.RAM:
                if keep:
                    raise BadInput(
                        f"workload {name} lies in RAM, and can't be kept there as well", hint="leave out --keep"
                    )
                report = await self._parking.park(gpu, name, tier, connections=connections)
                total, stored = report.bytes_total, report.bytes_stored
            else:
                manifest = await self._transfers.move(name, tier, keep=keep)
                total = 0 if manifest is None else manifest.size
            now = self._gear.ledger.entry(name)
            return StoredView(
                subject=name,
                operation="move",
                tier=tier,
                snapshot=now.snapshot,
                seconds=self._gear.clock() - began,
                bytes_total=total,
                bytes_stored=stored,
                already=was is tier,
                note=None if was is not tier else f"lies in {tier} already",
            )

        return await self._workloads.submit(name, "move", move, detail=(tier, connections, keep))

    async def prefetch(self, name: WorkloadName) -> StoredView:
        """Read a workload's content from the store into the pool, so that its resume is quick. In RAM already is fine."""
        gpu = self._gpu()
        self._refuse_ended(self._gear.ledger.entry(name), "prefetched")
        return await self._workloads.submit(name, "prefetch", lambda: self._prefetch(gpu, name))

    async def _prefetch(self, gpu: GpuGear, name: WorkloadName) -> StoredView:
        began = self._gear.clock()
        already, size = await self._unparking.stage(gpu, name)
        entry = self._gear.ledger.entry(name)
        return StoredView(
            subject=name,
            operation="prefetch",
            tier=TierName.RAM,
            snapshot=entry.snapshot,
            seconds=self._gear.clock() - began,
            bytes_total=size,
            already=already,
            note="is in RAM already" if already else f"still lies in {entry.tier}, too",
        )

    async def _go_deeper(
        self, gpu: GpuGear, name: WorkloadName, tier: TierName, view: SwitchView, connections: Connections | None
    ) -> SwitchView:
        """From RAM, or another tier, to where it was ordered to lie."""
        entry = self._gear.ledger.entry(name)
        if entry.tier is tier:
            return view.model_copy(update={"tier": tier, "note": f"lies in {tier} already"})
        began = self._gear.clock()
        stored = 0
        if entry.tier is TierName.RAM:
            report = await self._parking.park(gpu, name, tier, connections=connections)
            stored = report.bytes_stored
            steps = [StepView(step=step.step, seconds=step.seconds) for step in report.steps]
        else:
            await self._transfers.move(name, tier)
            steps = [StepView(step="move", seconds=self._gear.clock() - began)]
        return view.model_copy(
            update={
                "tier": tier,
                "bytes_stored": stored,
                "seconds": (0.0 if view.already else view.seconds) + self._gear.clock() - began,
                "steps": [*([] if view.already else view.steps), *steps],
                "already": False,
                "note": f"lies in {tier}",
            }
        )

    async def resume(self, name: WorkloadName, *, timeout_s: float, take_over: bool = False) -> SwitchView:
        """Resume on a person's behalf, pausing others where it needs their room. A running one is fine.

        Args:
            take_over: also if another agent said that it resumes it.

        Raises:
            NotFound: no such workload.
            NoRoom: it doesn't fit; paused as before.
            WorkloadLost: it could not be brought back.
        """
        gpu = self._gpu()
        self._refuse_ended(self._gear.ledger.entry(name), "resumed")
        self._gear.jobs.make_way(name)
        self.gate.asked_for(name)
        return await self._workloads.submit(
            name,
            "resume",
            lambda: self._resume(
                gpu, name, may_evict=True, wait_s=timeout_s, why="resumed by order", take_over=take_over
            ),
            begin_within_s=max(timeout_s, 1.0),
        )

    async def pause_external(self, pid: int, *, timeout_s: float, caller: Caller) -> SwitchView:
        """Pause a process that we did not start, by the driver's own checkpoint.

        Raises:
            NotFound: no such process.
            Conflict: it is one of ours, or the agent itself.
            BadInput: it has no CUDA context.
        """
        self._gpu()
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
        gpu = self._gpu()
        entry = self._gear.ledger.entry(name)
        ran = entry.state is WorkloadState.RUNNING
        if ran or entry.depth is not Depth.ZERO:
            by = ARBITER if ran else entry.paused_by or USER
            await self._pause(gpu, name, depth=Depth.ZERO, timeout_s=TIMEOUT_S_DEFAULT, by=by, why=f"paused {why}")
        try:
            done = await work()
        finally:
            note: str | None = None
            if ran:
                try:
                    await self._resume(
                        gpu, name, may_evict=True, wait_s=TIMEOUT_S_DEFAULT, why=f"resumed after it was paused {why}"
                    )
                except KybernateError as e:
                    note = f"it could not be resumed at once: {e.message}"
                    log.warning("workload %s, paused %s: %s", name, why, note)
        return done, note

    async def resume_within(self, name: WorkloadName, *, may_evict: bool, wait_s: float, why: str) -> SwitchView:
        """For whoever is in the workload's owner task already."""
        return await self._resume(self._gpu(), name, may_evict=may_evict, wait_s=wait_s, why=why)

    async def _resume_to_end(self, name: WorkloadName, why: str) -> SwitchView:
        return await self._resume(self._gpu(), name, may_evict=False, wait_s=0.0, why=why, serve=False)

    # -- the policy's orders -------------------------------------------------------------------------------------

    async def bring(
        self, name: WorkloadName, *, victims: Sequence[WorkloadName], wait_s: float, why: str
    ) -> SwitchView:
        """Resume on the policy's behalf; these victims make room, or others where they don't suffice any more."""
        gpu = self._gpu()
        self._refuse_ended(self._gear.ledger.entry(name), "resumed")
        self._gear.jobs.make_way(name)
        work = lambda: self._resume(gpu, name, may_evict=True, wait_s=wait_s, why=why, victims=victims)  # noqa: E731
        return await self._workloads.submit(name, "resume", work)

    async def give_back(self, name: WorkloadName, *, why: str) -> SwitchView:
        """Pause on the policy's behalf, though nobody needs its room."""
        gpu, settings = self._gpu(), self._gear.settings.arbiter
        return await self._workloads.submit(
            name,
            "pause",
            lambda: self._pause(gpu, name, depth=settings.depth, timeout_s=settings.drain, by=ARBITER, why=why),
            detail=(settings.depth, TierName.RAM, None),
        )

    # -- the room keeper's orders --------------------------------------------------------------------------------

    def idle(self, name: WorkloadName) -> bool:
        return self._workloads.idle(name)

    async def evict(self, name: WorkloadName, *, requester: WorkloadName | None, freed: Freed | None = None) -> None:
        """Pause to make room. Raises Busy when somebody else got at the workload first."""
        if not self._workloads.idle(name):
            raise Busy(f"workload {name} is being worked on")
        gpu = self._gpu()
        why = "paused by the arbiter" + (f" to make room for {requester}" if requester else "")
        settings = self._gear.settings.arbiter
        await self._workloads.submit(
            name,
            "pause",
            lambda: self._pause(
                gpu, name, depth=settings.depth, timeout_s=settings.drain, by=ARBITER, why=why, freed=freed
            ),
            detail=(settings.depth, TierName.RAM, None),
        )

    async def bring_back(self, name: WorkloadName) -> None:
        """Resume what was evicted, pausing nobody for it."""
        gpu = self._gpu()
        await self._workloads.submit(
            name,
            "resume",
            lambda: self._resume(
                gpu, name, may_evict=False, wait_s=0.0, why="resumed by the arbiter: its VRAM is free"
            ),
        )

    # -- operations: each runs in the owner task -----------------------------------------------------------------

    async def _pause(
        self,
        gpu: GpuGear,
        name: WorkloadName,
        *,
        depth: Depth,
        timeout_s: float,
        by: str,
        why: str,
        freed: Freed | None = None,
    ) -> SwitchView:
        ledger = self._gear.ledger
        entry = ledger.entry(name)
        self._refuse_ended(entry, "paused")
        if gpu.engine.unfinished(name):
            entry = await self._settle(gpu, entry)
        deeper = entry.state is WorkloadState.PAUSED
        if deeper and (entry.depth is depth or entry.depth is Depth.ZERO):
            return self._already_paused(entry, by)
        began = self._gear.clock()
        await self.gate.close(name, timeout_s=timeout_s, by_arbiter=by == ARBITER)
        timeout_s = max(timeout_s - (self._gear.clock() - began), min(timeout_s, _LEAST_DRAIN_S))
        try:
            target = await self._target(entry)
            if entry.backend is Backend.BROKER and not target.processes:
                depth = (
                    Depth.ZERO
                )  # it has no gates yet to wait at: only standing still keeps it from beginning to compute
            free_before = {g.uuid: g.free_bytes() for g in gpu.gpus} if entry.backend is Backend.DRIVER else {}
            ledger.apply(name, Event.PAUSE, reason=why.replace("paused", "being paused", 1))
        except BaseException:
            self.gate.stays(name)
            raise
        try:
            while True:
                try:
                    report = await in_thread(
                        f"pause {name}", lambda: gpu.engine.pause(target, depth=depth, timeout_s=timeout_s, freed=freed)
                    )
                    break
                except NoRoom:
                    if not await self._pool_room.make(gpu, name):
                        raise
        except Exception as e:
            undone = Event.DEEPEN_UNDONE if deeper else Event.PAUSE_UNDONE
            await self._failed(gpu, name, target, e, operation="pause", undone=undone)
            if ledger.entry(name).state is WorkloadState.RUNNING:
                self.gate.stays(name)
            raise
        # What is asked for at the resume is what left, which may be less than it held: it gives back what it can spare first.
        evicted = dict(entry.evicted) if deeper else gpu.engine.away_bytes(name)
        if deeper and entry.last_pause is not None:
            # The content had gone before; the host copy was right and is all the workload has.
            before = entry.last_pause
            content = before.bytes_total - before.bytes_zero
            report = dataclasses.replace(
                report, bytes_total=before.bytes_total, bytes_clean=content, bytes_zero=before.bytes_zero
            )
        if free_before:
            # The driver doesn't say what it moved; what became free is near enough to ask for it back later.
            gained = {g.uuid: g.free_bytes() - free_before[g.uuid] for g in gpu.gpus}
            evicted = {uuid: size for uuid, size in gained.items() if size > 0}
        ledger.apply(
            name,
            Event.PAUSED,
            reason=why,
            depth=depth,
            paused_by=by,
            evicted=evicted,
            pids=tuple(target.tree.pids()),
            last_pause=report,
        )
        self._record(report, why)
        return switch_view(report)

    def _already_paused(self, entry: Entry, by: str) -> SwitchView:
        assert entry.depth is not None
        note = f"was paused already ({entry.reason})"
        if by == USER and entry.paused_by == ARBITER:
            self._gear.ledger.update(entry.name, paused_by=USER, reason="paused by order")
            note += "; stays so until it is resumed"
        report = entry.last_pause or SwitchReport(
            workload=entry.name, operation="pause", depth=entry.depth, backend=entry.backend, seconds=0.0
        )
        return switch_view(report, already=True, note=note)

    async def _resume(
        self,
        gpu: GpuGear,
        name: WorkloadName,
        *,
        may_evict: bool,
        wait_s: float,
        why: str,
        take_over: bool = False,
        victims: Sequence[WorkloadName] = (),
        serve: bool = True,
    ) -> SwitchView:
        """
        Args:
            victims: who shall make room, if that suffices.
            serve: requests may come to it again.
        """
        ledger = self._gear.ledger
        entry = ledger.entry(name)
        self._refuse_ended(entry, "resumed")
        if entry.state is WorkloadState.RUNNING:
            report = entry.last_resume or SwitchReport(
                workload=name, operation="resume", depth=Depth.ZERO, backend=entry.backend, seconds=0.0
            )
            return switch_view(report, already=True, note="was running already")
        back: Back | None = None
        if entry.tier is not TierName.RAM:
            try:
                back = await self._unparking.unpark(gpu, name, take_over=take_over)
            except NoCopy as e:
                if entry.cold_start is None:
                    raise
                if not self._unparking.given_up(name, e):
                    raise Busy(
                        e.message, hint="it lies there as before: try again; should that fail, too, it is started anew"
                    ) from e
                return await self._start_anew(name, e)
            entry = ledger.entry(name)
        ledger.apply(name, Event.RESUME, reason=why.replace("resumed", "being resumed", 1))
        target: Target | None = None
        try:
            target = to_resume = await self._target(entry)
            overlapping = may_evict and not gpu.engine.unfinished(name)
            departure = await gpu.room.begin_room_for_resume(entry, victims) if overlapping else None
            began: SwitchReport | None = None
            if departure is not None:
                began = await self._resume_while_others_leave(gpu, to_resume, departure)
                made_room = list(departure.victims)
            if began is None:
                made_room = await gpu.room.make_room_for_resume(
                    entry, may_evict=may_evict, wait_s=wait_s, victims=victims
                )
                began = await in_thread(f"resume {name}", lambda: gpu.engine.resume(to_resume))
            report = began
        except Exception as e:
            await self._failed(gpu, name, target, e, operation="resume", undone=Event.RESUME_UNDONE)
            raise
        finally:
            gpu.room.vram.release(name)
        now = self._gear.clock()
        ledger.apply(
            name,
            Event.RESUMED,
            reason=why,
            depth=None,
            paused_by=None,
            evicted={},
            pids=(),
            last_use=now,
            running_since=now,
            last_resume=report,
        )
        self._record(report, why)
        took = report.seconds + (0.0 if back is None else back.seconds)
        tier = TierName.RAM if back is None else back.tier
        if serve:
            self.gate.came(name, tier=tier, seconds=took, victims=tuple(made_room))
        self._leftovers.left_behind(name)
        notes = [back.note] if back is not None and back.note is not None else []
        notes += [f"paused {', '.join(made_room)} to make room"] if made_room else []
        view = switch_view(report, note="; ".join(notes) or None)
        if back is None:
            return view
        return view.model_copy(
            update={
                "tier": back.tier,
                "seconds": view.seconds + back.seconds,
                "steps": [StepView(step="restore", seconds=back.seconds), *view.steps],
            }
        )

    async def _start_anew(self, name: WorkloadName, error: NoCopy) -> SwitchView:
        """The last resort, for a workload that allows it."""
        began = self._gear.clock()
        kept = "" if error.left is None else f"; its snapshot {error.left} is kept"
        self._gear.events.record(
            "cold-start", f"started anew: {error.message}{kept}", workload=name, data={"kept": error.left}
        )
        entry = await self._workloads.start_anew(name, f"{error.message}{kept}", keep=error.left)
        return SwitchView(
            workload=name,
            operation="resume",
            depth=Depth.ZERO,
            backend=entry.backend,
            seconds=self._gear.clock() - began,
            note=f"started anew, its state {'is lost' if error.left is None else 'is not used'}: {error.message}{kept}",
        )

    async def _resume_while_others_leave(
        self, gpu: GpuGear, target: Target, departure: Departure
    ) -> SwitchReport | None:
        """None: a victim would not leave, and the workload is paused as before; others may make room."""
        try:
            return await in_thread(
                f"resume {target.name}", lambda: gpu.engine.resume(target, room=departure.handover.take)
            )
        except NoRoom:
            if await departure.settled():
                raise
            return None
        finally:
            await departure.settled()

    async def _failed(
        self,
        gpu: GpuGear,
        name: WorkloadName,
        target: Target | None,
        error: Exception,
        *,
        operation: str,
        undone: Event,
    ) -> None:
        """Bring the ledger to what is true after a failure, and say it in an event."""
        ledger, events = self._gear.ledger, self._gear.events
        text = error.message if isinstance(error, KybernateError) else repr(error)
        data = {
            "code": error.code if isinstance(error, KybernateError) else "internal",
            "hint": getattr(error, "hint", None),
        }
        if isinstance(error, KybernateError) and name not in error.message:
            error.message = f"workload {name}: {text}"  # the ledger and events have the name beside it
        if isinstance(error, _UNCHANGED) or target is None:
            was = "runs on" if undone is Event.PAUSE_UNDONE else "stays paused"
            ledger.apply(name, undone, reason=f"{was}; its {operation} was refused: {text}")
            events.record(f"{operation}-refused", text, workload=name, data=data)
            return
        log.error("%s of workload %s failed: %s", operation, name, text, exc_info=error)
        # Also when something of it is lost: one process of a tree may have ended, by itself, and the others live.
        state, why = await self._what_is_true(gpu, ledger.entry(name))
        if isinstance(error, ContentDiffers):  # what it was made of may be what is damaged: read anew the next time
            entry = ledger.entry(name)
            for view in gpu.engine.staged():
                if view.snapshot in (entry.snapshot, entry.image):
                    gpu.engine.drop_staged(view.uid)
        no_use = state is WorkloadState.LOST or (state is WorkloadState.PAUSED and isinstance(error, ContentDiffers))
        if no_use and (tier := await self._parking.fall_back(gpu, name)) is not None:
            state, why = WorkloadState.PAUSED, f"{why}; its copy in {tier} is intact"
        event = {WorkloadState.RUNNING: Event.FOUND_RUNNING, WorkloadState.PAUSED: Event.FOUND_PAUSED}.get(
            state, Event.LOST
        )
        ledger.apply(name, event, reason=f"its {operation} failed: {text}{why}", **self._found(gpu, name, state))
        kind = "lost" if state is WorkloadState.LOST else f"{operation}-failed"
        events.record(kind, f"{text}; now {state}{why}", workload=name, data=data)

    def _found(self, gpu: GpuGear, name: WorkloadName, state: WorkloadState) -> dict[str, Any]:
        """What else the ledger must say of a workload whose state was found out: it decides what room is made for it."""
        if state is WorkloadState.RUNNING:
            return {"depth": None, "paused_by": None, "evicted": {}, "running_since": self._gear.clock()}
        if state is not WorkloadState.PAUSED:
            return {}
        copy = gpu.engine.host_copy(name)
        by = RECOVERY if gpu.engine.unfinished(name) else self._gear.ledger.entry(name).paused_by or USER
        depth = Depth.ZERO if copy is None else copy.manifest.depth
        evicted = gpu.engine.away_bytes(name) if copy is not None else dict(self._gear.ledger.entry(name).evicted)
        return {"depth": depth, "evicted": evicted, "paused_by": by}

    async def _what_is_true(self, gpu: GpuGear, entry: Entry) -> tuple[WorkloadState, str]:
        try:
            target = await self._target(entry)  # anew: processes may have ended since
            recover: Callable[[], WorkloadState] = lambda: gpu.engine.recover(target)  # noqa: E731 - typed for the thread
            return await in_thread(f"recover {target.name}", recover), ""
        except ContentGone as e:
            return WorkloadState.LOST, f"; {e.message}"
        except Exception as e:  # nobody says that its content is gone
            return WorkloadState.PAUSED, f"; {e.message if isinstance(e, KybernateError) else repr(e)}"

    async def _settle(self, gpu: GpuGear, entry: Entry) -> Entry:
        """Try again to bring a workload into order whose last recovery could not be finished. Raises Unfinished."""
        target = await self._target(entry)
        try:
            state = await in_thread(f"recover {entry.name}", lambda: gpu.engine.recover(target))
        except ContentGone as e:
            self._gear.ledger.apply(entry.name, Event.LOST, reason=e.message)
            self._gear.events.record("lost", e.message, workload=entry.name)
            raise
        event = Event.FOUND_RUNNING if state is WorkloadState.RUNNING else Event.FOUND_PAUSED
        found = self._found(gpu, entry.name, state)
        return self._gear.ledger.apply(entry.name, event, reason="brought into order", **found)

    async def _target(self, entry: Entry) -> Target:
        tree = self._workloads.tree(entry.name)
        return await in_thread(f"look at {entry.name}", lambda: target_of(entry, tree))

    def _record(self, report: SwitchReport, why: str) -> None:
        view = switch_view(report)
        self._gear.events.record(
            "paused" if report.operation == "pause" else "resumed",
            f"{why}: {report.depth}, {report.seconds:.2f} s",
            workload=report.workload,
            data=view.model_dump(mode="json", exclude={"already", "note", "workload"}),
        )

    def _gpu(self) -> GpuGear:
        if self._gear.gpu is None:
            raise Unsupported(
                "this agent has no GPU, so there is nothing to pause or resume",
                hint="`kybernate doctor` says what is missing; `kybernate up --simulated` needs none",
            )
        return self._gear.gpu

    @staticmethod
    def _refuse_ended(entry: Entry, what: str) -> None:
        if entry.ended or entry.state is WorkloadState.STOPPING:
            raise Conflict(
                f"workload {entry.name} is {entry.state} and can't be {what}",
                hint=f"`kybernate explain {entry.name}` says why; run it again",
            )
