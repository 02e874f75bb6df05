"""Which files outside of a dump must be there, as they are, for a restore; and whether they are."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from kybernate.model.types import HostPid
from kybernate.process.images import NeededFile
from kybernate.process.open_files import mapped_files, open_files

_NOT_FILES = ("/dev", "/proc", "/sys")
_MOST_STEPS = 4096
"""Of a path, links included."""


def needed_files(pids: Iterable[HostPid], *, root: Path, own: Sequence[str]) -> list[NeededFile]:
    """Regular files that these processes have open or mapped, by path, sorted.

    Args:
        root: the root directory as the processes see it, e.g. /proc/PID/root.
        own: directories that a dump takes along or a restore makes.
    """
    written: dict[str, bool] = {}
    for pid in pids:
        found = [(file.target, file.writable) for file in open_files(pid) if not file.deleted]
        found += [(file.path, file.shared and file.writable) for file in mapped_files(pid) if not file.deleted]
        for path, writes in found:
            if path.startswith("/") and not is_below(path, *_NOT_FILES, *own):
                written[path] = written.get(path, False) or writes
    needed = []
    for path, writes in sorted(written.items()):
        try:
            status = os.lstat(f"{root}{path}")
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            needed.append(NeededFile(path, status.st_size, status.st_mtime_ns, writes))
    return needed


def differences(needed: Iterable[NeededFile]) -> list[str]:
    """A line for each needed file that is missing here or has another size; empty is good.

    A file open for writing may have grown: CRIU decides by how it was opened.
    """
    lines = []
    for file in needed:
        try:
            size = Path(file.path).stat().st_size
            user = leads_astray(file.path, reads_only=not file.written)
        except OSError as e:
            lines.append(f"{file.path} is missing: {e.strerror}")
        else:
            if size != file.bytes and not file.written:
                lines.append(f"{file.path} has {size} bytes, had {file.bytes} when the dump was made")
            elif user is not None:
                lines.append(f"{file.path} is reached by a symbolic link of user {user} to what isn't theirs")
    return lines


def leads_astray(path: str, *, reads_only: bool = False) -> int | None:
    """The user by whose symbolic link a path leads to what belongs to somebody else; None: there is none.

    Paths in dumps had no links in them. CRIU opens them as root: who has put one there since would get another's file.

    Args:
        reads_only: what everybody may read may belong to anybody.

    Raises:
        OSError: there is nothing at that path.
    """
    users = {user for user in _users_of_links(path) if user != 0}
    if not users:
        return None
    found = Path(path).stat()
    if reads_only and found.st_mode & stat.S_IROTH:
        return None
    return min(users - {found.st_uid}, default=None)


def _users_of_links(path: str) -> set[int]:
    """Whose the symbolic links are that are followed on a path. Raises OSError."""
    users = set[int]()
    at, rest = "/", path.split("/")[::-1]
    for _ in range(_MOST_STEPS):
        if not rest:
            return users
        name = rest.pop()
        here = os.path.normpath(f"{at}/{name}")  # without links in it
        status = os.lstat(here)
        if not stat.S_ISLNK(status.st_mode):
            at = here
            continue
        users.add(status.st_uid)
        target = str(Path(here).readlink())
        at = "/" if target.startswith("/") else at
        rest += target.split("/")[::-1]
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def is_below(path: str, *directories: str) -> bool:
    """Whether the path is one of these directories or in one."""
    return any(path == directory or path.startswith(directory.rstrip("/") + "/") for directory in directories)
