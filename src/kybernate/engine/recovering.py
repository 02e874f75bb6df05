"""Workloads after an agent's death, or after a switch that failed: asks the witnesses and carries out the verdict (recovery.py)."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from kybernate.cuda import residual
from kybernate.cuda.copying import CopyEngine, CopyPlan
from kybernate.cuda.extents import Extent
from kybernate.cuda.planning import NO_SLOT
from kybernate.cuda.residual import ResidualState
from kybernate.cuda.wire import ProcessState
from kybernate.engine import recovery
from kybernate.engine.context import Clock, Parts, connections, reconcile
from kybernate.engine.copies import BadManifest, Manifest
from kybernate.engine.pause import send_residual_away
from kybernate.engine.pooled import HostCopy, Pooled
from kybernate.engine.resume import ResumeOperation
from kybernate.engine.target import CudaProcess, Target, residual_pids
from kybernate.model.errors import Busy, KybernateError, NoRoom
from kybernate.model.types import Depth, WorkloadName, WorkloadState
from kybernate.process.dumping import settle
from kybernate.process.tree import Tree

log = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0
"""A control thread that takes longer is inside a locked driver."""
TAKE_BACK_SECONDS = 30.0
"""For a process to map its memory again by itself once the driver lets it."""


class Recovering:
    """Thread-safe for different workloads."""

    def __init__(self, parts: Parts, pooled: Pooled) -> None:
        self._parts = parts
        self._pooled = pooled
        self._unreadable: dict[WorkloadName, str] = {}
        self._unfinished: set[WorkloadName] = set()

    def unreadable(self) -> Collection[WorkloadName]:
        """Whose manifests a predecessor has left that can't be read."""
        return self._unreadable.keys()

    def forget(self, name: WorkloadName) -> None:
        self._unreadable.pop(name, None)
        self._unfinished.discard(name)

    def claim(self, name: WorkloadName) -> None:
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

    def recover(self, target: Target) -> WorkloadState:
        """See `Engine.recover`."""
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
                    self._pooled.set_paused(copy, paused=False)
                return WorkloadState.RUNNING
            case recovery.Verdict.BRING_BACK if manifest is not None:
                self._bring_back(target, manifest)
                return WorkloadState.RUNNING
            case recovery.Verdict.PAUSED | recovery.Verdict.FINISH_PAUSE if manifest is not None:
                if (copy := self._pooled.get(target.name)) is not None:
                    self._pooled.set_paused(copy, paused=True)
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
                    for i in mine:
                        old = manifest.extents[i].copy.slots
                        self._pooled.free(old[old >= 0])
                    self._parts.store.replace(manifest, dict(zip(mine, plan.copies, strict=True)))
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
            send_residual_away(self._parts, target, Clock(), timeout_s=30.0)
        except KybernateError as error:
            log.warning("workload %s is paused, but its CUDA context stays: %s", target.name, error)
            self._parts.store.set_depth(manifest, Depth.WARM)

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
        ResumeOperation(self._parts, replace(target, processes=without), part, 60.0).run()
        self._wait_open(target)
        self._adopt(target)
        self._pooled.drop(target.name)
        self.forget(target.name)
