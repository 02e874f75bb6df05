"""A log's disk that is full costs the lines that don't fit, and nothing else."""

from __future__ import annotations

import errno
import io

import pytest

from kybernate.model.streams import Unfailing

pytestmark = pytest.mark.unit


class Full(io.StringIO):
    """A file on a disk with room for so many characters."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, text: str, /) -> int:
        if len(text) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(text)
        return super().write(text)

    def flush(self) -> None:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().flush()


def test_what_fits_is_written_and_what_does_not_is_dropped() -> None:
    disk = Full(8)
    stream = Unfailing(disk)
    assert [stream.write(text) for text in ("12345", "6789", "678")] == [5, 4, 3], (
        "the writer is told that all went well"
    )
    stream.flush()
    assert disk.getvalue() == "12345678"


def test_a_stream_that_was_closed_fails_nobody() -> None:
    closed = io.StringIO()
    closed.close()
    stream = Unfailing(closed)
    assert stream.write("late") == 4
    stream.flush()
