"""System V objects of a workload: shared memory, semaphores and message queues belong to its IPC namespace, not to a process.

CRIU dumps what processes hold, and runs inside of the namespaces, so these would be missing after a restore, and the
first call on one of them would fail. Hence they are found beforehand.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from kybernate.model.errors import WorkloadLost
from kybernate.process import namespaces
from kybernate.process.tree import Tree

_KINDS = {
    "shm": "System V shared memory",
    "sem": "System V semaphores",
    "msg": "System V message queues",
}


def objects_of(tree: Tree) -> list[str]:
    """What it has of each kind, in a few words; empty is none. Takes about 0.1 ms.

    Raises:
        WorkloadLost: it has ended.
    """
    try:
        descriptor = os.open(f"/proc/{tree.supervisor_pid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise WorkloadLost(f"workload {tree.name} has ended") from e
    texts: dict[str, str] = {}
    failures: list[OSError] = []

    def look() -> None:
        try:
            namespaces.setns(descriptor, namespaces.NEW_IPC)
            texts.update({kind: Path(f"/proc/sysvipc/{kind}").read_text() for kind in _KINDS})
        except FileNotFoundError:
            texts.clear()  # a kernel without them
        except OSError as e:
            failures.append(e)

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
    counts = {kind: len(text.splitlines()) - 1 for kind, text in texts.items()}  # a heading, then a line each
    return [f"{words} ({counts[kind]})" for kind, words in _KINDS.items() if counts.get(kind, 0) > 0]
