"""What a CRIU that was killed in the middle of a dump leaves behind in the processes it dumped, and putting it right.

The kernel lets go of them, and CRIU's code inside restores each by itself, unless it was just being put in: then the
process dies of SIGTRAP (some 1 in 20 kills, and nothing helps). Two things stay (found by killing it at every moment):
TCP connections in repair mode, in which no call on them works, and extra names of unlinked files.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from kybernate.model.types import HostPid
from kybernate.process.descriptor_copies import copies
from kybernate.process.open_files import open_files

_TCP_REPAIR = 19


def mend(pids: Iterable[HostPid], *, shared_memory: Path) -> int:
    """Undo it. Harmless for what is whole. Returns how many things were put right.

    Args:
        shared_memory: the processes' /dev/shm, as we can reach it.
    """
    mended = sum(_mend_sockets(pid) for pid in pids)
    # Names that CRIU gives to semaphores and the like, which glibc unlinks; the next dump would trip over them.
    for path in shared_memory.glob("link_remap.*"):
        with contextlib.suppress(OSError):
            path.unlink()
            mended += 1
    return mended


def _mend_sockets(pid: HostPid) -> int:
    mended = 0
    for _, copy in copies(pid, [file.number for file in open_files(pid) if file.socket_inode is not None]):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(copy)) as held:
            mended += _leave_repair(held)
    return mended


def _leave_repair(copy: socket.socket) -> bool:
    if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.type != socket.SOCK_STREAM:
        return False
    if not copy.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR):
        return False
    copy.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
    # Leaving takes this away, and a server that starts again wants its port although connections still use it.
    copy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return True
