"""Processes by number, and safely: a number alone may be used again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from tests.cluster.harness import keeper
from tests.cluster.harness.errors import ClusterError


def end(pid: int) -> None:
    """End the keeper and wait until it is gone; it needs some seconds for what it holds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        deadline = time.monotonic() + 3 * keeper.PATIENCE_S
        while start_time(pid) is not None:
            _collect(pid)
            if time.monotonic() > deadline:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                raise ClusterError(f"the cluster's keeper (process {pid}) did not end; it was killed")
            time.sleep(0.01)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _collect(pid: int) -> None:
    """Reap the keeper if it is our child."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def only_child(pid: int) -> int:
    """The only child of a process."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            return int(children[0])
        time.sleep(0.01)
    raise ClusterError(f"process {pid} has no child")


def resident_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    if "VmRSS:" not in status:
        return 0  # it is ending
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def of_namespace(pid: int) -> dict[int, str]:
    """Pids and names of all processes in the same pid namespace as `pid`; those in namespaces below it left out."""
    wanted = str(Path(f"/proc/{pid}/ns/pid").readlink())
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((process / "ns" / "pid").readlink()) == wanted:
                found[int(process.name)] = (process / "comm").read_text().strip()
    return found


def namespaces(pid: int) -> set[str]:
    """The namespaces of a process, such as net:[4026532274]."""
    return {str(path.readlink()) for path in Path(f"/proc/{pid}/ns").iterdir()}


def now() -> int:
    """The time since boot, in the clock ticks of `start_time`."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def in_use(wanted: set[str], *, since: int) -> set[str]:
    """Those of the namespaces that some process is in or keeps open, or that are mounted somewhere we see.

    Processes younger than `since` (see `now`) don't count: the kernel gives the numbers of ended namespaces to new ones at once.
    """
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        started = start_time(int(process.name))
        if started is None or started > since:
            continue
        for directory in ("ns", "fd"):
            with contextlib.suppress(OSError):
                for path in (process / directory).iterdir():
                    with contextlib.suppress(OSError):
                        found.add(str(path.readlink()))
    found |= {line.split()[3] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return wanted & found
