"""A workload's output: the last lines, and what comes. Its oldest part is given back while it runs (process/output.py).

The file lies where the workload's own user may write, so it is opened as a regular file or not at all.
Reading is done in pieces in the loop: the file is in the page cache, a piece takes microseconds.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from kybernate.model.errors import NotFound
from kybernate.model.quantities import format_size
from kybernate.process import output
from kybernate.process.tree import OUTPUT

PIECE_BYTES = 256 * 1024
_LOOK_S = 0.1
_LOOKED_THROUGH_BYTES = 64 << 20
"""For the last lines, at most: a file with an enormous hole would keep the loop busy for minutes."""
_LAST_BYTES = 8192
_LAST_SHOWN = 300
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def open_output(run_directory: Path, name: str) -> int:
    """A descriptor of the output file.

    Raises:
        NotFound: there is none (the workload could not be started, or was removed).
    """
    try:
        descriptor = os.open(run_directory / OUTPUT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise NotFound(f"workload {name} has no output", hint=f"`kybernate explain {name}` says why") from e
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotFound(f"the output of workload {name} is no regular file any more")
    return descriptor


def seek_last_lines(descriptor: int, lines: int) -> None:
    """Go to where the last `lines` lines begin, or all that is kept if it has no more; at most 64 MiB of it."""
    end = os.fstat(descriptor).st_size
    begin = max(output.first_line(descriptor), end - _LOOKED_THROUGH_BYTES)
    position, found = end, 0
    while position > begin:
        start = max(begin, position - PIECE_BYTES)
        piece = os.pread(descriptor, position - start, start)
        if position == end and piece.endswith(b"\n"):
            piece = piece[:-1]  # the end of the last line begins no other
        at = len(piece)
        while (at := piece.rfind(b"\n", 0, at)) >= 0:
            found += 1
            if found == lines:
                os.lseek(descriptor, start + at + 1, os.SEEK_SET)
                return
        position = start
    os.lseek(descriptor, begin if lines else end, os.SEEK_SET)


def seek_first_line(descriptor: int) -> None:
    """Go to where what is kept begins."""
    os.lseek(descriptor, output.first_line(descriptor), os.SEEK_SET)


def _next(descriptor: int) -> bytes:
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    piece = os.read(descriptor, PIECE_BYTES)
    # Asked after reading: what was given back meanwhile reads as zeros.
    if piece and position < output.first_byte(descriptor):
        begin = output.first_line(descriptor)
        os.lseek(descriptor, begin, os.SEEK_SET)
        return f"\n[kybernate: {format_size(begin - position)} of output are no longer kept]\n".encode()
    os.lseek(descriptor, position + len(piece), os.SEEK_SET)
    return piece


def last_line(run_directory: Path, name: str) -> str:
    """What it said last, in one line of plain text; empty where it said nothing. Of programs that end early that is the reason."""
    try:
        descriptor = open_output(run_directory, name)
    except NotFound:
        return ""
    try:
        end = os.fstat(descriptor).st_size
        text = os.pread(descriptor, _LAST_BYTES, max(0, end - _LAST_BYTES)).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    lines = [_COLOURS.sub("", line).strip() for line in text.splitlines()]
    line = next((line for line in reversed(lines) if line), "")
    return "".join(c if c.isprintable() else "·" for c in line)[:_LAST_SHOWN]


async def pieces(descriptor: int, *, more_may_come: Callable[[], bool]) -> AsyncIterator[bytes]:
    """What is there and, as long as `more_may_come`, what is written later.

    Where more was given back than was read by then, a line says so.
    """
    while True:
        last_look = not more_may_come()  # asked before reading: what was written before the end is still read
        if os.fstat(descriptor).st_size < os.lseek(descriptor, 0, os.SEEK_CUR):
            os.lseek(descriptor, 0, os.SEEK_SET)  # truncated, by the program or by who rotates logs
        while piece := _next(descriptor):
            yield piece
        if last_look:
            return
        await asyncio.sleep(_LOOK_S)
