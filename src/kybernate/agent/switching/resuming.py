"""The resume of a workload, in its owner task: back from the store where it lies there, room made for it, the engine resumes, the
ledger follows. Where no copy of its state can be used, it is started anew if it allows that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kybernate.agent.records.ledger import Ledger, refuse_ended
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.records.views import switch_view
from kybernate.agent.switching.failure_recovery import FailureRecovery
from kybernate.agent.switching.gate import RequestGate
from kybernate.agent.switching.surroundings import Restored, StoredState
from kybernate.agent.vram.admission import VramAdmission
from kybernate.agent.vram.overlapped_eviction import OverlappedEviction
from kybernate.agent.vram.vram import Vram
from kybernate.agent.workloads.operations import RunningOrder
from kybernate.agent.workloads.orders import ResumeOrder
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.starting import NoCopy
from kybernate.agent.workloads.targets import look_at
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.engine.target import Target
from kybernate.model.api import StepView, SwitchView
from kybernate.model.errors import Busy, KybernateError, NoRoom, WorkloadLost
from kybernate.model.types import Depth, GpuUuid, SwitchReport, TierName, WorkloadName, WorkloadState


class Resuming:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Callable[[], float],
        workloads: Workloads,
        vram: Vram,
        admission: VramAdmission,
        stored_state: StoredState,
        recovery: FailureRecovery,
        gate: Callable[[], RequestGate],
    ) -> None:
        """`gate`: who lets requests through to workloads; asked at each use, since it is made after this."""
        self._ledger = ledger
        self._clock = clock
        self._workloads = workloads
        self._vram = vram
        self._admission = admission
        self._stored_state = stored_state
        self._recovery = recovery
        self._gate = gate

    async def resume(
        self,
        gpu: GpuRuntime,
        name: WorkloadName,
        order: RunningOrder[ResumeOrder],
        *,
        serve: bool = True,
    ) -> SwitchView:
        """
        Args:
            order: as it stands at each step.
            serve: requests may come to it again.
        """
        ledger = self._ledger
        entry = ledger.entry(name)
        refuse_ended(entry, "resumed")
        if entry.state is WorkloadState.RUNNING:
            report = entry.last_resume or SwitchReport(
                workload=name, operation="resume", depth=Depth.ZERO, backend=entry.backend, seconds=0.0
            )
            return switch_view(report, already=True, note="was running already")
        back: Restored | None = None
        if entry.tier is not TierName.RAM:
            try:
                back = await self._stored_state.bring_back(gpu, name, take_over=order.now.take_over)
            except NoCopy as e:
                if entry.cold_start is None:
                    raise
                return await self._recovery.start_anew(name, e)
            entry = ledger.entry(name)
        ledger.apply(name, Event.RESUME, reason=order.now.why.replace("resumed", "being resumed", 1))
        target: Target | None = None
        try:
            target = to_resume = await look_at(entry, self._workloads.tree(entry.name))
            overlapping = order.now.may_evict and not gpu.engine.unfinished(name)
            overlapped = await self._admission.begin_room_for_resume(entry, order.now.victims) if overlapping else None
            began: SwitchReport | None = None
            if overlapped is not None:
                began = await self._resume_while_others_leave(gpu, to_resume, overlapped, entry.unmanaged)
                made_room = list(overlapped.victims)
            if began is None:
                self._vram.release(name)  # of what didn't leave: others would wait for it in vain
                now = order.now
                room = self._admission.make_room_for_resume(
                    entry, may_evict=now.may_evict, wait_s=now.wait_s, victims=now.victims
                )
                made_room = await order.waiting(room)
                began = await in_thread(
                    f"resume {name}", lambda: gpu.engine.resume(to_resume, unmanaged=entry.unmanaged)
                )
            report = began
        except Exception as e:
            await self._recovery.failed(gpu, name, target, e, operation="resume", undone=Event.RESUME_UNDONE)
            entry = ledger.entry(name)
            stored = entry.state is WorkloadState.PAUSED and entry.snapshot is not None
            if stored and (
                isinstance(e, WorkloadLost) or (entry.tier is not TierName.RAM and isinstance(e, KybernateError))
            ):
                # What was brought back is gone; what it was made of isn't.
                raise Busy(e.message, hint=f"its snapshot {entry.snapshot} stays in the store: try again") from e
            raise
        finally:
            self._vram.release(name)
        moment, why = self._clock(), order.now.why
        ledger.apply(
            name,
            Event.RESUMED,
            reason=why,
            depth=None,
            paused_by=None,
            evicted={},
            pids=(),
            last_use=moment,
            running_since=moment,
            last_resume=report,
        )
        self._recovery.done(report, why)
        took = report.seconds + (0.0 if back is None else back.seconds)
        tier = TierName.RAM if back is None else back.tier
        if serve:
            self._gate().on_resumed(name, tier=tier, seconds=took, victims=tuple(made_room))
        self._stored_state.left_behind(name)
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

    async def _resume_while_others_leave(
        self, gpu: GpuRuntime, target: Target, overlapped: OverlappedEviction, unmanaged: Mapping[GpuUuid, int]
    ) -> SwitchReport | None:
        """None: a victim would not leave, and the workload is paused as before; others may make room."""
        try:
            return await in_thread(
                f"resume {target.name}",
                lambda: gpu.engine.resume(target, grant=overlapped.handoff.take, unmanaged=unmanaged),
            )
        except NoRoom:
            if await overlapped.settled():
                raise
            return None
        finally:
            await overlapped.settled()
