"""Reading a workload's output.log: its last lines, and what comes next.

Output is bytes of any program: lines are decoded with replacement and never interpreted. The workload may truncate
the file (it is its stdout), so a reader that is ahead of the end begins anew.

Limits: following polls the file's size, so a line shows up to `interval_s` late; a line longer than
`LONGEST_LINE` is cut into several.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

LONGEST_LINE = 1 << 16
"""Bytes. A program that never writes a newline must not make the agent hold all of it."""
_BLOCK = 1 << 16


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines, oldest first, without reading the rest of the file. Empty when there is no file."""
    try:
        with path.open("rb") as file:
            return _last_lines(file, count=count, end=file.seek(0, os.SEEK_END))
    except FileNotFoundError:
        return []


def _last_lines(file: BinaryIO, *, count: int, end: int) -> list[str]:
    """The last `count` lines of the first `end` bytes."""
    position, data = end, b""
    # One newline more than lines wanted, since the last line ends with one too.
    while position > 0 and data.count(b"\n") <= count and end - position < count * LONGEST_LINE:
        step = min(_BLOCK, position)
        position = file.seek(position - step)
        data = file.read(step) + data
    if not data or count <= 0:
        return []
    lines = data.removesuffix(b"\n").split(b"\n")[-count:]
    return [piece for line in lines for piece in _pieces(line)][-count:]


async def follow(
    path: Path,
    *,
    ended: Callable[[], bool],
    last: int = 0,
    interval_s: float = 0.1,
) -> AsyncIterator[str]:
    """The last `last` lines and then every new one, until `ended()` says that no more can come.

    Args:
        ended: asked when there is nothing to read; what was written before it became true is still delivered.
        interval_s: how long to sleep when there is nothing to read.
    """
    position, backlog = await asyncio.to_thread(_begin, path, last)
    for old in backlog:
        yield old
    rest = b""
    while True:
        no_more = ended()  # asked before reading, so that the last words aren't lost
        position, data = await asyncio.to_thread(_read_from, path, position)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            for piece in _pieces(line):
                yield piece
        while len(rest) > LONGEST_LINE:
            yield _text(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        if data:
            continue
        if no_more:
            break
        await asyncio.sleep(interval_s)
    if rest:
        yield _text(rest)


def _begin(path: Path, last: int) -> tuple[int, list[str]]:
    """Where to read on, and the lines before; a line not yet finished is left for later."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            begin = file.seek(max(0, end - LONGEST_LINE))
            tail = file.read(end - begin)
            end = begin + tail.rfind(b"\n") + 1
            return end, _last_lines(file, count=last, end=end)
    except FileNotFoundError:
        return 0, []


def _read_from(path: Path, position: int) -> tuple[int, bytes]:
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < position:
                position = 0  # truncated
            file.seek(position)
            data = file.read(_BLOCK)
    except FileNotFoundError:
        return position, b""
    return position + len(data), data


def _pieces(line: bytes) -> list[str]:
    return [_text(line[begin : begin + LONGEST_LINE]) for begin in range(0, max(1, len(line)), LONGEST_LINE)]


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "replace")
