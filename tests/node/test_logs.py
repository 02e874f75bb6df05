"""Reading output.log: from where its last lines begin, and following while it is written, truncated or ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.node import logs


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def last_lines(path: Path, count: int) -> bytes:
    with opened(path) as descriptor:
        logs.seek_last_lines(descriptor, count)
        return os.read(descriptor, 1 << 20)


@pytest.mark.parametrize(
    ("content", "count", "lines"),
    [
        (b"", 5, b""),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\n\n\n", 2, b"\n\n"),
        (b"a\n", 0, b""),
        (b"x" * 700_000 + b"\nlast\n", 1, b"last\n"),
        (b"line\n" * 200_000, 3, b"line\n" * 3),
    ],
)
def test_last_lines(tmp_path: Path, content: bytes, count: int, lines: bytes) -> None:
    path = tmp_path / "output.log"
    path.write_bytes(content)
    assert last_lines(path, count) == lines


@given(lines=st.lists(st.text(alphabet="ab ", max_size=5), max_size=30), count=st.integers(1, 40), end=st.booleans())
def test_last_lines_are_the_last_of_all(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], count: int, end: bool
) -> None:
    path = tmp_path_factory.mktemp("log") / "output.log"
    content = "\n".join(lines) + ("\n" if end and lines else "")
    path.write_text(content)
    assert last_lines(path, count).decode() == "".join(content.splitlines(keepends=True)[-count:])


async def test_what_is_written_after_a_truncation_is_followed(tmp_path: Path) -> None:
    """As programs that rotate logs leave it."""
    path = tmp_path / "output.log"
    path.write_bytes(b"long before\n")
    ends = False
    with opened(path) as descriptor:
        following = logs.pieces(descriptor, more_may_come=lambda: not ends)
        assert await anext(following) == b"long before\n"
        os.truncate(path, 0)
        with path.open("ab") as file:
            file.write(b"after\n")
        assert await anext(following) == b"after\n"
        ends = True
        assert [piece async for piece in following] == []


async def test_nothing_is_lost_at_the_end(tmp_path: Path) -> None:
    """What was written before it was said to have ended still comes."""
    path = tmp_path / "output.log"
    path.touch()

    def ends() -> bool:
        path.write_bytes(b"last words")
        return False

    with opened(path) as descriptor:
        assert [piece async for piece in logs.pieces(descriptor, more_may_come=ends)] == [b"last words"]
