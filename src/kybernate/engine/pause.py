"""Pause: a workload gives up its VRAM. One function a step, an undo for each until nothing can fail any more.

    connect -> quiesce -> (plan, record | release) -> (copy | lock, checkpoint) -> discard and free, as copied -> freeze

Up to and including `release` the workload's memory is as it was; the undo maps it again, and a refusal costs it some
milliseconds. The processes unmap while the GPU hashes: the agent reads the same memory at addresses of its own. Nothing
is discarded before the residual is checkpointed; from then on what has been copied is freed while the rest is still
being copied, so that another workload can come in meanwhile. Copying and the residual's checkpoint run at the same
time: one moves bytes over the link, the other hardly any.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue

from kybernate.cuda import residual, wire
from kybernate.cuda.control import Control
from kybernate.cuda.copying import CopyPlan, CopyStats, ExtentCopy
from kybernate.cuda.extents import Extent
from kybernate.cuda.residual import ResidualState
from kybernate.engine.context import Clock, Parts, connections, every, reconcile, refuse_newcomers, roll_back
from kybernate.engine.copies import HeldExtent, Manifest
from kybernate.engine.endings import has_ended
from kybernate.engine.holding import hold_all
from kybernate.engine.target import Target, residual_pids
from kybernate.engine.undo import UndoStack
from kybernate.model.errors import Busy, KybernateError
from kybernate.model.types import Depth, ExtentId, GpuUuid, HostPid, SwitchReport

log = logging.getLogger(__name__)

FREEZE_SECONDS = 10.0
FREE_BYTES = 2 << 30
"""So much is gathered before it is discarded and freed: a message to the process and back each time."""
POLL_SECONDS = 0.05
"""How long to wait for the next extent before looking whether the copy failed."""

Freed = Callable[[GpuUuid, int], None]
"""Told of VRAM as it becomes free, in bytes."""


@dataclass(slots=True)
class PauseOperation:
    """One pause under way."""

    parts: Parts
    target: Target
    depth: Depth
    timeout_s: float
    previous: Mapping[ExtentId, ExtentCopy]
    freed: Freed
    clock: Clock = field(default_factory=Clock)
    undo: UndoStack = field(default_factory=UndoStack)
    controls: dict[HostPid, Control] = field(default_factory=dict)
    records: dict[HostPid, list[wire.Record]] = field(default_factory=dict)
    extents: list[Extent] = field(default_factory=list)
    plans: list[CopyPlan] = field(default_factory=list)
    manifest: Manifest | None = None
    copied: SimpleQueue[Sequence[Extent]] = field(default_factory=SimpleQueue)
    """Extents whose content is safe, in the order they were copied."""
    committed: bool = False
    """Past the point of no return: `manifest` and its marks say what is in the pool."""

    def run(self) -> SwitchReport:
        """Do it all.

        Raises:
            Busy, Unsupported, NoRoom: before anything was touched; the workload runs on.
            ProgramEnded: one of its processes ended meanwhile.
            KybernateError: a step failed and was undone; the workload runs on. A message about an undo that failed
                too is added: the caller then asks `recovery` what is true.
        """
        with connections(self.target.processes) as self.controls:
            try:
                self._quiesce()
                self._plan_and_release()
                stats = self._move_out()
                self._commit()
                self._freeze()
            except Exception as error:
                reported = roll_back(self.undo, error, committed=self.committed, target=self.target, doing="paused")
                if reported is not error:
                    raise reported from error.__cause__
                raise
        return self._report(stats)

    # ---- while the memory is where it was ----

    def _quiesce(self) -> None:
        faults = self.parts.faults
        faults.at("pause.connected")
        with self.clock.step("quiesce"):
            pids = list(self.controls)
            self.undo.push("open the gates", self._open_gates)
            left = hold_all(self.controls, executor=self.parts.executor, timeout_s=self.timeout_s)
            answers = every(self.parts.executor, lambda pid: self.controls[pid].quiesce(left), pids)
            self.records = dict(zip(pids, answers, strict=True))
        # A question to the agent that stays open would keep it out of the store.
        self.parts.broker.dismiss(self.target.name)
        faults.at("pause.quiet")

    def _open_gates(self) -> None:
        """Of those that were closed; one that answered busy is open already and says so."""

        def one(pid: HostPid) -> None:
            control = self.controls[pid]
            if has_ended(pid):
                return
            control.reopen()
            if control.status().state in (wire.ProcessState.QUIET, wire.ProcessState.HELD):
                control.open()

        every(self.parts.executor, one, list(self.controls))

    def _plan_and_release(self) -> None:
        for pid, records in self.records.items():
            self.extents += self._extents_of(pid, records)
        self.undo.push("map the memory again", self._remap)
        releasing = self.parts.executor.submit(self._release)
        try:
            self._plan()
            self._record()
        finally:
            releasing.exception()  # the undo talks to the same processes
        releasing.result()

    def _plan(self) -> None:
        with self.clock.step("plan"):
            by_gpu: dict[GpuUuid, list[Extent]] = defaultdict(list)
            for extent in self.extents:
                by_gpu[extent.gpu.uuid].append(extent)
            for gpu, extents in by_gpu.items():
                copier = self.parts.copiers[gpu]
                plan = copier.plan(extents, self.previous)
                self.plans.append(plan)
                self.undo.push("give back pool slots", partial(copier.abandon, plan))
        self.parts.faults.at("pause.planned")

    def _extents_of(self, pid: HostPid, records: Sequence[wire.Record]) -> list[Extent]:
        """The process's list is the truth; the broker learns of what it missed while no agent was there."""
        known = {extent.id: extent for extent in self.parts.broker.extents(self.target.name, pid)}
        if known.keys() != {record.id for record in records}:
            return reconcile(self.parts, self.target, pid, self.controls[pid])
        return [known[record.id] for record in records]

    def _record(self) -> None:
        with self.clock.step("record"):
            where = {record.id: record.address for records in self.records.values() for record in records}
            held = [
                HeldExtent(extent.pid, extent.id, where.get(extent.id, 0), extent.gpu.uuid, copy)
                for plan in self.plans
                for extent, copy in zip(plan.extents, plan.copies, strict=True)
            ]
            self.manifest = Manifest(self.target.name, self.depth, held)
            self.parts.store.save(self.manifest)
            self.undo.push("remove the manifest", lambda: self.parts.store.remove(self.target.name))
        self.parts.faults.at("pause.recorded")

    # ---- the memory moves out ----

    def _release(self) -> None:
        with self.clock.step("release"):
            every(self.parts.executor, Control.release, list(self.controls.values()))
        self.parts.faults.at("pause.released")

    def _remap(self) -> None:
        def one(pid: HostPid) -> None:
            if self.depth is Depth.ZERO and residual.state(pid) in (ResidualState.LOCKED, ResidualState.CHECKPOINTED):
                # An undo before this one failed. Its answer would take as long as we are willing to wait.
                raise KybernateError(f"process {pid} is still held by the driver")
            if has_ended(pid):
                return
            self.controls[pid].reopen()
            if self.controls[pid].status().state is wire.ProcessState.RELEASED:
                self.controls[pid].remap()

        every(self.parts.executor, one, list(self.controls))

    def _move_out(self) -> list[CopyStats]:
        """Copy and checkpoint at the same time; then free what is copied while the rest follows."""
        copying = [
            self.parts.executor.submit(self.parts.copiers[plan.extents[0].gpu.uuid].evict, plan, done=self.copied.put)
            for plan in self.plans
        ]
        try:
            if self.depth is Depth.ZERO:
                self._checkpoint()
            with self.clock.step("copy"):
                self._free_as_copied(copying)
        finally:
            # The copy reads memory that an undo would hand back: never undo beside it.
            self._wait(copying)
        self.parts.faults.at("pause.copied")
        return [future.result() for future in copying]

    def _free_as_copied(self, copying: Sequence[Future[CopyStats]]) -> None:
        assert self.manifest is not None
        index = {held.id: i for i, held in enumerate(self.manifest.extents)}
        waiting: list[Extent] = []
        left = len(self.extents)
        while left:
            try:
                safe = self.copied.get(timeout=POLL_SECONDS)
            except Empty:
                for future in copying:
                    if future.done():
                        future.result()  # raises what stopped it
                continue
            waiting += safe
            left -= len(safe)
            if not self.copied.empty():
                continue
            if not left or sum(extent.size for extent in waiting) >= FREE_BYTES:
                self._free(waiting, [index[extent.id] for extent in waiting])
                waiting = []

    def _free(self, extents: Sequence[Extent], indexes: Sequence[int]) -> None:
        """Past the point of no return: these extents' content is in the pool, and only there from now on."""
        assert self.manifest is not None
        self.parts.store.mark(self.manifest, indexes)
        self.parts.faults.at("pause.marked")
        self.committed = True
        self.undo.commit()
        by_pid: dict[HostPid, list[ExtentId]] = defaultdict(list)
        by_gpu: dict[GpuUuid, int] = defaultdict(int)
        for extent in extents:
            by_pid[extent.pid].append(extent.id)
            by_gpu[extent.gpu.uuid] += extent.size
        discarding = [self.parts.executor.submit(self.controls[pid].discard, ids) for pid, ids in by_pid.items()]
        try:
            self.parts.broker.drop(extents)
        finally:
            for future in discarding:
                future.exception()
        for future in discarding:
            future.result()
        self.parts.faults.at("pause.discarding")
        for gpu, size in by_gpu.items():
            self.freed(gpu, size)

    @staticmethod
    def _wait(copying: Sequence[Future[CopyStats]]) -> None:
        for future in copying:
            future.exception()

    def _checkpoint(self) -> None:
        with self.clock.step("checkpoint"):
            pids = residual_pids(self.target.tree)
            residual.lock_all(pids, self.timeout_s)
            self.undo.push("unlock", lambda: residual.unlock_all(pids))
            refuse_newcomers(self.parts, self.target.name, pids, known=self.controls)
            self.parts.faults.at("pause.locked")
            residual.checkpoint_all(pids)
            self.undo.push("restore", lambda: residual.restore_all(pids))
        self.parts.faults.at("pause.checkpointed")

    # ---- all is safe: no way back from here but resume ----

    def _commit(self) -> None:
        with self.clock.step("commit"):
            self.committed = True
            self.undo.commit()
            every(self.parts.executor, lambda control: control.discard(), list(self.controls.values()))
        self.parts.faults.at("pause.discarded")

    def _freeze(self) -> None:
        if self.depth is Depth.ZERO:
            with self.clock.step("freeze"):
                every(self.parts.executor, Control.hang_up, list(self.controls.values()))
                try:
                    self.target.tree.freeze(FREEZE_SECONDS)
                except Busy as error:
                    # It is paused all the same: what it has of CUDA waits at the gates and in the driver.
                    log.warning("workload %s is paused but not frozen: %s", self.target.name, error)
            self.parts.faults.at("pause.frozen")

    def _report(self, stats: Sequence[CopyStats]) -> SwitchReport:
        return SwitchReport(
            workload=self.target.name,
            operation="pause",
            depth=self.depth,
            backend=self.target.backend,
            seconds=self.clock.seconds,
            bytes_total=sum(extent.size for extent in self.extents),
            bytes_copied=sum(s.bytes_copied for s in stats),
            bytes_clean=sum(plan.stats.bytes_clean for plan in self.plans),
            bytes_zero=sum(plan.stats.bytes_zero for plan in self.plans),
            steps=tuple(self.clock.steps),
        )


def send_residual_away(parts: Parts, target: Target, clock: Clock, timeout_s: float) -> None:
    """Residual out and threads frozen, from whatever state each process is in."""
    pids = residual_pids(target.tree)
    with clock.step("checkpoint"):
        states = {pid: residual.state(pid) for pid in pids}
        running = [pid for pid in pids if states[pid] is ResidualState.RUNNING]
        here = running + [pid for pid in pids if states[pid] is ResidualState.LOCKED]
        if running:
            residual.lock_all(running, timeout_s)
        try:
            refuse_newcomers(parts, target.name, here, known=())
        except Busy:
            residual.unlock_all(running)
            raise
        if here:
            residual.checkpoint_all(here)
    with clock.step("freeze"):
        target.tree.freeze(FREEZE_SECONDS)
