"""Writes a stored file into a pipe, for a reader who takes it from the front to the end: no file in between.

Blocks are read ahead, several at once, and lent to the pipe without a copy (vmsplice(2)): whoever reads copies them to where
they belong. A block may be used again once the pipe has taken in as much as it holds behind it, since then all of it was read.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kybernate.store.manifests import StoredFile
from kybernate.store.memory import Buffer, BufferPool, address_of

if TYPE_CHECKING:
    from kybernate.store.reading import SnapshotReader

BLOCK_BYTES = 8 << 20
_BLOCKS = 8
"""At most so many at once, of all pipes that one snapshot is written to."""
_AHEAD = 4
"""Blocks of one pipe that are being read or wait for it."""
_PIPE_BYTES = 1 << 20
"""What anybody may ask for, unless the administrator has said otherwise."""
_ZEROS = bytes(64 << 10)

Read = Callable[[list[tuple[int, memoryview]]], None]
"""Fills views with chunks of the snapshot, by their numbers."""


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.vmsplice.argtypes = (ctypes.c_int, ctypes.POINTER(_Vector), ctypes.c_ulong, ctypes.c_uint)
_libc.vmsplice.restype = ctypes.c_ssize_t


@dataclass(frozen=True, slots=True)
class _Window:
    """Chunks that are read together."""

    first: int
    lengths: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(self.lengths)


class Feeds:
    """All pipes that one snapshot's files go into. Thread-safe."""

    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader
        self._blocks = BufferPool(_BLOCKS, BLOCK_BYTES)
        self._meter = reader.meter("reading", sum(file.size for file in reader.manifest.files))

    def send(self, path: str, pipe: int, *, zeros: Sequence[tuple[int, int]] = ()) -> None:
        """Write a file's content into a pipe, in order, read ahead. Returns when all of it is in there, or nobody reads it.

        Args:
            zeros: where zeros come in besides what is stored: offset in what is written, length; ascending. Bytes.

        Raises:
            BadInput: there is no such file. Damaged, TierAway, Cancelled: as `SnapshotReader.read`.
        """
        _Feeder(self._reader.manifest.file(path), pipe, pool=self._blocks, read=self._read, zeros=zeros).run()

    def _read(self, requests: list[tuple[int, memoryview]]) -> None:
        self._reader.read(requests, meter=self._meter)


class _Feeder:
    """One file and one pipe. `run` is called once."""

    def __init__(
        self, file: StoredFile, pipe: int, *, pool: BufferPool, read: Read, zeros: Sequence[tuple[int, int]] = ()
    ) -> None:
        """
        Args:
            zeros: as of `Feeds.send`.
        """
        self._file = file
        self._pipe = pipe
        self._pool = pool
        self._read = read
        self._zeros = deque(zeros)
        self._written = 0
        """Bytes, zeros included."""
        self._lent: deque[tuple[int, Buffer]] = deque()
        """Blocks that the pipe may still hold parts of, with what was written up to their ends."""

    def run(self) -> None:
        """Until all is in the pipe, or nobody reads it any more. Raises what reading raises; OSError."""
        with suppress(OSError):  # where it may not be made larger
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        size = sum(window.size for window in _windows(self._file)) + sum(length for _, length in self._zeros)
        # Nothing of the last bytes is lent: else one would have to wait until the reader has them.
        copied_from = size - fcntl.fcntl(self._pipe, fcntl.F_GETPIPE_SZ)
        with ThreadPoolExecutor(_AHEAD, thread_name_prefix="kybernate-feed") as threads:
            waiting = iter(_windows(self._file))
            ahead: deque[tuple[_Window, Future[Buffer]]] = deque()
            try:
                self._read_ahead(threads, waiting, ahead)
                while ahead:
                    window, future = ahead.popleft()
                    block = future.result()
                    self._write(block, window.size, copied_from)
                    self._read_ahead(threads, waiting, ahead)
                self._write_zeros(last=True)
            except BrokenPipeError:
                pass  # who reads has what it needs, or has ended: it is not for us to say
            finally:
                for _, future in ahead:
                    if not future.cancel() and future.exception() is None:
                        self._pool.give(future.result())
                for _, block in self._lent:
                    self._pool.give(block)

    def _read_ahead(
        self,
        threads: ThreadPoolExecutor,
        waiting: Iterator[_Window],
        ahead: deque[tuple[_Window, Future[Buffer]]],
    ) -> None:
        while len(ahead) < _AHEAD and (window := next(waiting, None)) is not None:
            ahead.append((window, threads.submit(self._block, window)))

    def _block(self, window: _Window) -> Buffer:
        block = self._pool.take()
        try:
            requests, at = [], 0
            for number, length in enumerate(window.lengths, window.first):
                requests.append((self._file.first + number, block.view[at : at + length]))
                at += length
            self._read(requests)
        except BaseException:
            self._pool.give(block)
            raise
        return block

    def _write(self, block: Buffer, size: int, copied_from: int) -> None:
        at = 0
        self._lent.append((self._written + size, block))  # given back with the others where this fails
        while at < size:
            self._write_zeros()
            end = size
            if self._zeros:
                end = min(end, at + self._zeros[0][0] - self._written)
            if self._written < copied_from:
                count = self._lend(block.view[at : min(end, at + copied_from - self._written)])
            else:
                count = os.write(self._pipe, block.view[at:end])
            at += count
            self._written += count
        self._lent[-1] = (self._written, block)
        capacity = fcntl.fcntl(self._pipe, fcntl.F_GETPIPE_SZ)
        while self._lent and self._lent[0][0] + capacity <= self._written:
            self._pool.give(self._lent.popleft()[1])

    def _write_zeros(self, *, last: bool = False) -> None:
        while self._zeros and (last or self._zeros[0][0] <= self._written):
            _, length = self._zeros.popleft()
            while length:
                count = os.write(self._pipe, _ZEROS[: min(length, len(_ZEROS))])
                length -= count
                self._written += count

    def _lend(self, view: memoryview) -> int:
        vector = _Vector(address_of(view), len(view))
        while (count := _libc.vmsplice(self._pipe, ctypes.byref(vector), 1, 0)) < 0:
            if (error := ctypes.get_errno()) != errno.EINTR:
                raise OSError(error, os.strerror(error))
        return int(count)


def _windows(file: StoredFile) -> Iterator[_Window]:
    """All of a file, in pieces that fit into a block."""
    first, size = 0, 0
    lengths: list[int] = []
    for number in range(file.count):
        length = file.length(number)
        if size + length > BLOCK_BYTES:
            yield _Window(first, tuple(lengths))
            first, lengths, size = number, [], 0
        lengths.append(length)
        size += length
    if lengths:
        yield _Window(first, tuple(lengths))
