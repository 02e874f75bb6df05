"""Copies of another process's descriptors: the same open file, so what is set on the copy is set for that process.

pidfd_getfd(2), Linux 5.6; needs the right to trace the process. It works on a frozen one, and on one that CRIU holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator

from kybernate.model.types import HostPid

_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def copies(pid: HostPid, numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Pairs of a descriptor's number there and its copy here. Each copy is closed when the next is asked for.

    What is closed by now, or may not be copied, is left out.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        for number in numbers:
            copy = _libc.syscall(_PIDFD_GETFD, ctypes.c_int(pidfd), ctypes.c_int(number), ctypes.c_uint(0))
            if copy < 0:
                continue
            try:
                yield number, copy
            finally:
                with contextlib.suppress(OSError):
                    os.close(copy)
    finally:
        os.close(pidfd)
