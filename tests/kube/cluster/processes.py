"""Processes by number, and safely: a number alone may be used again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from tests.kube.cluster import keeper
from tests.kube.cluster.errors import ClusterError


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
