"""Periodic timerfds that fire on after a restore, in which CRIU alone would leave them disarmed.

Such a timer stands still from when it expires until somebody reads it, and /proc says meanwhile that nothing is left of its
time. CRIU writes that down as it stands, and a time of zero given to timerfd_settime(2) means *disarm*.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

from kybernate.model.types import HostPid
from kybernate.process import criu_images
from kybernate.process.criu_images import Fields, integer
from kybernate.process.descriptor_copies import copies
from kybernate.process.open_files import OpenFile

_FILES = "files.img"
_TIMERFD = 12
"""Field `tfd` of a file's entry."""
_VALUE_S, _VALUE_NS, _INTERVAL_S, _INTERVAL_NS = 7, 8, 9, 10
_LINK = "anon_inode:[timerfd]"
_ITIMERSPEC_BYTES = 32

_libc = ctypes.CDLL(None, use_errno=True)


def count_expirations(held: Mapping[HostPid, Sequence[OpenFile]]) -> None:
    """Have the kernel count what has expired and start those timers again, in phase: timerfd_gettime(2) does, and the
    processes can't tell. What expires after that has a period shorter than a dump takes to look at it."""
    found = ctypes.create_string_buffer(_ITIMERSPEC_BYTES)
    for pid, files in held.items():
        for _, copy in copies(pid, [file.number for file in files if file.target == _LINK]):
            _libc.timerfd_gettime(copy, found)


def rearm(directory: Path) -> int:
    """In a dump, let those that stand still expire next after a whole period; their ticks are kept. Returns how many.

    Raises:
        BadInput: the dump is damaged.
    """
    path = directory / _FILES
    messages = list(criu_images.entries(path))
    mended = 0
    for number, message in enumerate(messages):
        file = criu_images.fields(message)
        for timer in file.get(_TIMERFD, []):
            if isinstance(timer, bytes) and (armed := _armed(criu_images.fields(timer))) is not None:
                messages[number] = criu_images.message(file | {_TIMERFD: [armed]})
                mended += 1
    if mended:
        criu_images.rewrite(path, messages)
    return mended


def _armed(timer: Fields) -> bytes | None:
    """None: it is armed as it is, or was never set, or fires once."""
    interval = integer(timer, _INTERVAL_S), integer(timer, _INTERVAL_NS)
    if not any(interval) or integer(timer, _VALUE_S) or integer(timer, _VALUE_NS):
        return None
    return criu_images.message(timer | {_VALUE_S: [interval[0]], _VALUE_NS: [interval[1]]})
