"""What a workload's lives would share, since it lies outside of what a dump takes along: files that it writes, deleted files
that have to be made again at their old path, file locks and bound Unix sockets. And what of it another life still holds.

A life that comes back while another one holds a socket or a lock would take the one away and wait for the other; it is
refused before anything is done. What isn't held by anybody any more, as after a pause, comes back as it was.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kybernate.model.types import HostPid
from kybernate.process.images import How, Lock, Shared
from kybernate.process.needs import is_below, leads_astray
from kybernate.process.open_files import OpenFile, mapped_files, open_files

_NOT_FILES = ("/dev", "/proc", "/sys")
_LOCK = re.compile(r"^lock:\s+\d+:\s+(\S+)\s+\S+\s+(READ|WRITE)\s+\S+\s+\S+\s+(\d+)\s+(\d+|EOF)$", re.MULTILINE)
"""In /proc/PID/fdinfo/N: kind, of which there are FLOCK, POSIX and OFDLCK; mode; first and last byte."""
_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of fcntl(2)."""
_SQLITE = b"SQLite format 3\0"
_MOST_LINES = 20


def shared_by(pids: Sequence[HostPid], *, own: Sequence[str]) -> list[Shared]:
    """What these processes would share with other lives, sorted by path.

    Args:
        own: directories that a dump takes along or a restore makes.
    """
    found: set[Shared] = set()
    bound: dict[str, str] = {}
    for pid in pids:
        files = list(open_files(pid))
        for file in files:
            if _is_file(file.target, own):
                found.update(_of_file(file))
        for mapping in mapped_files(pid):
            if (mapping.deleted or (mapping.shared and mapping.writable)) and _is_file(mapping.path, own):
                found.add(Shared(mapping.path, How.DELETED if mapping.deleted else How.WRITTEN))
        sockets = {str(file.socket_inode) for file in files if file.socket_inode is not None}
        bound |= {inode: path for inode, path in _bound(pid).items() if inode in sockets} if sockets else {}
    found.update(Shared(path, How.BOUND) for path in bound.values() if not is_below(path, *own))
    return sorted(found, key=lambda each: (each.path, each.how, str(each.lock)))


def databases(files: Iterable[OpenFile], *, below: Sequence[str]) -> list[str]:
    """Paths of SQLite databases among these files that are open for writing and lie in one of these directories.

    Others look whether a file is still the same, too, and can't be known by it.
    """
    candidates = {file.target: file for file in files if file.writable and is_below(file.target, *below)}
    return sorted(path for path, file in candidates.items() if not file.deleted and _is_database(file))


def describe(shared: Iterable[Shared]) -> list[str]:
    """A line for each thing that a clone would share, or could not have while this life goes on. Pure."""
    words = {
        How.WRITTEN: "clones would all write {}, which lies in no layer",
        How.DELETED: "the deleted file {} lies in no layer: clones are made one after the other",
        How.LOCKED: "{} lies in no layer and is locked: no clone can be made while another life has the lock",
        How.BOUND: "the Unix socket {} lies in no layer: no clone can be made while another life has it bound",
    }
    lines = list(
        dict.fromkeys(words[each.how].format(os.fsencode(each.path).decode(errors="replace")) for each in shared)
    )
    more = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], *([f"and so with {more} more files, locks and sockets"] if more > 0 else [])]


def missing(shared: Iterable[Shared]) -> list[str]:
    """A line for each directory that a socket or a deleted file must be made in again, and that isn't there, or is another."""
    lines = []
    for each in shared:
        if each.how not in (How.DELETED, How.BOUND):
            continue
        parent = Path(each.path).parent
        try:
            user = leads_astray(str(parent)) if parent.is_dir() else None
        except OSError:
            user = None
        if not parent.is_dir():
            lines.append(f"the directory {parent} is missing, where it had {Path(each.path).name}")
        elif user is not None:
            lines.append(f"{parent} is reached by a symbolic link of user {user} to what isn't theirs")
    return list(dict.fromkeys(lines))


def held_by_others(shared: Iterable[Shared]) -> list[str]:
    """A line for each thing that a life can't have now, since somebody else holds it. Empty is good.

    Looks without taking anything away, but for a moment a lock of flock(2).
    """
    return list(dict.fromkeys(line for each in shared if (line := _hindrance(each)) is not None))


def _is_file(path: str, own: Sequence[str]) -> bool:
    """Whether it lies outside of what is the life's own. Right below the root the kernel has names for what is no file, such as
    `/memfd:NAME`, `/SYSV00000000` and `/[aio]`."""
    if not path.startswith("/") or path.startswith("/memfd:") or path.count("/") == 1:
        return False
    return not is_below(path, *_NOT_FILES, *own)


def _of_file(file: OpenFile) -> Iterator[Shared]:
    status = file.stat()
    if status is None or stat.S_ISSOCK(status.st_mode):
        return
    if file.deleted:
        yield Shared(file.target, How.DELETED)
        return
    if file.writable:
        yield Shared(file.target, How.WRITTEN)
    with contextlib.suppress(OSError):
        for kind, mode, first, last in _LOCK.findall(Path(f"/proc/{file.pid}/fdinfo/{file.number}").read_text()):
            if kind in ("FLOCK", "POSIX", "OFDLCK"):
                length = 0 if last == "EOF" else int(last) - int(first) + 1
                yield Shared(file.target, How.LOCKED, Lock(kind, mode == "WRITE", int(first), length))


def _is_database(file: OpenFile) -> bool:
    status = file.stat()
    if status is None or not stat.S_ISREG(status.st_mode):
        return False
    with contextlib.suppress(OSError), Path(file.link).open("rb", buffering=0) as content:
        return content.read(len(_SQLITE)) == _SQLITE
    return False


def _bound(pid: HostPid) -> dict[str, str]:
    """Paths of the Unix sockets in this process's network namespace, by inode. Abstract ones are that namespace's own.

    A relative one counts where it leads to a socket from the process's directory now.
    """
    try:
        lines = Path(f"/proc/{pid}/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
        directory = os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - as the process sees it
    except OSError:
        return {}
    fields = (line.split(None, 7) for line in lines)
    named = {found[6]: found[7] for found in fields if len(found) == 8 and not found[7].startswith("@")}
    bound = {}
    for inode, path in named.items():
        whole = os.path.normpath(f"{directory}/{path}")
        if path.startswith("/"):
            bound[inode] = os.path.normpath(path)
        elif Path(f"/proc/{pid}/root{whole}").is_socket():
            bound[inode] = whole
    return bound


def _hindrance(shared: Shared) -> str | None:
    if shared.how is How.BOUND and _is_bound(shared.path):
        return f"the Unix socket {shared.path} is bound by a program that runs"
    if shared.lock is not None and _is_locked(shared.path, shared.lock):
        return f"the file {shared.path} is locked by a program that runs"
    return None


def _is_bound(path: str) -> bool:
    """Asked for datagrams: a listener for connections is of another type and doesn't hear of it (unix(7), EPROTOTYPE)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        try:
            asking.connect(path)
        except OSError as e:
            return e.errno in (errno.EPROTOTYPE, errno.EPERM)  # EPERM: it takes datagrams, but of one sender only
    return True


def _opened(path: str) -> int:
    """A regular file, and no other: to open a device does something. Raises OSError."""
    place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.EINVAL, "no regular file", path)
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(place)


def _is_locked(path: str, lock: Lock) -> bool:
    try:
        descriptor = _opened(path)
    except OSError:
        return False
    try:
        if lock.kind == "FLOCK":
            fcntl.flock(descriptor, (fcntl.LOCK_EX if lock.exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return False
        kind = fcntl.F_WRLCK if lock.exclusive else fcntl.F_RDLCK
        asked = _FLOCK.pack(kind, os.SEEK_SET, lock.start, lock.length, 0)
        answer = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
        return bool(answer[0] != fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
