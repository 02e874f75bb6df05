"""prometheus_client's mapped files with their room taken ahead.

The library makes its files longer without taking room for them: on a full file system a worker is then killed by SIGBUS at its next
count. Here the room is taken first, and where there is none an OSError says so and nothing has changed.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import mmap_dict, values

_FIRST_BYTES = 1 << 16
_KEY_BYTES_MAX = 1 << 14
"""Of one counter: its name, help and labels, models' names among them, with what the file adds."""


class AllocatedDict(mmap_dict.MmapedDict):
    """One file of counters. Raises OSError (ENOSPC) where there is no room for another counter."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            _take(filename, _FIRST_BYTES)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        if self._used + _KEY_BYTES_MAX > self._capacity:
            _take(self._fname, 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def preallocate_files() -> None:
    """From now on, for all metrics of this process. Before the first one has counted."""
    values.MmapedDict = AllocatedDict  # type: ignore[attr-defined]  # it has no setting for this


def _take(filename: str, size: int) -> None:
    there = Path(filename).exists()
    descriptor = os.open(filename, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size < size:
            os.posix_fallocate(descriptor, 0, size)
    except OSError:
        if not there:  # readers take an empty file for one that is about to begin
            Path(filename).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
