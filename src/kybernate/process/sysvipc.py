"""System V objects of a workload: shared memory, semaphores and message queues belong to its IPC namespace, not to a process.

CRIU takes a namespace along where it isn't in it itself, and maps the shared memory again; in the restore it makes a new one.
The supervisor then moves there, so that it is the workload's. All of that only where there are such objects.
"""

from __future__ import annotations

import contextlib
import os

from kybernate.process import namespaces

_KINDS = ("shm", "sem", "msg")
_QUEUES = "/dev/mqueue"


def any_here() -> bool:
    """Whether the calling process's IPC namespace has any. Takes about 0.1 ms."""
    for kind in _KINDS:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/sysvipc/{kind}") as file:  # noqa: PTH123
            file.readline()  # a heading, then a line each
            if file.readline():
                return True
    return False


def join(pid: int) -> bool:
    """Move the calling process into the IPC namespace of another, if that isn't its own.

    Returns whether it did. Raises OSError.
    """
    path = f"/proc/{pid}/ns/ipc"
    if os.stat(path).st_ino == os.stat("/proc/self/ns/ipc").st_ino:  # noqa: PTH116
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespaces.setns(descriptor, namespaces.NEW_IPC)
    finally:
        os.close(descriptor)
    return True


def show_queues() -> None:
    """At /dev/mqueue those of the calling process's namespace: the mount shows the one in which it was made."""
    if os.path.ismount(_QUEUES):
        namespaces.detach_mount(_QUEUES)
        namespaces.mount_message_queues()
