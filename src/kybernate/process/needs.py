"""Which files outside of a dump must be there, as they are, for a restore; and whether they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from kybernate.model.types import HostPid
from kybernate.process.images import NeededFile
from kybernate.process.open_files import mapped_files, open_files

_NOT_FILES = ("/dev", "/proc", "/sys")


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
        except OSError as e:
            lines.append(f"{file.path} is missing: {e.strerror}")
        else:
            if size != file.bytes and not file.written:
                lines.append(f"{file.path} has {size} bytes, had {file.bytes} when the dump was made")
    return lines


def is_below(path: str, *directories: str) -> bool:
    """Whether the path is one of these directories or in one."""
    return any(path == directory or path.startswith(directory.rstrip("/") + "/") for directory in directories)
