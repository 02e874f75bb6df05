"""System V shared memory that was removed while it was mapped: it goes with its last mapping, after a restore, too.

CRIU makes such a segment as if nobody had removed it. So it is removed once more, before anything runs.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from kybernate.process import sysvipc
from kybernate.process.criu_images import Fields, entries, fields, integer

_DESCRIPTION, _MODE, _IDENTIFIER = 1, 6, 7
"""Fields of CRIU's messages IpcShmEntry and IpcDescEntry (images/ipc-shm.proto, ipc-desc.proto)."""
_REMOVED = 0o1000
"""SHM_DEST, beside the rights."""
_IPC_RMID = 0


def found(images: Path) -> list[int]:
    """The identifiers of a dump's. Raises BadInput."""
    descriptions = [_description(entry) for path in images.glob("ipcns-shm-*.img") for entry in entries(path)]
    return [integer(one, _IDENTIFIER) for one in descriptions if integer(one, _MODE) & _REMOVED]


def _description(entry: bytes) -> Fields:
    inner = fields(entry)[_DESCRIPTION][0]
    return fields(inner) if isinstance(inner, bytes) else {}


def remove_again(images: int, pid: int) -> None:
    """In the IPC namespace of a process, which the calling process joins for good.

    Args:
        images: the dump's directory, as a descriptor.

    Raises:
        BadInput, OSError: nothing more is lost by that than memory, until the workload ends.
    """
    if not (identifiers := found(Path(f"/proc/self/fd/{images}"))):
        return
    sysvipc.join(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    for identifier in identifiers:
        if libc.shmctl(identifier, _IPC_RMID, None):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
