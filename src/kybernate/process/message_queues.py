"""System V message queues that CRIU dumps and could not bring back: found before, since a failed restore comes too late.

CRIU gives a queue the namespace's usual size (msgmnb), and takes messages of 8192 bytes at most, the usual msgmax.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from kybernate.model.errors import WorkloadLost
from kybernate.process import namespaces
from kybernate.process.tree import Tree

_LONGEST_MESSAGE = 8192
"""MSGMAX in criu/ipc_ns.c."""
_IPC_STAT = 2
_SIZES = struct.Struct("=72xQQQ")
"""In struct msqid_ds of x86-64: bytes in the queue, messages, and most bytes."""

_libc = ctypes.CDLL(None, use_errno=True)


def hindrances() -> Iterator[str]:
    """A line for each, of the calling thread's IPC namespace. Raises OSError."""
    try:
        lines = Path("/proc/sysvipc/msg").read_text().splitlines()[1:]
    except FileNotFoundError:
        return  # a kernel without them
    if not lines:
        return
    usual = int(Path("/proc/sys/kernel/msgmnb").read_text())
    longest = int(Path("/proc/sys/kernel/msgmax").read_text())
    for identifier in (int(line.split()[1]) for line in lines):
        buffer = ctypes.create_string_buffer(256)
        if _libc.msgctl(identifier, _IPC_STAT, buffer):
            continue  # it has just been removed
        held, _, most = _SIZES.unpack_from(buffer)
        if most != usual:
            yield f"the System V message queue {identifier} with a size of its own ({most} bytes, msg_qbytes)"
        elif longest > _LONGEST_MESSAGE and held > _LONGEST_MESSAGE:
            yield f"the System V message queue {identifier}, whose messages may be longer than {_LONGEST_MESSAGE} bytes"


def hindrances_of(tree: Tree) -> list[str]:
    """Of a workload's namespace. Takes about 0.1 ms.

    Raises:
        WorkloadLost: it has ended.
    """
    found: list[str] = []
    failures: list[OSError] = []

    def look() -> None:
        try:
            namespaces.setns(descriptor, namespaces.NEW_IPC)
            found.extend(hindrances())
        except OSError as e:
            failures.append(e)

    try:
        descriptor = os.open(f"/proc/{tree.supervisor_pid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise WorkloadLost(f"workload {tree.name} has ended") from e
    try:
        if not tree.alive:  # after opening: so the pid wasn't another process's
            raise WorkloadLost(f"workload {tree.name} has ended")
        # A thread of its own that ends here: its namespace must not stick to a thread that is used again.
        thread = threading.Thread(target=look, name="kybernate-setns")
        thread.start()
        thread.join()
    finally:
        os.close(descriptor)
    if failures:
        raise failures[0]
    return found
