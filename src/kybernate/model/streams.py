"""Streams for logs: a disk that is full costs the lines that don't fit, and nothing else."""

from __future__ import annotations

import contextlib
from typing import TextIO


class Unfailing:
    """Writes on where it can. What can't be written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()
