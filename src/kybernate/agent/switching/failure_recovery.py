"""What a switch has left: the record of one that went well; after one that failed, what is true now, in ledger and events.

The engine promises that what fails before the point of no return leaves the workload running. Whatever else fails, the engine is
asked (`recover`) and the ledger follows. All of it in the workload's owner task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import RECOVERY, USER, Changes, Entry, Ledger
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.records.views import switch_view
from kybernate.agent.switching.surroundings import Fallback
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.starting import NoCopy, Starting
from kybernate.agent.workloads.targets import look_at
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.engine.endings import ProgramEnded
from kybernate.engine.recovery import ContentGone
from kybernate.engine.resume import ContentDiffers
from kybernate.engine.target import Target
from kybernate.model.api import SwitchView
from kybernate.model.errors import Busy, Conflict, KybernateError, NoRoom, Unsupported
from kybernate.model.quantities import together
from kybernate.model.types import Depth, SwitchReport, WorkloadName, WorkloadState

log = logging.getLogger(__name__)

_UNCHANGED = (Busy, Unsupported, NoRoom, Conflict)
"""The engine's answers that promise the workload is as it was."""


class FailureRecovery:
    """See the module."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        clock: Callable[[], float],
        workloads: Workloads,
        starting: Starting,
        fallback: Fallback,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._clock = clock
        self._workloads = workloads
        self._starting = starting
        self._fallback = fallback

    def done(self, report: SwitchReport, why: str) -> None:
        view = switch_view(report)
        self._events.record(
            "paused" if report.operation == "pause" else "resumed",
            f"{why}: {report.depth}, {report.seconds:.2f} s",
            workload=report.workload,
            data=view.model_dump(mode="json", exclude={"already", "note", "workload"}),
        )

    async def failed(
        self,
        gpu: GpuRuntime,
        name: WorkloadName,
        target: Target | None,
        error: Exception,
        *,
        operation: str,
        undone: Event,
    ) -> None:
        """Bring the ledger to what is true after a failure, and say it in an event."""
        ledger, events = self._ledger, self._events
        text = error.message if isinstance(error, KybernateError) else repr(error)
        data = {
            "code": error.code if isinstance(error, KybernateError) else "internal",
            "hint": getattr(error, "hint", None),
        }
        if isinstance(error, KybernateError):
            error.name_workload(name)  # the ledger and events have the name beside it
        if isinstance(error, _UNCHANGED) or target is None:
            was = "runs on" if undone is Event.PAUSE_UNDONE else "stays paused"
            ledger.apply(name, undone, reason=f"{was}; its {operation} was refused: {text}")
            events.record(f"{operation}-refused", text, workload=name, data=data)
            return
        log.error("%s of workload %s failed: %s", operation, name, text, exc_info=error)
        # Also when something of it is lost: one process of a tree may have ended, by itself, and the others live.
        state, why = await self._what_is_true(gpu, ledger.entry(name))
        if operation == "resume" and ledger.entry(name).snapshot is not None and self._has_ended(name):
            state, why = WorkloadState.LOST, "; its processes have ended"  # on their way back: they never ran
        if isinstance(error, ContentDiffers):  # what it was made of may be what is damaged: read anew the next time
            entry = ledger.entry(name)
            for view in gpu.engine.staged():
                if view.snapshot in (entry.snapshot, entry.image):
                    gpu.engine.drop_staged(view.uid)
        no_use = state is WorkloadState.LOST or (state is WorkloadState.PAUSED and isinstance(error, ContentDiffers))
        if no_use and (tier := await self._fallback.find(gpu, name)) is not None:
            state, why = WorkloadState.PAUSED, f"{why}; its copy in {tier} is intact"
        event = {WorkloadState.RUNNING: Event.FOUND_RUNNING, WorkloadState.PAUSED: Event.FOUND_PAUSED}.get(
            state, Event.LOST
        )
        ledger.apply(name, event, **self._found(gpu, name, state, f"its {operation} failed: {text}{why}"))
        kind = "lost" if state is WorkloadState.LOST else f"{operation}-failed"
        now = "" if isinstance(error, ProgramEnded) else f"; now {state}"  # it ends, as its exit will say
        events.record(kind, f"{text}{now}{why}", workload=name, data=data)

    async def start_anew(self, name: WorkloadName, error: NoCopy) -> SwitchView:
        """The last resort, for a workload that allows it, where no copy of its state can be used."""
        began = self._clock()
        kept = "" if error.left is None else f"; its snapshot {error.left} is kept"
        self._events.record(
            "cold-start", f"started anew: {error.message}{kept}", workload=name, data={"kept": error.left}
        )
        entry = await self._starting.start_anew(name, f"{error.message}{kept}", keep=error.left)
        return SwitchView(
            workload=name,
            operation="resume",
            depth=Depth.ZERO,
            backend=entry.backend,
            seconds=self._clock() - began,
            note=f"started anew, its state {'is lost' if error.left is None else 'is not used'}: {error.message}{kept}",
        )

    async def settle(self, gpu: GpuRuntime, entry: Entry) -> Entry:
        """Try again to bring a workload into order whose last recovery could not be finished. Raises Unfinished."""
        target = await look_at(entry, self._workloads.tree(entry.name))
        try:
            state = await in_thread(f"recover {entry.name}", lambda: gpu.engine.recover(target))
        except ContentGone as e:
            self._ledger.apply(entry.name, Event.LOST, reason=e.message)
            self._events.record("lost", e.message, workload=entry.name)
            raise
        event = Event.FOUND_RUNNING if state is WorkloadState.RUNNING else Event.FOUND_PAUSED
        found = self._found(gpu, entry.name, state, "brought into order")
        return self._ledger.apply(entry.name, event, **found)

    def _found(self, gpu: GpuRuntime, name: WorkloadName, state: WorkloadState, reason: str) -> Changes:
        """What else the ledger must say of a workload whose state was found out: it decides what room is made for it."""
        if state is WorkloadState.RUNNING:
            now = self._clock()
            return {"reason": reason, "depth": None, "paused_by": None, "evicted": {}, "running_since": now}
        if state is not WorkloadState.PAUSED:
            return {"reason": reason}
        copy = gpu.engine.host_copy(name)
        by = RECOVERY if gpu.engine.unfinished(name) else self._ledger.entry(name).paused_by or USER
        depth = Depth.ZERO if copy is None else copy.manifest.depth
        entry = self._ledger.entry(name)
        evicted = dict(entry.evicted) if copy is None else together(gpu.engine.away_bytes(name), entry.unmanaged)
        return {"reason": reason, "depth": depth, "evicted": evicted, "paused_by": by}

    def _has_ended(self, name: WorkloadName) -> bool:
        tree = self._workloads.tree(name)
        return tree is None or not tree.pids()

    async def _what_is_true(self, gpu: GpuRuntime, entry: Entry) -> tuple[WorkloadState, str]:
        try:
            target = await look_at(entry, self._workloads.tree(entry.name))  # anew: processes may have ended since
            recover: Callable[[], WorkloadState] = lambda: gpu.engine.recover(target)  # noqa: E731 - typed for the thread
            return await in_thread(f"recover {target.name}", recover), ""
        except ContentGone as e:
            return WorkloadState.LOST, f"; {e.message}"
        except Exception as e:  # nobody says that its content is gone
            return WorkloadState.PAUSED, f"; {e.message if isinstance(e, KybernateError) else repr(e)}"
