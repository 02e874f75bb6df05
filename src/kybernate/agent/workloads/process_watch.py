"""The CUDA processes of workloads, one by one: when one ends and its workload lives on, its VRAM is taken back.

A workload's end takes back everything anyway; this is for its children. Known by their hello at the broker's door.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.errors import KybernateError
from kybernate.model.types import HostPid, WorkloadName

log = logging.getLogger(__name__)


class ProcessWatch:
    """Watches processes by pidfd. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        tasks: Tasks,
        next_hello: Callable[[], Awaitable[tuple[WorkloadName, HostPid]]],
        take_back: Callable[[WorkloadName, HostPid], None],
    ) -> None:
        """
        Args:
            next_hello: waits for the next process that says hello to the broker.
            take_back: runs in a thread once a process has ended.
        """
        self._tasks = tasks
        self._next_hello = next_hello
        self._take_back = take_back
        self._watched: set[HostPid] = set()

    async def run(self) -> None:
        """Watch whoever says hello. Task body; ends by cancellation."""
        while True:
            self.watch(*await self._next_hello())

    def watch(self, workload: WorkloadName, pid: HostPid) -> None:
        """From now on. A process that is watched already is fine: it says hello again after an exec."""
        if pid in self._watched:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            pidfd = -1  # it ended right after its hello; it may have had memory
        self._watched.add(pid)
        self._tasks.start(self._report_end(workload, pid, pidfd), name=f"watcher of process {pid}")

    async def _report_end(self, workload: WorkloadName, pid: HostPid, pidfd: int) -> None:
        try:
            if pidfd >= 0:
                await readable(pidfd)
        finally:
            self._watched.discard(pid)
            if pidfd >= 0:
                os.close(pidfd)
        try:
            await in_thread(f"take back {pid}", lambda: self._take_back(workload, pid))
        except KybernateError as e:
            log.warning("taking back the memory of process %d of workload %s: %s", pid, workload, e)


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose a process is and what it runs."""

    uid: int
    gid: int
    argv: tuple[str, ...]


def procfs_identity(pid: int) -> Identity:
    """What /proc says. Raises OSError when there is no such process."""
    directory = Path(f"/proc/{pid}")
    owner = directory.stat()
    words = (directory / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    return Identity(uid=owner.st_uid, gid=owner.st_gid, argv=tuple(words))


async def readable(pidfd: int) -> None:
    """A pidfd becomes readable when its process ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
