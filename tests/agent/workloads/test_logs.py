"""Reading output.log: from where its last lines begin, and following while it is written, truncated or ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.agent.workloads import logs
from kybernate.process import output

pytestmark = pytest.mark.unit


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


def test_a_workload_that_makes_its_output_enormous_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Its owner may do so when nobody looks after it any more. To look through a tebibyte takes minutes."""
    path = tmp_path / "output.log"
    path.write_bytes(b"begin\n")
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with opened(path) as descriptor:
        logs.seek_last_lines(descriptor, 10)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == (1 << 40) - (64 << 20)


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


async def test_what_was_given_back_is_jumped_over_and_said(tmp_path: Path) -> None:
    """A reader that is slower than the program: it goes on at the next whole line."""
    path = tmp_path / "output.log"
    every = [b"line %07d\n" % number for number in range(400_000)]
    with path.open("a+b", buffering=0) as log, opened(path) as descriptor:
        log.write(b"".join(every[:1000]))
        following = logs.pieces(descriptor, more_may_come=lambda: False)
        read = await anext(following)
        log.write(b"".join(every[1000:]))
        output.bound(log.fileno(), 1 << 20)
        read += b"".join([piece async for piece in following])
    before, said, after = read.partition(b"\n[kybernate: ")
    assert before == b"".join(every[:1000])
    text, _, after = after.partition(b"\n")
    assert said
    assert text.endswith(b"of output are no longer kept]")
    kept = after.splitlines(keepends=True)
    assert len(kept) > 50_000
    assert kept == every[-len(kept) :]


async def test_old_output_is_shown_from_the_first_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    every = [b"line %07d\n" % number for number in range(400_000)]
    with path.open("a+b", buffering=0) as log, opened(path) as descriptor:
        log.write(b"".join(every))
        output.bound(log.fileno(), 1 << 20)
        logs.seek_first_line(descriptor)
        kept = b"".join([piece async for piece in logs.pieces(descriptor, more_may_come=lambda: False)])
        count = kept.count(b"\n")
        assert kept == b"".join(every[-count:])
    assert last_lines(path, 3) == b"".join(every[-3:])
    assert last_lines(path, 300_000)[:100] == kept[:100], "more lines than are kept: all that are"
