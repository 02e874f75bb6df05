"""The engine's face: one blocking call an operation. The caller runs one operation a workload at a time.

The engine remembers, for each workload, the host copy it has in the pool: of a paused one it is the only copy there is,
of a running one it is a cache that makes the next pause cheap and that is given up when the pool runs short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from kybernate.cuda import residual
from kybernate.cuda.broker import Broker
from kybernate.cuda.copying import CopyEngine, ExtentCopy
from kybernate.cuda.pool import PinnedPool
from kybernate.cuda.residual import ResidualState
from kybernate.engine.capture import StoredReport
from kybernate.engine.context import Clock, Parts
from kybernate.engine.copies import CopyStore, Manifest, slots_given_up
from kybernate.engine.faults import Faults
from kybernate.engine.pause import Freed, PauseOperation, send_residual_away
from kybernate.engine.pooled import HostCopy, StagedView
from kybernate.engine.progress import Progress
from kybernate.engine.recovering import Recovering
from kybernate.engine.resume import ResumeOperation, VramGrant
from kybernate.engine.staging import StageReport
from kybernate.engine.stored import Described, Kind
from kybernate.engine.storing import Storing
from kybernate.engine.target import CudaProcess, Target, residual_pids
from kybernate.engine.threads import Threads
from kybernate.model.cancelling import Cancellation
from kybernate.model.errors import Conflict, NoRoom, WorkloadLost
from kybernate.model.types import (
    Depth,
    ExtentId,
    GpuUuid,
    SwitchReport,
    WorkloadName,
    WorkloadState,
)
from kybernate.process.specs import OUTPUT_BYTES

__all__ = [
    "Cancellation",
    "CudaProcess",
    "Described",
    "Engine",
    "HostCopy",
    "Kind",
    "StageReport",
    "StagedView",
    "StoredReport",
    "Target",
]


def _unheard(gpu: GpuUuid, size: int) -> None:
    """Nobody waits for the memory."""


class Engine(Storing):
    """Pause, resume and recover workloads on this node's GPUs. Thread-safe for different workloads."""

    def __init__(
        self,
        *,
        broker: Broker,
        pool: PinnedPool,
        copiers: Mapping[GpuUuid, CopyEngine],
        directory: Path,
        faults: Faults | None = None,
        scratch: Path | None = None,
        output_bytes: int = OUTPUT_BYTES,
    ) -> None:
        """`directory` holds the manifests; it must lie where workloads can't reach it.

        Args:
            scratch: where processes' images lie while they are written to a store or read from one: a directory of
                the engine's own, for root only, with room for the largest workload's host memory. Emptied here.
            output_bytes: what stays of the output of workloads that are brought back.
        """
        self._executor = Threads("engine")
        parts = Parts(
            broker=broker,
            pool=pool,
            copiers=copiers,
            store=CopyStore(directory),
            executor=self._executor,
            faults=faults or Faults(),
            output_bytes=output_bytes,
        )
        super().__init__(parts, scratch)
        self._recovering = Recovering(parts, self._pooled)
        self._progress: dict[WorkloadName, Progress] = {}
        for name in self._parts.store.names():  # all, before any workload's recovery takes a slot
            self._recovering.claim(name)

    def close(self) -> None:
        self._executor.shutdown(wait=True)
        if self._extracted is not None:
            self._extracted.close()

    @staticmethod
    def uses_gpu(target: Target) -> bool:
        """Whether any of its processes has CUDA state: only then there is something to pause."""
        return any(residual.state(pid) is not ResidualState.ABSENT for pid in residual_pids(target.tree))

    # ---- pause ----

    def pause(self, target: Target, *, depth: Depth, timeout_s: float, freed: Freed | None = None) -> SwitchReport:
        """Take the workload's VRAM. `freed` is told of it as it becomes free, while the pause goes on.

        Raises:
            Busy, Unsupported, NoRoom: refused; it runs on, nothing was changed.
            Conflict: it is paused already, as deep.
            KybernateError: a step failed and was undone.
        """
        heard = freed or _unheard
        progress = Progress(self._parts.broker.resident_bytes(target.name))

        def counted(gpu: GpuUuid, size: int) -> None:
            progress.add(size)
            heard(gpu, size)

        copy = self._pooled.begin_pause(target.name)  # from here on no other workload's pause may take its slots
        if copy is not None and copy.paused:
            if copy.manifest.depth is depth or depth is Depth.WARM:
                raise Conflict(f"workload {target.name} is paused already", hint="nothing to do")
            return self._deepen(target, copy, timeout_s)
        self._progress[target.name] = progress
        try:
            self._refuse_early(target, self._previous(copy))
            try:
                return self._pause(target, depth, timeout_s, copy, counted)
            except NoRoom:
                if not self._pooled.give_up(target.name):
                    raise
                return self._pause(target, depth, timeout_s, copy, counted)
        finally:
            self._progress.pop(target.name, None)
            if copy is not None:
                self._pooled.end_pause(copy)

    def _pause(
        self, target: Target, depth: Depth, timeout_s: float, before: HostCopy | None, freed: Freed
    ) -> SwitchReport:
        operation = PauseOperation(self._parts, target, depth, timeout_s, self._previous(before), freed)
        try:
            return operation.run()
        finally:
            # Should it have failed before that: the cache stays truthful about the slots it owns (cuda/copying.py).
            if operation.committed and operation.manifest is not None:
                self._pooled.put(target.name, HostCopy(operation.manifest, paused=True))
                if before is not None:
                    self._pooled.free(slots_given_up(before.manifest, operation.manifest))

    @staticmethod
    def _previous(copy: HostCopy | None) -> dict[ExtentId, ExtentCopy]:
        return copy.by_extent if copy else {}

    def _refuse_early(self, target: Target, previous: Mapping[ExtentId, ExtentCopy]) -> None:
        """Where the pool might not do, look before the workload is even asked to stand still."""
        extents = self._parts.broker.extents(target.name)
        pool = self._parts.pool
        owned = sum(int((~pool.shared(copy.slots[copy.slots >= 0])).sum()) for copy in previous.values())
        most = sum(extent.chunks for extent in extents)
        if most - owned <= pool.free_slots or self._pooled.give_up(target.name, keep_slots=most - owned):
            return
        for gpu, copier in self._parts.copiers.items():
            here = [extent for extent in extents if extent.gpu.uuid == gpu]
            if here:
                with suppress(WorkloadLost):  # it runs, and has just freed one of them: the pause itself will tell
                    copier.abandon(copier.plan(here, previous))

    def _deepen(self, target: Target, copy: HostCopy, timeout_s: float) -> SwitchReport:
        """Warm to zero: the extents are gone already, the context follows."""
        clock = Clock()
        send_residual_away(self._parts, target, clock, timeout_s)
        self._parts.store.set_depth(copy.manifest, Depth.ZERO)
        return SwitchReport(
            workload=target.name,
            operation="pause",
            depth=Depth.ZERO,
            backend=target.backend,
            seconds=clock.seconds,
            steps=tuple(clock.steps),
        )

    # ---- resume ----

    def resume(
        self,
        target: Target,
        *,
        timeout_s: float = 60.0,
        grant: VramGrant | None = None,
        unmanaged: Mapping[GpuUuid, int] | None = None,
    ) -> SwitchReport:
        """Give the workload VRAM and let it go on. With `grant` its memory is taken piece by piece, as that allows.

        Args:
            unmanaged: bytes that its processes without our library had on each GPU: the driver restores them once `grant` has them.

        Raises:
            Conflict: it is not paused.
            NoRoom: VRAM too small; still paused.
            WorkloadLost: the driver could not bring a process back.
            Unfinished: nor could an earlier failure be mended; still paused.
            KybernateError: a step failed and was undone; still paused.
        """
        clock = Clock()
        if self.unfinished(target.name) and self.recover(target) is WorkloadState.RUNNING:
            return SwitchReport(target.name, "resume", Depth.ZERO, target.backend, clock.seconds)
        copy = self._pooled.get(target.name)
        if copy is None or not copy.paused:
            raise Conflict(f"workload {target.name} is not paused", hint="nothing to do")
        self._forget_the_dead(target, copy.manifest)
        progress = Progress(sum(held.copy.size for held in copy.manifest.extents))
        operation = ResumeOperation(self._parts, target, copy.manifest, timeout_s, grant, unmanaged or {}, progress)
        self._progress[target.name] = progress
        try:
            return operation.run()
        finally:
            self._progress.pop(target.name, None)
            if operation.committed:
                self._pooled.set_paused(copy, paused=False)

    def _forget_the_dead(self, target: Target, manifest: Manifest) -> None:
        """Processes that were killed while they were paused come back no more; neither should their memory."""
        alive = set(target.tree.pids())
        if all(held.pid in alive for held in manifest.extents):
            return
        gone = self._parts.store.keep_only(manifest, alive)  # before the slots can become somebody else's
        self._pooled.free(gone.slots())

    def progress(self, name: WorkloadName) -> Progress | None:
        """Of the switch under way; None when there is none."""
        return self._progress.get(name)

    # ---- what is in the pool ----

    def host_copy(self, name: WorkloadName) -> HostCopy | None:
        return self._pooled.get(name)

    def away_bytes(self, name: WorkloadName) -> dict[GpuUuid, int]:
        """What the workload has in the pool and not in VRAM, on each GPU it came from."""
        copy = self._pooled.get(name)
        here = {extent.id for extent in self._parts.broker.extents(name)}
        away: Counter[GpuUuid] = Counter()
        for held in copy.manifest.extents if copy is not None else ():
            if held.done and held.id not in here:
                away[held.gpu] += held.copy.size
        return dict(away)

    def keep_only(self, names: Collection[WorkloadName]) -> None:
        """Forget what a predecessor kept of workloads that are no more."""
        for name in {*self._pooled.names(), *self._recovering.unreadable()} - set(names):
            self.forget(name)

    def forget(self, name: WorkloadName) -> None:
        """Free what a workload has in the pool and in VRAM: it has ended, or lies in a store and the ledger says so."""
        self._parts.store.remove(name)  # before the slots can become somebody else's
        self._pooled.drop(name)
        self._recovering.forget(name)
        self._parts.broker.drop(self._parts.broker.extents(name))

    def drop_cache(self, name: WorkloadName) -> int:
        """Give up the host copy of a running workload. Returns the bytes of pool that became free."""
        return self._pooled.drop_cache(name)

    # ---- after an agent's death ----

    def recover(self, target: Target) -> WorkloadState:
        """Find out what is true of a workload whose switch an agent (this one or a dead one) did not finish, and bring it
        into a state with a name.

        Returns RUNNING or PAUSED.

        Raises:
            ContentGone: its memory is gone; the message says what the witnesses said.
            Unfinished: not now, for want of room or of an answer; it can be called again, also by `resume`.
        """
        return self._recovering.recover(target)

    def unfinished(self, name: WorkloadName) -> bool:
        """Whether its last recovery could not be finished: parts of it may run and others not."""
        return self._recovering.unfinished(name)
