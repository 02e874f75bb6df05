"""A launched workload as the agent sees it: its processes, freezing, signals, its end, and removing what it used.

A `Tree` holds no state of its own and no descriptors: an agent that comes back gets an equal one by `attach`, and
it may be used from several threads. Its supervisor is known by pid and start time, so that a pid used again is
never taken for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from kybernate.model.errors import BadInput, Busy, Conflict, NotFound
from kybernate.model.types import HostPid, WorkloadName, workload_name
from kybernate.process import procfs, records, sleeping_calls
from kybernate.process.cgroups import WorkloadCgroup
from kybernate.process.records import ExitRecord, SupervisorRecord
from kybernate.process.sessions import SessionGroup

CONTROL = "control"
"""Directory of the control sockets, below the run directory; the workload's own user may write there."""
OUTPUT = "output.log"
BROKER_SOCKET = "agent.sock"
"""Where a workload asks the agent for memory, in its run directory; each time anew."""
_REMOVE_TIMEOUT_S = 10.0
_LAST_WORDS_S = 1.0
_TO_SUPERVISOR_ONLY = (signal.SIGSTOP, signal.SIGCHLD)


class Group(Protocol):
    """The processes of a workload, however they are held together."""

    freezes_by: str

    def pids(self) -> list[HostPid]: ...
    @property
    def frozen(self) -> bool: ...
    def freeze(self, timeout_s: float) -> None: ...
    def thaw(self) -> None: ...
    def kill(self) -> None: ...
    def remove(self, timeout_s: float) -> None: ...


class Tree:
    """A workload's processes. Made by `launch` and `attach`."""

    def __init__(self, *, record: SupervisorRecord, run_directory: Path) -> None:
        self._record = record
        self.name: WorkloadName = record.name
        self.run_directory = run_directory
        self.supervisor_pid = record.pid
        self.isolated = record.isolated
        self.left_out = record.left_out
        """One line for each protection this workload has to do without."""
        self._group = _group(record, run_directory)

    @property
    def freezes_by(self) -> str:
        """`cgroup`, or `sigstop` where there is none: then the freeze isn't atomic and a program may notice it."""
        return self._group.freezes_by

    @property
    def cgroup(self) -> Path | None:
        """Where the workload's processes are, for whoever starts more of them there; None without isolation."""
        return None if self._record.cgroup is None else self._record.cgroup / "tasks"

    # Who belongs to it

    def pids(self) -> list[HostPid]:
        """Its processes in ascending order, without the supervisor and without zombies."""
        return self._group.pids()

    def helpers(self) -> list[HostPid]:
        """Processes of ours that are with its supervisor for a while: a dump's."""
        if self._record.cgroup is None:
            return []
        return [pid for pid in WorkloadCgroup(self._record.cgroup).helper_pids() if pid != self.supervisor_pid]

    def main_pid(self) -> HostPid | None:
        """Its first process; None when that has ended."""
        return self.host_pid(self._record.main_inside)

    def host_pid(self, inside: int) -> HostPid | None:
        """The host's number for a pid as the workload sees it; None when no such process belongs to it."""
        return next((pid for pid in self.pids() if self.inside_pid(pid) == inside), None)

    def inside_pid(self, pid: HostPid) -> int | None:
        """The pid as the workload itself sees it; None when the process is gone or not in its namespace."""
        depth = len(procfs.namespace_pids(self.supervisor_pid)) if self.isolated else 1
        numbers = procfs.namespace_pids(pid)
        return numbers[depth - 1] if 0 < depth <= len(numbers) else None

    # Standing still

    def freeze(self, timeout_s: float = 5.0) -> None:
        """Stop all of its processes (never the supervisor).

        Raises:
            Busy: not all of them stood still in time; they were let go again.
            Conflict: it has ended.
        """
        if self.exit() is not None:
            raise Conflict(f"workload {self.name} has ended")
        self._group.freeze(timeout_s)
        if self.isolated:
            sleeping_calls.let_go_on(self.pids())

    def thaw(self) -> None:
        """Let them go on. Does nothing to what isn't frozen or has ended."""
        with contextlib.suppress(FileNotFoundError):
            self._group.thaw()

    @property
    def frozen(self) -> bool:
        """Whether all of its processes stand still right now."""
        return self._group.frozen

    # Signals

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group of its first process, through the supervisor; no-op when it has ended.

        A frozen workload gets it when it is thawed, except for SIGKILL.

        Raises:
            BadInput: SIGSTOP and SIGCHLD can't be sent this way.
        """
        if number == signal.SIGKILL:
            self.kill()
            return
        if number in _TO_SUPERVISOR_ONLY:
            raise BadInput(f"can't send {number.name} to workload {self.name}", hint="use pause to stop it")
        with _supervisor(self._record) as pidfd:
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, number)

    def kill(self) -> None:
        """SIGKILL to all of its processes, frozen ones too. The supervisor then says how it ended."""
        with contextlib.suppress(FileNotFoundError):
            self._group.kill()

    # Its end

    @property
    def alive(self) -> bool:
        """Whether its supervisor lives, and so the workload may."""
        return _lives(self._record)

    def exit(self) -> ExitRecord | None:
        """How it ended; None while it runs. `known` is False when the supervisor was killed and nobody saw it."""
        ended = not self.alive  # looked at first: the supervisor writes the file, then ends
        found = records.read_exit(self.run_directory)
        if not ended:
            return None
        return found or records.EXIT_UNKNOWN

    def exit_status(self) -> int | None:
        """0 to 255, or 128 + signal; None while it runs. 137 when the supervisor was killed: see `exit`."""
        ended = self.exit()
        return None if ended is None else ended.status

    def wait(self, timeout_s: float | None = None) -> int:
        """Sleep until it has ended and all its processes are gone; returns the exit status.

        Raises:
            Busy: it still runs when the time is over.
        """
        with _supervisor(self._record) as pidfd:
            if pidfd is not None and not _readable(pidfd, timeout_s):
                raise Busy(f"workload {self.name} still runs after {timeout_s:g} s")
        self._reap()
        return (self.exit() or records.EXIT_UNKNOWN).status

    def remove(self) -> None:
        """Kill what still runs and remove the cgroup, the sockets and its record. May be called again.

        exit.json, output.log and the layers stay: whoever made the run directory deletes it.

        Raises:
            Busy: a process could not be killed in time.
        """
        with locked(self.run_directory):
            self.remove_locked()

    def remove_locked(self) -> None:
        """`remove`, for one who holds `locked` already."""
        self.kill()
        with _supervisor(self._record) as pidfd:
            # It ends by itself after the last of them, having written exit.json; unless it is stopped or stuck.
            if pidfd is not None and not _readable(pidfd, _LAST_WORDS_S):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                _readable(pidfd, _REMOVE_TIMEOUT_S)
        self._group.remove(_REMOVE_TIMEOUT_S)
        self._reap()
        clear(self.run_directory)

    def _reap(self) -> None:
        """Where the agent is an orphan's parent (as PID 1 of a container), the supervisor is its zombie."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.supervisor_pid, os.WNOHANG)


def attach(run_directory: Path) -> Tree:
    """Find a workload again that any agent launched, running or ended.

    Raises:
        NotFound: no workload was launched there, or its record is from before the last boot.
    """
    record = records.read_supervisor(run_directory)
    if record.boot_id != procfs.boot_id():
        raise NotFound(f"workload {record.name} was launched before the last boot and is gone")
    return Tree(record=record, run_directory=run_directory)


def terminate(tree: Tree, *, grace_s: float) -> int:
    """Ask it to end (SIGTERM), kill it when the grace is over, and return its exit status. Thaws a frozen one first."""
    tree.thaw()
    tree.signal(signal.SIGTERM)
    with contextlib.suppress(Busy):
        return tree.wait(grace_s)
    tree.kill()
    return tree.wait(_REMOVE_TIMEOUT_S)


def sweep(run_directory: Path) -> None:
    """Remove whatever an ended workload left, or a launch that was cut off before it had written its record.

    Raises:
        BadInput: the directory's name is no workload's.
        Busy: a process could not be killed in time.
        Conflict: a workload runs there.
    """
    with locked(run_directory):
        sweep_locked(run_directory)


def sweep_locked(run_directory: Path) -> None:
    """`sweep`, for one who holds `locked` already."""
    name = workload_name(run_directory.name)  # it becomes a cgroup's path, whose processes are killed
    with contextlib.suppress(NotFound):
        tree = attach(run_directory)
        if tree.alive:
            raise Conflict(f"workload {tree.name} runs")
        tree.remove_locked()
    state_directory = run_directory.parents[1].resolve()
    for group in WorkloadCgroup.existing(state_directory=state_directory, name=name):
        group.remove(_REMOVE_TIMEOUT_S)
    shutil.rmtree(run_directory / records.RESTORE, ignore_errors=True)  # of a restore that was cut off


def clear(run_directory: Path) -> None:
    """Delete what belongs to one life of a workload, all but its record."""
    shutil.rmtree(run_directory / CONTROL, ignore_errors=True)
    record = records.supervisor_path(run_directory)
    for path in (record, record.with_name(f"{record.name}.new")):
        path.unlink(missing_ok=True)
    for name in (records.LAUNCH, records.IDENTITY):
        (run_directory / name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(run_directory: Path) -> Iterator[bool]:
    """Launching and removing in one run directory exclude each other, across processes too.

    Yields False when the directory isn't there, or was deleted while we waited.
    """
    try:
        descriptor = os.open(run_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            there = os.path.samestat(os.fstat(descriptor), run_directory.stat())
        except FileNotFoundError:
            there = False
        yield there
    finally:
        os.close(descriptor)


def _group(record: SupervisorRecord, run_directory: Path) -> Group:
    if record.cgroup is not None:
        return WorkloadCgroup(record.cgroup)
    return SessionGroup(
        name=record.name,
        run_directory=run_directory.resolve(),
        supervisor=record.pid,
        start_time=record.start_time,
        main=record.main_inside,
    )


def _lives(record: SupervisorRecord) -> bool:
    found = procfs.stat(record.pid)
    return found is not None and found.start_time == record.start_time and found.alive


@contextlib.contextmanager
def _supervisor(record: SupervisorRecord) -> Iterator[int | None]:
    """A pidfd of the very process the record means; None when that has ended."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Looked at after opening: if it lives under this pid now, it did then, and the descriptor is its.
        with contextlib.suppress(ProcessLookupError):  # it ended while we were about to signal it
            yield pidfd if _lives(record) else None
    finally:
        os.close(pidfd)


def _readable(pidfd: int, timeout_s: float | None) -> bool:
    """A pidfd becomes readable when its process ends."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if poller.poll(None if left is None else left * 1000):
            return True
        if left is not None and left <= 0:
            return False
