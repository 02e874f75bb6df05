"""A workload without a cgroup: its processes are the descendants of its supervisor, frozen by SIGSTOP.

What is worse than a cgroup, and can't be helped without root: a program may notice being stopped (its parent gets
SIGCHLD, timers run on), freezing isn't atomic, and a process whose supervisor was killed is found again only if
it stayed in the workload's session.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from kybernate.model.errors import Busy
from kybernate.model.types import HostPid
from kybernate.process import procfs

_STOPPED = "TtZX"
_POLL_S = 0.002


class SessionGroup:
    """The processes of one workload that runs without a cgroup."""

    freezes_by = "sigstop"

    def __init__(self, *, name: str, run_directory: Path, supervisor: HostPid, start_time: int, main: int) -> None:
        self._name = name
        self._mark = b"KYBERNATE_RUN_DIRECTORY=" + os.fsencode(run_directory)
        self._supervisor = supervisor
        self._start_time = start_time
        self._main = main

    def pids(self) -> list[HostPid]:
        """The workload's processes, without the supervisor and without zombies."""
        table = {pid: found for pid in procfs.all_pids() if (found := procfs.stat(pid)) is not None}
        return sorted(pid for pid in self._members(table) if table[pid].alive)

    def _members(self, table: Mapping[HostPid, procfs.Stat]) -> set[HostPid]:
        members = {pid for pid, found in table.items() if found.session == self._main and self._is_marked(pid)}
        supervisor = table.get(self._supervisor)
        if supervisor is None or supervisor.start_time != self._start_time:
            return members
        family = {self._supervisor}
        while grown := {pid for pid, found in table.items() if found.parent in family} - family:
            family |= grown
        return members | (family - {self._supervisor})

    def _is_marked(self, pid: HostPid) -> bool:
        """A session's number may be used again after a workload's end; its environment tells them apart."""
        with contextlib.suppress(OSError):
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False

    @property
    def frozen(self) -> bool:
        """Whether every process of the workload stands still."""
        pids = self.pids()
        return bool(pids) and not self._moving(set(pids))

    def freeze(self, timeout_s: float) -> None:
        """Stop all of the workload's processes, those started meanwhile too.

        Raises:
            Busy: not all of them stood still in time; they were let go again.
        """
        deadline = time.monotonic() + timeout_s
        stopped: set[HostPid] = set()
        all_stood = False
        while True:
            pids = set(self.pids())
            # Nobody new since a moment at which all stood still: nobody was left who could have forked.
            if all_stood and pids <= stopped:
                return
            self._send(pids - stopped, signal.SIGSTOP)
            stopped |= pids
            moving = self._moving(pids)
            all_stood = not moving
            if time.monotonic() > deadline:
                self.thaw()
                raise Busy(f"workload {self._name} did not stop within {timeout_s:g} s: processes {sorted(moving)}")
            if moving:
                time.sleep(_POLL_S)

    def thaw(self) -> None:
        self._send(set(self.pids()), signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to every process of the workload, stopped ones too."""
        self._send(set(self.pids()), signal.SIGKILL)

    def remove(self, timeout_s: float) -> None:
        """Kill the workload's processes and wait until they are gone.

        Raises:
            Busy: a process could not be killed in time.
        """
        deadline = time.monotonic() + timeout_s
        while pids := self.pids():
            if time.monotonic() > deadline:
                raise Busy(f"workload {self._name} still has processes after SIGKILL: {pids}")
            self._send(set(pids), signal.SIGKILL)
            time.sleep(_POLL_S)

    @staticmethod
    def _moving(pids: set[HostPid]) -> set[HostPid]:
        found = {pid: entry for pid in pids if (entry := procfs.stat(pid)) is not None}
        still = {pid for pid, entry in found.items() if entry.state in _STOPPED}
        # A shell that has vfork()ed sleeps until its child runs a program, and takes no signal; a child that was stopped
        # before it got there holds it as still as a stop of its own would.
        held = {found[pid].parent for pid in still}
        still |= {pid for pid, entry in found.items() if entry.state == "D" and pid in held}
        return found.keys() - still

    @staticmethod
    def _send(pids: set[HostPid], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
