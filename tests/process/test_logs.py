"""Reading output.log: last lines of any file, following while it is written, truncated or ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.process import logs
from kybernate.process.logs import follow, last_lines


@pytest.mark.parametrize(
    ("content", "count", "lines"),
    [
        (b"", 5, []),
        (b"a\nb\nc\n", 2, ["b", "c"]),
        (b"a\nb\nc", 2, ["b", "c"]),
        (b"a\n\n\n", 2, ["", ""]),
        (b"a\r\nb\n", 9, ["a", "b"]),
        (b"\xff\x00\n", 1, ["\ufffd\x00"]),
        (b"a\n", 0, []),
        (b"x" * 200_000 + b"\nlast\n", 1, ["last"]),
        (b"line\n" * 100_000, 3, ["line"] * 3),
    ],
)
def test_last_lines(tmp_path, content, count, lines):
    path = tmp_path / "output.log"
    path.write_bytes(content)
    assert last_lines(path, count) == lines


def test_no_file_has_no_lines(tmp_path):
    assert last_lines(tmp_path / "none", 5) == []


@given(lines=st.lists(st.text(alphabet="ab ", max_size=5), max_size=30), count=st.integers(1, 40), end=st.booleans())
def test_last_lines_are_the_last_of_all(tmp_path_factory, lines, count, end):
    path: Path = tmp_path_factory.mktemp("log") / "output.log"
    path.write_text("\n".join(lines) + ("\n" if end and lines else ""))
    everything = path.read_text().removesuffix("\n").split("\n") if path.read_text() else []
    assert last_lines(path, count) == everything[-count:]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "output.log"
    path.write_bytes(b"x" * (3 * logs.LONGEST_LINE))
    assert len(last_lines(path, 1)[0]) <= logs.LONGEST_LINE


class Followed:
    """A follower running beside the test."""

    def __init__(self, path: Path, *, last: int = 0) -> None:
        self.lines: list[str] = []
        self.ended = False
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._run(path, last))

    async def _run(self, path: Path, last: int) -> None:
        async for line in follow(path, ended=lambda: self.ended, last=last, interval_s=0.005):
            self.lines.append(line)
            self._moved.set()

    async def has(self, lines: list[str]) -> None:
        async with asyncio.timeout(5):
            while self.lines != lines:
                self._moved.clear()
                await self._moved.wait()

    async def finish(self) -> list[str]:
        self.ended = True
        async with asyncio.timeout(5):
            await self._task
        return self.lines


async def test_following(tmp_path):
    path = tmp_path / "output.log"
    path.write_text("old\nolder\nnew")
    follower = Followed(path, last=1)
    await follower.has(["older"])
    with path.open("a") as file:
        file.write("est\nunfin")
        file.flush()
        await follower.has(["older", "newest"])
        file.write("ished\nlast words")
    assert await follower.finish() == ["older", "newest", "unfinished", "last words"]


async def test_following_begins_before_the_file_does(tmp_path):
    path = tmp_path / "output.log"
    follower = Followed(path, last=100_000)
    path.write_text("first\n")
    await follower.has(["first"])
    assert await follower.finish() == ["first"]


async def test_following_a_file_that_is_truncated(tmp_path):
    path = tmp_path / "output.log"
    path.write_text("one\ntwo\n")
    follower = Followed(path, last=9)
    await follower.has(["one", "two"])
    path.write_text("new\n")
    await follower.has(["one", "two", "new"])
    await follower.finish()


async def test_nothing_is_lost_at_the_end(tmp_path):
    path = tmp_path / "output.log"
    path.write_text("")
    follower = Followed(path, last=100_000)
    path.write_text("".join(f"{number}\n" for number in range(50_000)))
    assert await follower.finish() == [str(number) for number in range(50_000)]


async def test_following_a_line_without_end(tmp_path):
    path = tmp_path / "output.log"
    path.write_text("")
    follower = Followed(path, last=100_000)
    path.write_bytes(b"x" * (logs.LONGEST_LINE * 2 + 10) + b"\n")
    lines = await follower.finish()
    assert "".join(lines) == "x" * (logs.LONGEST_LINE * 2 + 10)
    assert max(map(len, lines)) <= logs.LONGEST_LINE
