"""The bulk of a dump in files of a directory: of dumps that are in no store."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kybernate.process.bulk import Taken, Zeros, holds_pages, is_bulk, write_all
from kybernate.process.criu_images import PAGE_BYTES

_BLOCK_BYTES = 1 << 20


class DirectoryBulk:
    """In files of a directory. A `Sink` and a `Source`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def take(self, name: str, pipe: int) -> Taken:
        """See `Sink`. Raises OSError."""
        zero: list[NDArray[np.bool_]] = []
        buffer = memoryview(bytearray(_BLOCK_BYTES))
        with (self._directory / name).open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            while got := _fill(pipe, buffer):
                content = buffer[:got]
                if not holds_pages(name):
                    file.write(content)
                    continue
                pages = np.frombuffer(content, dtype="<u8").reshape(-1, PAGE_BYTES // 8)
                found: NDArray[np.bool_] = ~np.any(pages, axis=1)
                zero.append(found)
                file.write(pages[~found].tobytes())
            return Taken(file.tell(), np.concatenate(zero) if zero else np.zeros(0, dtype=np.bool_))

    def forget(self) -> None:
        """See `Sink`."""
        for path in self._directory.iterdir():
            if is_bulk(path.name):
                path.unlink()

    def send(self, name: str, pipe: int, zeros: Zeros) -> None:
        """See `Source`. Raises OSError."""
        written = 0
        with (self._directory / name).open("rb", buffering=0) as file, contextlib.suppress(BrokenPipeError):
            for at, length in zeros:
                _copy(file, pipe, at - written)
                write_all(pipe, bytes(length))
                written = at + length
            _copy(file, pipe, None)


def _fill(pipe: int, view: memoryview) -> int:
    """Less than the view only at the end."""
    done = 0
    while done < len(view) and (count := os.readv(pipe, [view[done:]])):
        done += count
    return done


def _copy(file: FileIO, pipe: int, length: int | None) -> None:
    """So many bytes; None: all there are."""
    while length is None or length > 0:
        content = file.read(_BLOCK_BYTES if length is None else min(length, _BLOCK_BYTES))
        if not content:
            return
        write_all(pipe, content)
        if length is not None:
            length -= len(content)
