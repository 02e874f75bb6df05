"""A new agent takes over what its predecessor left: each workload's record, run directory and processes, and what the engine finds.

Decisions are told in events. Nothing here starts or kills a workload that lives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import RECOVERY, USER, Entry, Ledger
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.tiers.fallback import StoredFallback
from kybernate.agent.workloads.external import ExternalWatcher
from kybernate.agent.workloads.launching import Launcher
from kybernate.agent.workloads.process_watch import Identity, procfs_identity
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.targets import external_pid, look_at, target_of
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.engine.recovery import ContentGone
from kybernate.model.errors import KybernateError, NotFound
from kybernate.model.quantities import together
from kybernate.model.types import Backend, Depth, EndedBy, TierName, WorkloadName, WorkloadState
from kybernate.process.records import ExitRecord, read_exit
from kybernate.process.tree import BROKER_SOCKET, Tree, attach

log = logging.getLogger(__name__)

_FOUND = "found by a new agent"


class Recovery:
    """Run it once, before the API answers."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        clock: Callable[[], float],
        gpu: GpuRuntime | None,
        workloads: Workloads,
        launcher: Launcher,
        external: ExternalWatcher,
        fallback: StoredFallback,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._clock = clock
        self._gpu = gpu
        self._workloads = workloads
        self._launcher = launcher
        self._external = external
        self._fallback = fallback
        self.unclear: set[WorkloadName] = set()
        """Those that could not be taken over: what they have in the pool is kept for the next agent, which tries again."""

    async def run(self, records: list[Entry]) -> list[str]:
        """Take over everything; one line for each workload that was found."""
        known = {entry.name: entry for entry in records}
        lines = []
        for name in sorted({*known, *await in_thread("look for runs", self._launcher.found_names)}):
            try:
                line = await self._take_over(name, known.get(name))
            except Exception as e:  # one that can't be taken over must not keep the others from it
                log.exception("can't take over workload %s", name)
                self.unclear.add(name)
                line = f"{name}: can't be taken over: {e}"
                if self._ledger.get(name) is not None:
                    self._ledger.apply(name, Event.LOST, reason=line)
            if line:
                lines.append(line)
        if (gpu := self._gpu) is not None:
            alive = {entry.name for entry in self._ledger.entries().values() if not entry.ended}
            await in_thread("forget copies", lambda: gpu.engine.keep_only(alive | self.unclear))
        return lines

    async def _take_over(self, name: WorkloadName, record: Entry | None) -> str | None:
        if record is not None and record.external:
            return await self._take_over_external(record)
        run_directory = self._workloads.run_directory(name)
        if record is not None and record.tier is not TierName.RAM and not record.ended:
            return await self._take_over_parked(record)
        try:
            tree = await in_thread(f"attach {name}", lambda: attach(run_directory))
        except NotFound:
            if record is None:  # of one that was being removed, or whose start was cut off
                await in_thread(f"clear {name}", lambda: self._launcher.clear(name))
                return None
            return self._no_tree(name, record, read_exit(run_directory))
        entry = record or self._guess(name, tree)
        if entry.state is WorkloadState.STOPPING and tree.exit_status() is None:
            entry = dataclasses.replace(entry, ended_by=None)  # the order to end it has gone with that agent
        self._ledger.add(entry)
        if entry.ended and tree.exit_status() is not None:
            await in_thread(f"remove {name}", tree.remove)
            return None
        if entry.ended:
            # The record is older than the process: a predecessor died between the start and its note of it.
            self._ledger.add(self._guess(name, tree))
        if tree.exit_status() is not None:
            self._workloads.adopt(name, tree)
            self._events.record("recovered", "it ended while no agent ran", workload=name)
            return f"{name}: ended while no agent ran"
        state, why = await self._find_out(name, tree)
        if self._ledger.entry(name).tier is TierName.RAM and self._workloads.tree(name) is None:
            self._workloads.adopt(name, tree)
        self._events.record("recovered", f"{state}: {why}", workload=name, data={"state": state})
        return f"{name}: {state} ({why})"

    async def _find_out(self, name: WorkloadName, tree: Tree) -> tuple[WorkloadState, str]:
        """What is true of a workload whose processes live."""
        ledger, gpu = self._ledger, self._gpu
        entry = ledger.entry(name)
        if gpu is None:
            why = "found by a new agent without a GPU"
            ledger.apply(name, Event.FOUND_PAUSED if entry.depth else Event.FOUND_RUNNING, reason=why)
            return ledger.entry(name).state, why
        socket = self._workloads.run_directory(name) / BROKER_SOCKET
        await in_thread(f"listen {name}", lambda: gpu.broker.listen(name, socket, uid=entry.uid, gid=entry.gid))
        target = await look_at(entry, tree)
        try:
            state = await in_thread(f"recover {name}", lambda: gpu.engine.recover(target))
            why = _FOUND
        except ContentGone as e:
            self._workloads.adopt(name, tree)
            if (tier := await self._fallback.find(gpu, name)) is not None:
                why = f"found by a new agent; what it had in RAM is gone, its copy in {tier} is intact"
                ledger.apply(name, Event.FOUND_PAUSED, reason=why, paused_by=USER)
                return WorkloadState.PAUSED, why
            ledger.apply(name, Event.LOST, reason=f"could not be recovered: {e.message}")
            return WorkloadState.LOST, e.message
        except KybernateError as e:
            state, why = WorkloadState.PAUSED, f"found by a new agent; {e.message}"
        if state is WorkloadState.PAUSED:
            copy = gpu.engine.host_copy(name)
            depth = entry.depth if copy is None else copy.manifest.depth
            evicted = dict(entry.evicted) if copy is None else together(gpu.engine.away_bytes(name), entry.unmanaged)
            by = RECOVERY if gpu.engine.unfinished(name) else entry.paused_by
            # One that is as it was is still paused for the reason that it was paused for.
            same = entry.state is WorkloadState.PAUSED and by == entry.paused_by and why == _FOUND
            reason = entry.reason if same and entry.reason else why
            ledger.apply(name, Event.FOUND_PAUSED, reason=reason, depth=depth, evicted=evicted, paused_by=by)
        else:
            ledger.apply(
                name,
                Event.FOUND_RUNNING,
                reason=why,
                depth=None,
                paused_by=None,
                evicted={},
                running_since=self._clock(),
            )
        return state, why

    def _no_tree(self, name: WorkloadName, record: Entry, ended: ExitRecord | None) -> str | None:
        """Its run directory tells of no process: it ended and was cleaned up, or the machine was started anew."""
        self._ledger.add(record)
        if record.ended:
            return None
        if record.snapshot is not None and record.state in (WorkloadState.PAUSED, WorkloadState.RESUMING):
            # An equal copy, or nothing: that shows when it is asked for. It has not run since, as far as was written down.
            why = "its processes were gone when a new agent came; a copy of it was to be in the store"
            self._ledger.apply(name, Event.FOUND_PAUSED, reason=why, tier=TierName.NVME, pids=(), depth=Depth.ZERO)
            self._events.record("recovered", why, workload=name, data={"state": record.state})
            return f"{name}: paused ({why})"
        if ended is not None:
            # The record is older than the end: a predecessor died between the cleaning up and its note of it.
            reason = f"its process ended with status {ended.status}"
            self._ledger.apply(
                name,
                Event.EXITED,
                reason=reason,
                exit_status=ended.status,
                ended_by=record.ended_by or EndedBy.ITSELF,
                evicted={},
                pids=(),
                depth=None,
                paused_by=None,
            )
            self._events.record("exited", reason, workload=name, data={"exit_status": ended.status})
            return f"{name}: ended, status {ended.status}"
        self._ledger.apply(name, Event.LOST, reason="its processes were gone when a new agent came", evicted={})
        self._events.record("lost", "its processes were gone when a new agent came", workload=name)
        return f"{name}: lost, its processes are gone"

    async def _take_over_parked(self, record: Entry) -> str:
        """It lies in the store: whatever lives under its name is a leftover, of a park or a restore that was cut off."""
        name = record.name
        run_directory = self._workloads.run_directory(name)

        def end() -> bool:
            try:
                tree = attach(run_directory)
            except NotFound:
                return False
            lived = tree.alive
            tree.remove()
            return lived

        leftovers = await in_thread(f"end {name}", end)
        if (gpu := self._gpu) is not None:
            await in_thread(f"clear {name}", lambda: gpu.engine.forget(name))
        self._ledger.add(record)
        self._workloads.adopt(name, None)
        if record.state is not WorkloadState.PAUSED:
            self._ledger.apply(name, Event.FOUND_PAUSED, reason=f"found by a new agent, in {record.tier}")
        why = f"lies in {record.tier}" + (", leftovers of it were ended" if leftovers else "")
        self._events.record("recovered", f"paused: {why}", workload=name, data={"tier": record.tier})
        return f"{name}: paused ({why})"

    async def _take_over_external(self, record: Entry) -> str | None:
        if record.ended:
            return None
        pid = external_pid(record.name)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return f"{record.name}: the process is gone"
        with contextlib.suppress(OSError):
            found = procfs_identity(pid)
            if (found.uid, found.argv) != (record.uid, record.argv):
                os.close(pidfd)
                return f"{record.name}: the process is gone, its number is another's"
        self._ledger.add(record)
        gpu = self._gpu
        state = record.state
        if gpu is not None:
            target = target_of(record, None)
            why = _FOUND
            try:
                state = await in_thread(f"recover {pid}", lambda: gpu.engine.recover(target))
            except ContentGone as e:
                state, why = WorkloadState.LOST, e.message
            except KybernateError as e:
                state, why = WorkloadState.PAUSED, e.message
            events = {WorkloadState.RUNNING: Event.FOUND_RUNNING, WorkloadState.PAUSED: Event.FOUND_PAUSED}
            self._ledger.apply(record.name, events.get(state, Event.LOST), reason=why)
            if state is WorkloadState.RUNNING:
                os.close(pidfd)
                await self._external.release(record.name)
                return f"{record.name}: runs, and is let go of"
        self._workloads.adopt(record.name, None)
        self._external.watch(record, pidfd)
        return f"{record.name}: {state}"

    def _guess(self, name: WorkloadName, tree: Tree) -> Entry:
        """A workload without a record: what its process says about itself."""
        now = self._clock()
        main = tree.main_pid()
        identity = Identity(uid=0, gid=0, argv=())
        if main is not None:
            with contextlib.suppress(OSError):
                identity = procfs_identity(main)
        return Entry(
            name=name,
            state=WorkloadState.STARTING,
            since=now,
            backend=Backend.BROKER,
            last_use=now,
            running_since=now,
            reason="found by a new agent, without a record",
            argv=identity.argv,
            uid=identity.uid,
            gid=identity.gid,
        )
