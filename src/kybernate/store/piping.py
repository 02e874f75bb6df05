"""Stores what comes out of a pipe: a process's pages, or a tar file, without a file in between.

One thread reads, in blocks; others hash what it has read and write it, from the same memory. Pages of zeros are left out and
reported, since only who knows what the pages are can say whether they must come back; the others are cut where their content
says (`cutting`), and in a block what is new is written together.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kybernate.model.errors import BadInput, Cancelled
from kybernate.model.types import CHUNK_BYTES
from kybernate.store import cutting
from kybernate.store.memory import PAGE_BYTES, Buffer, BufferPool, is_zero
from kybernate.store.tenants import ID_BYTES, ChunkId

if TYPE_CHECKING:
    from kybernate.store.chunks import ChunkWriter
    from kybernate.store.draft import Draft
    from kybernate.store.progress import Meter
    from kybernate.store.tenants import Keys

BLOCK_BYTES = 8 << 20
"""Read before it is written; of whole chunks."""
_HEAD_BYTES = CHUNK_BYTES
"""In front of a block: the beginning of the chunk that goes on in it."""
_BLOCKS = 6
"""At most so many at once, of all pipes of a snapshot."""
_CANCEL_S = 0.2


@dataclass(frozen=True, slots=True)
class Piped:
    """What came out of a pipe. Sizes in bytes."""

    size: int
    """Of what is stored: without the pages of zeros that were left out."""
    zero: NDArray[np.bool_]
    """Of pages: each that came, whether it was left out since it is zeros."""
    pages: bool
    lengths: tuple[int, ...]
    """Of its chunks."""
    table: bytearray
    """The chunks' ids; complete once the writer's tasks are over."""

    def ids(self) -> Iterator[ChunkId]:
        return (ChunkId(bytes(self.table[at : at + ID_BYTES])) for at in range(0, len(self.table), ID_BYTES))


class Pipes:
    """What a snapshot's content comes out of. `take` may be called by any thread, `add` and `put_ids` by the writer's."""

    def __init__(
        self,
        draft: Draft,
        chunks: ChunkWriter,
        keys: Keys,
        meter: Meter,
        *,
        submit: Callable[..., None],
        check: Callable[[], None],
    ) -> None:
        """
        Args:
            submit: has a task done by another thread: `submit(task, *arguments)`. Raises once one has failed.
            check: raises when it is to be given up; asked several times a second.
        """
        self._blocks = BufferPool(_BLOCKS, _HEAD_BYTES + BLOCK_BYTES)
        self._draft = draft
        self._chunks = chunks
        self._keys = keys
        self._meter = meter
        self._submit = submit
        self._check = check
        self._added: list[tuple[int, Piped]] = []
        """With where their ids go, which are known once all tasks are over."""

    def take(self, pipe: int, *, pages: bool) -> Piped:
        """Store what a pipe gives until its end, without a file in between, by several threads. `add` makes a file of it.

        Any number may be read at once, also while other content is added, but all are to be over before `commit`.

        Args:
            pages: it gives memory, page by page: those of zeros are left out.

        Raises:
            BadInput: pages that aren't whole. OSError.
            whatever went wrong while something was written, as `commit`.
        """
        intake = _Intake(
            pipe,
            pages=pages,
            pool=self._blocks,
            chunks=self._chunks,
            keys=self._keys,
            meter=self._meter,
            submit=self._submit,
        )
        try:
            return intake.run(self._check)
        except Cancelled:
            self._check()  # where a task has failed, and nobody gets a buffer any more
            raise

    def add(self, path: str, piped: Piped, *, mode: int = 0o600) -> None:
        """A file of what came out of a pipe. Raises BadInput for a bad or repeated path."""
        self._draft.check_new(path)
        # A file of less than 2 MiB may be cut, too: without the cuts its chunks would be read as one.
        cuts = piped.lengths if piped.pages and len(piped.lengths) > 1 else ()
        first = self._draft.grow(len(piped.lengths))
        file = self._draft.add_file(path, mode=mode, first=first, size=piped.size, cuts=cuts)
        if file.count != len(piped.lengths):
            raise BadInput(f"{path} came in {len(piped.lengths)} pieces and would be read in {file.count}")
        self._added.append((first, piped))

    def put_ids(self) -> None:
        """Of all that was added, once all tasks are over."""
        for first, piped in self._added:
            for number, chunk in enumerate(piped.ids()):
                self._draft.put(first + number, chunk)

    def close(self) -> None:
        """Who waits for a block is told that there will be none."""
        self._blocks.close()


class _Intake:
    """What one pipe gives. `run` is called once."""

    def __init__(
        self,
        pipe: int,
        *,
        pages: bool,
        pool: BufferPool,
        chunks: ChunkWriter,
        keys: Keys,
        meter: Meter,
        submit: Callable[..., None],
    ) -> None:
        """
        Args:
            pages: they are pages: cut by content, those of zeros left out. Else it is cut every 2 MiB.
            submit: has a task done by another thread: `submit(task, *arguments)`. Raises once one has failed.
        """
        self._pipe = pipe
        self._pool = pool
        self._chunks = chunks
        self._keys = keys
        self._meter = meter
        self._submit = submit
        self._cutter = cutting.Cutter() if pages else None
        self._lengths: list[int] = []
        self._table = bytearray()
        self._zero: list[NDArray[np.bool_]] = []

    def run(self, check: Callable[[], None]) -> Piped:
        """Read until the pipe's end. What was read may still be being written then.

        Args:
            check: raises when it is to be given up; asked several times a second.

        Raises:
            BadInput: pages that aren't whole. OSError. What a task raised.
        """
        carried = b""
        while True:
            self._wait(check)  # with no block in the hand: who writes into this pipe may wait for another one's
            block = self._pool.take()
            try:
                begin = _HEAD_BYTES - len(carried)
                block.view[begin:_HEAD_BYTES] = carried
                got = self._fill(block.view[_HEAD_BYTES:], check)
                end = _HEAD_BYTES + got
                if self._cutter is not None:
                    end, lengths = self._pages(block.view, end, last=got < BLOCK_BYTES)
                else:
                    lengths = [min(CHUNK_BYTES, end - at) for at in range(begin, end, CHUNK_BYTES)]
                cut = begin + sum(lengths)
                carried = bytes(block.view[cut:end])
            except BaseException:
                self._pool.give(block)
                raise
            self._store(block, begin, lengths)
            if got < BLOCK_BYTES:
                break
        zero = np.concatenate(self._zero) if self._zero else np.zeros(0, dtype=np.bool_)
        return Piped(sum(self._lengths), zero, self._cutter is not None, tuple(self._lengths), self._table)

    def _wait(self, check: Callable[[], None]) -> None:
        poller = select.poll()
        poller.register(self._pipe, select.POLLIN)
        while not poller.poll(_CANCEL_S * 1000):
            check()

    def _fill(self, view: memoryview, check: Callable[[], None]) -> int:
        """Less than the view only at the end."""
        done = 0
        while done < len(view):
            self._wait(check)
            count = os.readv(self._pipe, [view[done:]])
            if count == 0:
                break
            done += count
        return done

    def _pages(self, block: memoryview, end: int, *, last: bool) -> tuple[int, list[int]]:
        """Leave out zeros and cut. Returns where the pages end now, and the lengths of whole chunks."""
        assert self._cutter is not None
        if end % PAGE_BYTES:
            raise BadInput("pages came to an end in the middle of one")
        came = block[_HEAD_BYTES:end]
        sums = cutting.sums(came)
        zero = sums == 0
        for number in np.flatnonzero(zero).tolist():
            zero[number] = is_zero(came[number * PAGE_BYTES : (number + 1) * PAGE_BYTES])
        self._zero.append(zero)
        if zero.any():
            end = _HEAD_BYTES + _without(came, zero)
            sums = sums[~zero]
            self._meter.add(len(came) - (end - _HEAD_BYTES))
        lengths = self._cutter.cut(sums)
        if last and self._cutter.rest:
            lengths.append(self._cutter.rest)
        return end, lengths

    def _store(self, block: Buffer, begin: int, lengths: Sequence[int]) -> None:
        first = len(self._lengths)
        self._lengths += lengths
        self._table += bytes(len(lengths) * ID_BYTES)
        if not lengths:
            self._pool.give(block)
            return
        try:
            self._submit(self._task, block, begin, lengths, first)
        except BaseException:
            self._pool.give(block)
            raise

    def _task(self, block: Buffer, begin: int, lengths: Sequence[int], first: int) -> None:
        try:
            pieces: list[Any] = []
            bounds = np.cumsum([begin, *lengths]).tolist()
            for number, (start, end) in enumerate(pairwise(bounds), first):
                view = block.view[start:end]
                if self._cutter is None and is_zero(view):
                    continue  # its id is that of zeros
                chunk = self._keys.chunk_id(view)
                self._table[number * ID_BYTES : (number + 1) * ID_BYTES] = chunk
                pieces.append((chunk, view))
            self._meter.add(sum(lengths), self._chunks.put_all(pieces))
        finally:
            self._pool.give(block)


def _without(pages: memoryview, zero: NDArray[np.bool_]) -> int:
    """Move the pages that aren't zeros together. Returns their bytes."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], zero, [True])).astype(np.int8))).tolist()
    content = np.frombuffer(pages, np.uint8)
    done = 0
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        length = (end - first) * PAGE_BYTES
        # To the front, and copied as if through a buffer where both overlap.
        content[done : done + length] = content[first * PAGE_BYTES : end * PAGE_BYTES]
        done += length
    return done
