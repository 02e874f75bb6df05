"""What processes hold, read from /proc: open files and mapped files. Paths are as the processes see them.

What vanishes while it is read is left out: a running process changes all the time, and who needs certainty freezes it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kybernate.model.types import HostPid

_DELETED = " (deleted)"
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ (\S{4}) [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) +(.+)")


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One descriptor of a process."""

    pid: HostPid
    number: int
    target: str
    """A path, or what the kernel says instead: `socket:[123]`, `anon_inode:[eventpoll]`."""
    deleted: bool
    flags: int
    """As open(2) takes them."""
    link: str
    """/proc/PID/fd/N, which leads to the very file."""

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def socket_inode(self) -> int | None:
        """None: no socket."""
        return int(self.target[8:-1]) if self.target.startswith("socket:[") else None

    @property
    def socket_protocol(self) -> str:
        """What the kernel calls it, such as `UNIX-SEQPACKET`; empty where it isn't told."""
        try:
            return os.getxattr(self.link, "system.sockprotoname").rstrip(b"\0").decode("ascii", "replace")
        except OSError:
            return ""

    def stat(self) -> os.stat_result | None:
        """Of the file itself; None when it is closed by now."""
        try:
            return Path(self.link).stat()
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class MappedFile:
    """One mapping of a file, or of memory that the kernel names by a path."""

    pid: HostPid
    path: str
    deleted: bool
    shared: bool
    writable: bool


def open_files(pid: HostPid) -> Iterator[OpenFile]:
    """The descriptors of a process; of all threads, since they share them as a rule."""
    base = Path(f"/proc/{pid}/fd")
    try:
        numbers = sorted(int(name) for name in os.listdir(base))  # noqa: PTH208 - the names alone
    except OSError:
        return
    for number in numbers:
        with contextlib.suppress(OSError, ValueError):
            link = f"{base}/{number}"
            target = os.readlink(link)  # noqa: PTH115 - "pipe:[1]" is no path
            flags = _flags(Path(f"/proc/{pid}/fdinfo/{number}").read_text())
            deleted = target.endswith(_DELETED)
            yield OpenFile(pid, number, target.removesuffix(_DELETED), deleted, flags, link)


def mapped_files(pid: HostPid) -> Iterator[MappedFile]:
    """What a process maps, each path and way of mapping once."""
    try:
        text = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")
    except OSError:
        return
    seen = set()
    for line in text.splitlines():
        match = _MAPPING.match(line)
        if match is None or match[5].startswith("["):
            continue
        path = match[5].replace("\\012", "\n")
        mode = match[1]
        mapping = MappedFile(pid, path.removesuffix(_DELETED), path.endswith(_DELETED), mode[3] == "s", mode[1] == "w")
        if mapping not in seen:
            seen.add(mapping)
            yield mapping


def _flags(fdinfo: str) -> int:
    for line in fdinfo.splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8)
    raise ValueError("fdinfo without flags")
