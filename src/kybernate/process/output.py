"""A log that many processes append to and that no bound holds: its oldest part is given back while they write on.

Writers hold the file itself (CRIU dumps and restores files, not pipes to us), so it can't be renamed away from under them, and to
copy and truncate it would lose what is written in between. Instead a hole is punched where the oldest output lies: no byte that
is kept ever moves, readers and writers go on at the same places, and only the file's apparent length grows. Readers begin at
`first_byte`. Once nobody writes any more, `close_up` makes a plain file of it.

The supervisor uses it, so imports are few.
"""

# ruff: noqa: PTH105, PTH108, PTH123

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_LONGEST = 1 << 42
"""Apparent bytes; file systems end at 16 TiB. A log that comes so far begins anew."""
_KEPT_OF_8 = 6
"""So much stays at each cut, so that not every line causes one."""
_BUSY_S, _CALM_S = 0.05, 0.5
"""Until the next look: a program that prints 20 MB/s is 1 MB further then."""
_PIECE = 1 << 20
_BLOCK = max(4096, os.sysconf("SC_PAGE_SIZE"))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


def first_byte(descriptor: int) -> int:
    """Where what is kept begins. Moves the descriptor's position."""
    try:
        return os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as e:
        if e.errno == errno.ENXIO:  # nothing but a hole, or empty
            return os.lseek(descriptor, 0, os.SEEK_END)
        return 0  # a file system that can't tell has no holes either


def first_line(descriptor: int) -> int:
    """Where the first whole line of what is kept begins. Moves the descriptor's position."""
    begin = first_byte(descriptor)
    if begin == 0:
        return 0
    position = begin
    while position < begin + _PIECE and (piece := os.pread(descriptor, 4096, position)):
        if (at := piece.find(b"\n")) >= 0:
            return position + at + 1
        position += len(piece)
    return begin  # one endless line


def bound(descriptor: int, most: int) -> int:
    """Give back the oldest part of what is more than `most` bytes. Returns the apparent length.

    The descriptor must be open for writing. Raises OSError.
    """
    length = os.fstat(descriptor).st_size
    if length <= most:
        return length
    if length > _LONGEST:
        os.ftruncate(descriptor, 0)
        return 0
    if length - first_byte(descriptor) > most:
        end = (length - most * _KEPT_OF_8 // 8) // _BLOCK * _BLOCK
        if end > 0 and _libc.fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, 0, end):
            if ctypes.get_errno() != errno.EOPNOTSUPP:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            os.ftruncate(descriptor, 0)
            return 0
    return length


def close_up(path: str) -> None:
    """Make a plain file of one that begins with a hole. Nobody may be writing; who reads it still reads the old one to its end.

    Raises OSError; it is as it was then.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as old:
        status = os.fstat(old.fileno())
        if not stat.S_ISREG(status.st_mode) or (begin := first_line(old.fileno())) == 0:
            return
        draft = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        new = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.lseek(old.fileno(), begin, os.SEEK_SET)
            while piece := old.read(_PIECE):
                while piece:
                    piece = piece[os.write(new, piece) :]
            if os.geteuid() == 0:
                os.fchown(new, status.st_uid, status.st_gid)
            os.fchmod(new, stat.S_IMODE(status.st_mode))
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
        finally:
            os.close(new)


class Bounded:
    """One such log, looked after by a process that does something else as well."""

    def __init__(self, path: str, most: int) -> None:
        self._path = path
        self._most = most
        self._descriptor: int | None = None
        self._length = 0

    def look(self) -> float:
        """Returns in how many seconds to look again. What fails is tried again then."""
        try:
            if self._descriptor is None:
                self._descriptor = self._open()
            before, self._length = self._length, bound(self._descriptor, self._most)
        except OSError:
            return _CALM_S
        return _BUSY_S if self._length - before > self._most // 64 else _CALM_S

    def end(self) -> None:
        """Nobody writes any more."""
        with contextlib.suppress(OSError):
            close_up(self._path)

    def _open(self) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)  # a workload of root's has put something in its place
        raise OSError(errno.EINVAL, "no regular file")
