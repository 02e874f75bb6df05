"""Processes that we did not start (`pause --pid`): into the ledger when they are paused, out of it when they run again or end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.workloads.process_watch import procfs_identity, readable
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.targets import ExternalProcess, external_name
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.engine.target import Target
from kybernate.model.caller import Caller, NotPermitted
from kybernate.model.errors import BadInput, Conflict, NotFound
from kybernate.model.types import Backend, HostPid, WorkloadName, WorkloadState


class ExternalWatcher:
    """Adopts external processes and notices their end by a pidfd."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        clock: Callable[[], float],
        gpu: GpuRuntime | None,
        workloads: Workloads,
        tasks: Tasks,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._clock = clock
        self._gpu = gpu
        self._workloads = workloads
        self._tasks = tasks
        self._released: dict[WorkloadName, asyncio.Event] = {}

    async def adopt(self, pid: int, *, caller: Caller) -> None:
        """Make sure the process is in the ledger, running or paused.

        Raises:
            NotFound: no such process.
            Conflict: it belongs to a workload of ours, or is the agent.
            NotPermitted: it is another user's.
            BadInput: it has no CUDA context.
        """
        name = external_name(pid)
        if pid == os.getpid():
            raise Conflict(f"process {pid} is the agent itself")
        for entry in self._ledger.entries().values():
            tree = self._workloads.tree(entry.name)
            if tree is not None and pid in tree.pids():
                raise Conflict(
                    f"process {pid} belongs to workload {entry.name}", hint=f"`kybernate pause {entry.name}`"
                )
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as e:
            raise NotFound(f"no process has the pid {pid}", hint="`nvidia-smi` lists the processes on the GPUs") from e
        try:
            identity = procfs_identity(pid)
            # If the process of the pidfd lives after we looked, it was that one we looked at, and no successor of its pid.
            signal.pidfd_send_signal(pidfd, 0)
            caller.require_owner(identity.uid, f"process {pid}")
        except NotPermitted:
            os.close(pidfd)
            raise
        except OSError as e:
            os.close(pidfd)
            raise NotFound(f"process {pid} has just ended") from e
        old = self._ledger.get(name)
        if old is not None and not old.ended:
            os.close(pidfd)
            return
        try:
            await self._require_gpu(name, pid)
        except BaseException:
            os.close(pidfd)
            raise
        old = self._ledger.get(name)
        if old is not None and not old.ended:  # by somebody else, while we asked the driver
            os.close(pidfd)
            return
        now = self._clock()
        entry = Entry(
            name=name,
            state=WorkloadState.RUNNING,
            since=now,
            backend=Backend.DRIVER,
            last_use=now,
            running_since=now,
            reason="a process that was not started by Kybernate",
            external=True,
            argv=identity.argv,
            uid=identity.uid,
            gid=identity.gid,
            pids=(pid,),
        )
        self._ledger.add(entry)
        self.watch(entry, pidfd)

    async def _require_gpu(self, name: WorkloadName, pid: int) -> None:
        gpu = self._gpu
        target = Target(name=name, tree=ExternalProcess(HostPid(pid)), processes=[], backend=Backend.DRIVER)
        if gpu is not None and not await in_thread(f"look at {pid}", lambda: gpu.engine.uses_gpu(target)):
            raise BadInput(f"process {pid} has no CUDA context", hint="`nvidia-smi` lists the processes on the GPUs")

    async def release(self, name: WorkloadName) -> None:
        """It runs again, or its pause was refused: it is none of ours any more. In its owner task."""
        entry = self._ledger.get(name)
        if entry is None or not entry.external or entry.state is not WorkloadState.RUNNING:
            return
        await self._forget_host_copy(name)
        self._ledger.release(name)
        if (released := self._released.pop(name, None)) is not None:
            released.set()

    async def _forget_host_copy(self, name: WorkloadName) -> None:
        gpu = self._gpu
        if gpu is not None:
            await in_thread(f"forget {name}", lambda: gpu.engine.forget(name))

    def watch(self, entry: Entry, pidfd: int) -> None:
        """Take the pidfd over and note the process's end."""
        self._tasks.start(self._report_end(entry, pidfd), name=f"watcher of {entry.name}")

    async def _report_end(self, entry: Entry, pidfd: int) -> None:
        released = self._released[entry.name] = asyncio.Event()
        waiting = [asyncio.ensure_future(readable(pidfd)), asyncio.ensure_future(released.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)  # the loop must not watch a closed descriptor
            os.close(pidfd)
        if released.is_set():
            return
        self._released.pop(entry.name, None)
        current = self._ledger.get(entry.name)
        if current is not None and not current.ended:
            with contextlib.suppress(NotFound):  # let go of just now
                await self._workloads.submit(entry.name, "end", lambda: self._end(entry), detail=entry)

    async def _end(self, entry: Entry) -> None:
        if self._ledger.entry(entry.name).ended:
            return
        await self._forget_host_copy(entry.name)
        self._ledger.apply(entry.name, Event.EXITED, reason="the process ended", evicted={}, pids=())
        self._events.record("exited", "the process ended", workload=entry.name)
        self._ledger.remove(entry.name)
