"""Pausing and resuming: the rules about who may ask for what when, around the engine's calls.

Every switch runs in the workload's owner task. The engine promises that what fails before the point of no return leaves the
workload running; whatever else fails, the engine is asked what is true now (`recover`) and the ledger follows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from kybernate.engine.recovery import ContentGone
from kybernate.engine.target import Target
from kybernate.model.api import SwitchView
from kybernate.model.errors import Busy, Conflict, KybernateError, NoRoom, NotFound, Unsupported
from kybernate.model.types import Backend, Depth, SwitchReport, WorkloadName, WorkloadState
from kybernate.node.caller import Caller
from kybernate.node.departure import Departure, Freed
from kybernate.node.external import ExternalWatcher
from kybernate.node.gear import Gear, GpuGear
from kybernate.node.ledger import ARBITER, RECOVERY, USER, Entry
from kybernate.node.lifecycle import Event
from kybernate.node.targets import external_name, target_of
from kybernate.node.threads import in_thread
from kybernate.node.views import switch_view
from kybernate.node.workloads import Workloads

log = logging.getLogger(__name__)

_UNCHANGED = (Busy, Unsupported, NoRoom, Conflict)
"""The engine's answers that promise the workload is as it was."""


class Switching:
    """Also what the room keeper asks for evictions (`idle`, `evict`, `bring_back`)."""

    def __init__(self, *, gear: Gear, workloads: Workloads, external: ExternalWatcher) -> None:
        self._gear = gear
        self._workloads = workloads
        self._external = external

    # -- orders --------------------------------------------------------------------------------------------------

    async def pause(self, name: WorkloadName, *, depth: Depth, timeout_s: float) -> SwitchView:
        """Pause on a person's behalf. Of an equal pause under way it gets the report; a paused one is fine.

        Raises:
            NotFound: no such workload.
            Conflict: it is not in a state to be paused.
            Busy, Unsupported, NoRoom: it runs on unchanged.
            WorkloadLost: it could not be brought back either.
        """
        gpu = self._gpu()
        self._refuse_ended(self._gear.ledger.entry(name), "paused")
        return await self._workloads.submit(
            name,
            "pause",
            lambda: self._pause(gpu, name, depth=depth, timeout_s=timeout_s, by=USER, why="paused by order"),
            detail=depth,
            begin_within_s=max(timeout_s, 1.0),
        )

    async def resume(self, name: WorkloadName, *, timeout_s: float) -> SwitchView:
        """Resume on a person's behalf, pausing others where it needs their room. A running one is fine.

        Raises:
            NotFound: no such workload.
            NoRoom: it doesn't fit; paused as before.
            WorkloadLost: it could not be brought back.
        """
        gpu = self._gpu()
        self._refuse_ended(self._gear.ledger.entry(name), "resumed")
        return await self._workloads.submit(
            name,
            "resume",
            lambda: self._resume(gpu, name, may_evict=True, wait_s=timeout_s, why="resumed by order"),
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
            detail=settings.depth,
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
        target = await self._target(entry)
        free_before = {g.uuid: g.free_bytes() for g in gpu.gpus} if entry.backend is Backend.DRIVER else {}
        ledger.apply(name, Event.PAUSE, reason=why.replace("paused", "being paused", 1))
        try:
            report = await in_thread(
                f"pause {name}", lambda: gpu.engine.pause(target, depth=depth, timeout_s=timeout_s, freed=freed)
            )
        except Exception as e:
            undone = Event.DEEPEN_UNDONE if deeper else Event.PAUSE_UNDONE
            await self._failed(gpu, name, target, e, operation="pause", undone=undone)
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
        self, gpu: GpuGear, name: WorkloadName, *, may_evict: bool, wait_s: float, why: str
    ) -> SwitchView:
        ledger = self._gear.ledger
        entry = ledger.entry(name)
        self._refuse_ended(entry, "resumed")
        if entry.state is WorkloadState.RUNNING:
            report = entry.last_resume or SwitchReport(
                workload=name, operation="resume", depth=Depth.ZERO, backend=entry.backend, seconds=0.0
            )
            return switch_view(report, already=True, note="was running already")
        ledger.apply(name, Event.RESUME, reason=why.replace("resumed", "being resumed", 1))
        target: Target | None = None
        try:
            target = to_resume = await self._target(entry)
            overlapping = may_evict and not gpu.engine.unfinished(name)
            departure = await gpu.room.begin_room_for_resume(entry) if overlapping else None
            began: SwitchReport | None = None
            if departure is not None:
                began = await self._resume_while_others_leave(gpu, to_resume, departure)
                made_room = list(departure.victims)
            if began is None:
                made_room = await gpu.room.make_room_for_resume(entry, may_evict=may_evict, wait_s=wait_s)
                began = await in_thread(f"resume {name}", lambda: gpu.engine.resume(to_resume))
            report = began
        except Exception as e:
            await self._failed(gpu, name, target, e, operation="resume", undone=Event.RESUME_UNDONE)
            raise
        finally:
            gpu.room.release_reservation(name)
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
        return switch_view(report, note=f"paused {', '.join(made_room)} to make room" if made_room else None)

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
        return {"depth": depth, "evicted": gpu.engine.away_bytes(name), "paused_by": by}

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
