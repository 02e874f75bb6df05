"""The door of the engine: one blocking call an operation. The caller runs one operation a workload at a time.

The engine remembers, for each workload, the host copy it has in the pool: of a paused one it is the only copy there is,
of a running one it is a cache that makes the next pause cheap and that is given up when the pool runs short.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from kybernate.cuda import residual
from kybernate.cuda.broker import Broker
from kybernate.cuda.copying import CopyEngine, CopyPlan, ExtentCopy
from kybernate.cuda.extents import Extent
from kybernate.cuda.planning import NO_SLOT
from kybernate.cuda.pool import PinnedPool
from kybernate.cuda.residual import ResidualState
from kybernate.cuda.wire import ProcessState
from kybernate.engine import recovery
from kybernate.engine.cancelling import Cancellation
from kybernate.engine.coming import Coming, Room
from kybernate.engine.context import Clock, Parts, connections, reconcile, refuse_newcomers
from kybernate.engine.copies import BadManifest, CopyStore, Manifest, slots_given_up
from kybernate.engine.faults import Faults
from kybernate.engine.leaving import FREEZE_SECONDS, Freed, Leaving
from kybernate.engine.parking import StoredReport
from kybernate.engine.pooled import HostCopy, StagedView
from kybernate.engine.progress import Progress
from kybernate.engine.staging import StageReport
from kybernate.engine.stored import Described, Kind
from kybernate.engine.storing import Storing
from kybernate.engine.target import CudaProcess, Target, residual_pids
from kybernate.engine.threads import Threads
from kybernate.model.errors import Busy, Conflict, KybernateError, NoRoom, WorkloadLost
from kybernate.model.types import (
    Depth,
    ExtentId,
    GpuUuid,
    SwitchReport,
    WorkloadName,
    WorkloadState,
)
from kybernate.process.dumping import settle
from kybernate.process.tree import Tree

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


log = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0
"""A control thread that takes longer is inside a locked driver."""
TAKE_BACK_SECONDS = 30.0
"""For a process to map its memory again by itself once the driver lets it."""


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
    ) -> None:
        """`directory` holds the manifests; it must lie where workloads can't reach it.

        Args:
            scratch: where processes' images lie while they are written to a store or read from one: a directory of
                the engine's own, for root only, with room for the largest workload's host memory. Emptied here.
        """
        self._executor = Threads("engine")
        parts = Parts(
            broker=broker,
            pool=pool,
            copiers=copiers,
            store=CopyStore(directory),
            executor=self._executor,
            faults=faults or Faults(),
        )
        super().__init__(parts, scratch)
        self._unreadable: dict[WorkloadName, str] = {}
        self._unfinished: set[WorkloadName] = set()
        self._progress: dict[WorkloadName, Progress] = {}
        for name in self._parts.store.names():  # all, before any workload's recovery takes a slot
            self._claim(name)

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
        told = freed or _unheard
        progress = Progress(self._parts.broker.resident_bytes(target.name))

        def counted(gpu: GpuUuid, size: int) -> None:
            progress.add(size)
            told(gpu, size)

        copy = self._pooled.begin_leaving(target.name)  # from here on no other workload's pause may take its slots
        if copy is not None and copy.paused:
            if copy.manifest.depth is depth or depth is Depth.WARM:
                raise Conflict(f"workload {target.name} is paused already", hint="nothing to do")
            return self._deepen(target, copy, timeout_s)
        self._progress[target.name] = progress
        try:
            self._refuse_early(target, self._previous(copy))
            try:
                return self._leave(target, depth, timeout_s, copy, counted)
            except NoRoom:
                if not self._pooled.give_up(target.name):
                    raise
                return self._leave(target, depth, timeout_s, copy, counted)
        finally:
            self._progress.pop(target.name, None)
            if copy is not None:
                copy.leaving = False

    def _leave(
        self, target: Target, depth: Depth, timeout_s: float, before: HostCopy | None, freed: Freed
    ) -> SwitchReport:
        leaving = Leaving(self._parts, target, depth, timeout_s, self._previous(before), freed)
        try:
            return leaving.run()
        finally:
            # Should it have failed before that: the cache stays truthful about the slots it owns (cuda/copying.py).
            if leaving.committed and leaving.manifest is not None:
                self._pooled.put(target.name, HostCopy(leaving.manifest, paused=True))
                if before is not None:
                    self._pooled.free(slots_given_up(before.manifest, leaving.manifest))

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
        self._away(target, clock, timeout_s)
        copy.manifest.depth = Depth.ZERO
        self._parts.store.save(copy.manifest)
        return SwitchReport(
            workload=target.name,
            operation="pause",
            depth=Depth.ZERO,
            backend=target.backend,
            seconds=clock.seconds,
            steps=tuple(clock.steps),
        )

    def _away(self, target: Target, clock: Clock, timeout_s: float) -> None:
        """Residual out and threads frozen, from whatever state each process is in."""
        pids = residual_pids(target.tree)
        with clock.step("checkpoint"):
            states = {pid: residual.state(pid) for pid in pids}
            running = [pid for pid in pids if states[pid] is ResidualState.RUNNING]
            here = running + [pid for pid in pids if states[pid] is ResidualState.LOCKED]
            if running:
                residual.lock_all(running, timeout_s)
            try:
                refuse_newcomers(self._parts, target.name, here, known=())
            except Busy:
                residual.unlock_all(running)
                raise
            if here:
                residual.checkpoint_all(here)
        with clock.step("freeze"):
            target.tree.freeze(FREEZE_SECONDS)

    # ---- resume ----

    def resume(self, target: Target, *, timeout_s: float = 60.0, room: Room | None = None) -> SwitchReport:
        """Give the workload VRAM and let it go on. With `room` its memory is taken piece by piece, as that allows.

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
        coming = Coming(self._parts, target, copy.manifest, timeout_s, room, progress)
        self._progress[target.name] = progress
        try:
            return coming.run()
        finally:
            self._progress.pop(target.name, None)
            if coming.committed:
                copy.paused = False

    def _forget_the_dead(self, target: Target, manifest: Manifest) -> None:
        """Processes that were killed while they were paused come back no more; neither should their memory."""
        alive = set(target.tree.pids())
        gone = [held for held in manifest.extents if held.pid not in alive]
        if not gone:
            return
        manifest.extents = [held for held in manifest.extents if held.pid in alive]
        self._parts.store.save(manifest)  # before the slots can become somebody else's
        self._pooled.free(Manifest(manifest.name, manifest.depth, gone).slots())

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
        for name in {*self._pooled.names(), *self._unreadable} - set(names):
            self.clear(name)

    def forget(self, target: Target) -> None:
        """The workload has ended: free what it had in the pool and in VRAM."""
        self.clear(target.name)

    def clear(self, name: WorkloadName) -> None:
        """Nothing of what is kept under that name means anything any more."""
        self._parts.store.remove(name)  # before the slots can become somebody else's
        self._drop_copy(name)
        self._parts.broker.drop(self._parts.broker.extents(name))

    def release_parked(self, name: WorkloadName) -> None:
        """The workload lies in a store and the ledger says so; its processes have been ended: free what it had here."""
        self.clear(name)

    def drop_cache(self, name: WorkloadName) -> int:
        """Give up the host copy of a running workload. Returns the bytes of pool that became free."""
        return self._pooled.drop_cache(name)

    def _drop_copy(self, name: WorkloadName) -> None:
        self._pooled.drop(name)
        self._unreadable.pop(name, None)
        self._unfinished.discard(name)

    # ---- after an agent's death ----

    def recover(self, target: Target) -> WorkloadState:
        """Find out what is true of a workload whose switch an agent (this one or a dead one) did not finish, and bring it
        into a state with a name.

        Returns RUNNING or PAUSED.

        Raises:
            ContentGone: its memory is gone; the message says what the witnesses said.
            Unfinished: not now, for want of room or of an answer; it can be called again, also by `resume`.
        """
        if isinstance(target.tree, Tree):
            settle(target.tree.run_directory)  # a dump that outlived its agent, or that was cut off with it
        try:
            state = self._recover(target)
        except recovery.ContentGone:
            self._unfinished.discard(target.name)
            raise
        except Exception as error:  # whatever it is: nobody has said that the content is gone
            why = error.message if isinstance(error, KybernateError) else repr(error)
            if failed := [pid for pid in residual_pids(target.tree) if residual.state(pid) is ResidualState.FAILED]:
                raise recovery.ContentGone(
                    f"the driver can't bring back process {failed[0]} of {target.name}: {why}",
                    hint="stop it and start it anew",
                ) from error
            log.warning("recovery of %s is not finished: %s", target.name, why)
            self._unfinished.add(target.name)
            raise recovery.Unfinished(
                f"workload {target.name} can't be brought into order just now: {why}",
                hint="its content is safe; it is tried again when it is resumed",
            ) from error
        self._unfinished.discard(target.name)
        return state

    def unfinished(self, name: WorkloadName) -> bool:
        """Whether its last recovery could not be finished: parts of it may run and others not."""
        return name in self._unfinished

    def _recover(self, target: Target) -> WorkloadState:
        manifest, problem = self._own_manifest(target.name)
        facts = self._facts(target, manifest)
        if facts.frozen and not facts.complete:
            # Not by a pause of ours that came to its end (somebody's SIGSTOP, where there is no cgroup): ask the processes.
            target.tree.thaw()
            facts = self._facts(target, manifest)
        verdict = recovery.decide(facts)
        log.info("recovery of %s: %s -> %s", target.name, facts, verdict.value)
        if verdict is recovery.Verdict.FINISH_COPY and manifest is not None:
            self._finish_copy(target, manifest)
            facts = self._facts(target, manifest)
            verdict = recovery.decide(facts)
            log.info("recovery of %s, copy finished: %s -> %s", target.name, facts, verdict.value)
        match verdict:
            case recovery.Verdict.RUNNING | recovery.Verdict.RELEASE_DRIVER:
                if verdict is recovery.Verdict.RELEASE_DRIVER:
                    self._release_driver(target)
                self._wait_open(target)
                self._adopt(target)
                self._parts.store.remove(target.name)
                if (copy := self._pooled.get(target.name)) is not None:
                    for held in copy.manifest.extents:
                        if not held.done:
                            held.copy.hashes[:] = 0  # planned, perhaps never copied: never to be taken for clean
                    copy.paused = False
                return WorkloadState.RUNNING
            case recovery.Verdict.BRING_BACK if manifest is not None:
                self._bring_back(target, manifest)
                return WorkloadState.RUNNING
            case recovery.Verdict.PAUSED | recovery.Verdict.FINISH_PAUSE if manifest is not None:
                if (copy := self._pooled.get(target.name)) is not None:
                    copy.paused = True
                self._parts.broker.drop(self._parts.broker.extents(target.name))
                if verdict is recovery.Verdict.FINISH_PAUSE and manifest.depth is Depth.ZERO:
                    self._finish_pause(target, manifest)
                return WorkloadState.PAUSED
        raise recovery.ContentGone(
            f"workload {target.name} gave up its GPU memory and its host copy is not there. {problem}".strip(),
            hint="stop it and start it anew",
        )

    def _own_manifest(self, name: WorkloadName) -> tuple[Manifest | None, str]:
        """The workload's manifest, its slots in the pool ours; and what is wrong with it, if it can't be read."""
        copy = self._pooled.get(name)
        return (None, self._unreadable.get(name, "")) if copy is None else (copy.manifest, "")

    def _claim(self, name: WorkloadName) -> None:
        """A predecessor's manifest: its slots are taken."""
        try:
            manifest = self._parts.store.load(name)
            if manifest is None:
                return
            for held in manifest.extents:
                if not held.done:
                    held.copy.slots[:] = NO_SLOT  # planned, never filled
            self._parts.pool.claim(manifest.slots())
        except (BadManifest, ValueError) as error:
            self._unreadable[name] = str(error)
            return
        # Until the verdict says otherwise it may be the only copy, and nobody may take its slots.
        self._pooled.put(name, HostCopy(manifest, paused=True))

    def _facts(self, target: Target, manifest: Manifest | None) -> recovery.Facts:
        frozen = target.tree.frozen
        undone = {held.pid for held in manifest.extents if not held.done} if manifest else set()
        complete = {process.pid: manifest is not None and process.pid not in undone for process in target.processes}
        if frozen:  # answers nobody
            processes = [recovery.Witness(None, complete=complete[process.pid]) for process in target.processes]
            return recovery.Facts(processes, [ResidualState.CHECKPOINTED], manifest is not None, frozen=True)
        return recovery.Facts(
            processes=[replace(self._ask(process), complete=complete[process.pid]) for process in target.processes],
            residuals=[residual.state(pid) for pid in residual_pids(target.tree)],
            manifest=manifest is not None,
        )

    def _finish_copy(self, target: Target, manifest: Manifest) -> None:
        """An agent died while it freed what it had copied: copy what the processes still hold."""
        for process in target.processes:
            with process.control() as control:
                if not control.status().partial:
                    continue
                here = {extent.id: extent for extent in reconcile(self._parts, target, process.pid, control)}
                undone = [i for i, held in enumerate(manifest.extents) if held.pid == process.pid and not held.done]
                if missing := [i for i in undone if manifest.extents[i].id not in here]:
                    raise recovery.ContentGone(
                        f"{len(missing)} extents of process {process.pid} of {target.name} are gone"
                    )
                for gpu, copier in self._parts.copiers.items():
                    mine = [i for i in undone if manifest.extents[i].gpu == gpu]
                    plan = self._plan_with_room(target.name, copier, [here[manifest.extents[i].id] for i in mine])
                    copier.evict(plan)
                    for i, copy in zip(mine, plan.copies, strict=True):
                        old = manifest.extents[i].copy.slots
                        self._pooled.free(old[old >= 0])
                        manifest.extents[i].copy = copy
                    self._parts.store.save(manifest)
                    self._parts.store.mark(manifest, mine)
                control.discard()
                self._parts.broker.drop(list(here.values()))

    def _plan_with_room(self, name: WorkloadName, copier: CopyEngine, extents: Sequence[Extent]) -> CopyPlan:
        try:
            return copier.plan(extents, {})
        except NoRoom:
            if not self._pooled.give_up(name):
                raise
            return copier.plan(extents, {})

    def _finish_pause(self, target: Target, manifest: Manifest) -> None:
        """All content is safe, so it is paused whatever comes; without the residual out, not as deep."""
        try:
            self._away(target, Clock(), timeout_s=30.0)
        except KybernateError as error:
            log.warning("workload %s is paused, but its CUDA context stays: %s", target.name, error)
            manifest.depth = Depth.WARM
            self._parts.store.save(manifest)

    @staticmethod
    def _ask(process: CudaProcess) -> recovery.Witness:
        try:
            with process.control(timeout_s=ANSWER_SECONDS) as control:
                status = control.status()
                return recovery.Witness(status.state, status.committed, status.partial)
        except (KybernateError, OSError):
            return recovery.Witness(None)

    def _release_driver(self, target: Target) -> None:
        pids = residual_pids(target.tree)
        away = [pid for pid in pids if residual.state(pid) is ResidualState.CHECKPOINTED]
        if away:
            residual.restore_all(away)
        shut = [pid for pid in pids if residual.state(pid) is ResidualState.LOCKED]
        if shut:
            residual.unlock_all(shut)

    def _wait_open(self, target: Target) -> None:
        """A process whose agent died maps its memory again and opens by itself; help one that can't."""
        deadline = time.monotonic() + TAKE_BACK_SECONDS
        for process in target.processes:
            with process.control(timeout_s=TAKE_BACK_SECONDS) as control:
                while (state := control.status().state) is not ProcessState.OPEN:
                    if state is ProcessState.RELEASED:
                        control.remap()
                    control.open()
                    if time.monotonic() > deadline:
                        raise Busy(f"process {process.pid} of {target.name} does not take its GPU memory back")

    def _adopt(self, target: Target) -> None:
        for process in target.processes:
            with process.control() as control:
                reconcile(self._parts, target, process.pid, control)

    def _bring_back(self, target: Target, manifest: Manifest) -> None:
        """Resume only those processes that have no memory; the others took theirs back themselves."""
        self._release_driver(target)
        with connections(target.processes) as controls:
            without = [process for process in target.processes if controls[process.pid].status().committed]
        pids = {process.pid for process in without}
        mine = [held for held in manifest.extents if held.pid in pids]
        part = Manifest(manifest.name, manifest.depth, mine, key=manifest.key)
        Coming(self._parts, replace(target, processes=without), part, 60.0).run()
        self._wait_open(target)
        self._adopt(target)
        self._drop_copy(target.name)
