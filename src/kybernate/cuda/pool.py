"""The pool: pinned host memory for the content of evicted chunks, made ahead of any pause.

One file on tmpfs, mapped whole. Threads populate and pin it segment by segment in the background; each segment's slots of
2 MiB become usable as soon as it is ready. The file outlives the agent: a new agent maps it again with the old content in it
and takes over the slots it knows of (`claim`).

A segment that can't be had (memory short, pinning refused) makes the pool smaller and is told in `problems`; slots claimed
there stay readable, at the speed of pageable memory.

Limits: a slot says nothing of its content; who owns which slot, and what lies in it, is the manifests' business.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kybernate.cuda.driver import CudaError, Gpu, call
from kybernate.cuda.slots import SlotMap
from kybernate.model.errors import KybernateError, NoRoom
from kybernate.model.types import CHUNK_BYTES, GIB

log = logging.getLogger(__name__)

_MADV_POPULATE_WRITE = 23
_REGISTER_PORTABLE = 1
"""CU_MEMHOSTREGISTER_PORTABLE: pinned for the contexts of all GPUs."""
_THREADS_MAX = 16
"""More didn't populate faster (measured, 16 cores)."""


class PinnedPool:
    """See the module. All methods are thread-safe."""

    def __init__(
        self,
        *,
        path: Path,
        size_bytes: int,
        gpus: Sequence[Gpu],
        segment_bytes: int = GIB,
        spare_bytes: int = GIB,
    ) -> None:
        """Create or reopen the file and map it; nothing is populated before `start`.

        Args:
            size_bytes: rounded down to whole slots. A file that is larger already stays so: content may lie in it.
            segment_bytes: what is populated, pinned and made usable at a time; one copy never spans two.
            spare_bytes: memory of the machine that filling leaves alone.

        Raises:
            KybernateError: the file can't be made or mapped.
        """
        wanted = size_bytes // CHUNK_BYTES * CHUNK_BYTES
        if wanted <= 0 or segment_bytes <= 0 or segment_bytes % CHUNK_BYTES:
            raise ValueError(f"pool of {size_bytes} bytes in segments of {segment_bytes}")
        self._gpus = list(gpus)
        self._spare_bytes = spare_bytes
        self.path = path
        self.segment_slots = segment_bytes // CHUNK_BYTES
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._mapped_bytes = max(wanted, os.fstat(self._fd).st_size // CHUNK_BYTES * CHUNK_BYTES)
            os.ftruncate(self._fd, self._mapped_bytes)
            self._map = mmap.mmap(self._fd, self._mapped_bytes)
        except OSError as e:
            raise KybernateError(f"can't make the host pool {path}: {e.strerror}", hint="see `kybernate doctor`") from e
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self._base = ctypes.addressof(self._anchor)
        self._slots = SlotMap(count=self._mapped_bytes // CHUNK_BYTES, segment_slots=self.segment_slots)
        self._segments = -(-self._mapped_bytes // segment_bytes)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._next = 0
        self._finished = 0
        self._lost_bytes = 0
        self._populating_bytes = 0
        self._registered: list[int] = []
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._closed = False
        self.problems: list[str] = []
        """One line for each thing that made the pool smaller or slower than asked for."""
        self.fill_seconds: float | None = None
        """How long filling took, once it is over."""

    @property
    def size_bytes(self) -> int:
        """What the pool has, or will have once it is filled."""
        return self._mapped_bytes - self._lost_bytes

    @property
    def ready_bytes(self) -> int:
        """What is populated and pinned by now."""
        with self._lock:
            return self._slots.ready * CHUNK_BYTES

    @property
    def free_slots(self) -> int:
        with self._lock:
            return self._slots.free

    def start(self) -> None:
        """Begin to fill in the background. Once only."""
        if self._threads:
            raise ValueError("the pool is being filled already")
        began = time.monotonic()
        count = max(1, min(_THREADS_MAX, os.cpu_count() or 1, self._segments))
        self._threads = [
            threading.Thread(target=self._fill, args=(began,), name=f"kybernate-pool-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def wait_ready(self, timeout_s: float) -> None:
        """Until filling is over.

        Raises:
            NoRoom: nothing of the pool could be had.
            KybernateError: not within the time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._finished == self._segments or self._stopping, timeout_s):
                raise KybernateError(
                    f"the host pool isn't ready after {timeout_s:g} s: {self._slots.ready * CHUNK_BYTES} of {self.size_bytes} bytes"
                )
            if self._slots.ready == 0 and not self._stopping:
                raise NoRoom(f"nothing of the host pool {self.path} could be had: {'; '.join(self.problems)}")

    def allocate(self, count: int) -> npt.NDArray[np.int64]:
        """Slots in ascending order, in as few runs as there are, all in ready segments. Their content is undefined.

        Raises:
            NoRoom: fewer are free; nothing was taken.
        """
        with self._lock:
            if count > self._slots.free:
                filling = self._finished < self._segments
                ready = self._slots.ready * CHUNK_BYTES
                raise NoRoom(
                    f"host pool too small: {count * CHUNK_BYTES} bytes needed, {self._slots.free * CHUNK_BYTES} free of "
                    f"{self.size_bytes}" + (f" (still filling: {ready} ready)" if filling else ""),
                    hint="wait until the pool is filled"
                    if filling
                    else "make the pool larger or stop a paused workload",
                )
            return self._slots.take(count)

    def free(self, slots: npt.NDArray[np.int64]) -> int:
        """One owner less for each slot; returns how many have none any more and may be taken by anybody.

        Raises ValueError when one isn't taken (a bug of the caller); nothing is changed then.
        """
        with self._lock:
            return self._slots.give(slots)

    def share(self, slots: npt.NDArray[np.int64]) -> None:
        """One owner more for each slot. Whoever shares a slot must not write it: see `CopyEngine.plan`.

        Raises ValueError when one isn't taken; nothing is changed then.
        """
        with self._lock:
            self._slots.share(slots)

    def shared(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these slots have several owners at this moment."""
        with self._lock:
            return self._slots.shared(slots)

    def claim(self, slots: npt.NDArray[np.int64]) -> None:
        """One owner more for exactly these slots with what lies in them: a manifest of an earlier agent names them.

        Works before and while the pool is filled. Raises ValueError for a slot outside of the pool.
        """
        with self._lock:
            self._slots.claim(slots)

    def view(self, slot: int) -> memoryview:
        """A slot's memory, 2 MiB, page-aligned and writable. Nobody may use it after `close`."""
        return memoryview((ctypes.c_ubyte * CHUNK_BYTES).from_address(self.address(slot))).cast("B")

    def address(self, slot: int) -> int:
        """Where a slot lies in this process's memory."""
        return self._base + slot * CHUNK_BYTES

    def close(self) -> None:
        """Stop filling, unpin, unmap. The file and its content stay. Nothing may be copying."""
        with self._lock:
            if self._closed:
                return
            self._closed = self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._registered:
            with self._gpus[0].current():
                for address in self._registered:
                    try:
                        call("cuMemHostUnregister", address)
                    except CudaError as e:
                        log.warning("unpinning of the host pool: %s", e)
        del self._anchor  # the map refuses to close while something points into it
        self._map.close()
        os.close(self._fd)

    # -- filling -------------------------------------------------------------------------------------------------

    def _fill(self, began: float) -> None:
        while True:
            with self._lock:
                if self._stopping or self._next == self._segments:
                    return
                segment = self._next
                self._next += 1
            problem = self._prepare(segment)
            with self._changed:
                if problem is None:
                    self._slots.enable(segment)
                else:
                    first = not self.problems
                    self.problems.append(problem)
                    self._lost_bytes += self._extent_of(segment)[1]
                    if first:
                        log.warning("the host pool becomes smaller: %s", problem)
                self._finished += 1
                if self._finished == self._segments:
                    self.fill_seconds = time.monotonic() - began
                self._changed.notify_all()

    def _extent_of(self, segment: int) -> tuple[int, int]:
        start = segment * self.segment_slots * CHUNK_BYTES
        return start, min(self.segment_slots * CHUNK_BYTES, self._mapped_bytes - start)

    def _prepare(self, segment: int) -> str | None:
        """Populate and pin one segment; what went wrong, as one line."""
        start, length = self._extent_of(segment)
        what = f"segment {segment} ({length} bytes)"
        if not self._populated(start, length):
            available = _available_bytes()
            with self._lock:  # what the other threads are about to take isn't gone from `available` yet
                if available is not None and available - self._populating_bytes < length + self._spare_bytes:
                    return f"{what} left out: {available} bytes of memory are available and {self._spare_bytes} are left alone"
                self._populating_bytes += length
            error = self._populate(start, length)
            with self._lock:
                self._populating_bytes -= length
            if error != 0:
                return f"{what} can't be populated: {os.strerror(error)}"
        if not self._gpus:
            return None  # tests of the file alone
        try:
            with self._gpus[0].current():
                call("cuMemHostRegister", self._base + start, length, _REGISTER_PORTABLE)
        except KybernateError as e:
            return f"{what} can't be pinned: {e}; the pool's file must lie on tmpfs"
        with self._lock:
            self._registered.append(self._base + start)
        return None

    def _populated(self, start: int, length: int) -> bool:
        """Whether the file has no hole there: an earlier agent's pool needs no new memory."""
        return _no_hole(self._fd, start, length)

    def _populate(self, start: int, length: int) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        libc.madvise.restype = ctypes.c_int
        if libc.madvise(self._base + start, length, _MADV_POPULATE_WRITE) == 0:
            return 0
        if (error := ctypes.get_errno()) != errno.EINVAL:
            return error
        try:  # before Linux 5.14; it keeps what is there already
            os.posix_fallocate(self._fd, start, length)
        except OSError as e:
            return e.errno or errno.EIO
        return 0


def _no_hole(fd: int, start: int, length: int) -> bool:
    # lseek moves an offset that nobody uses: the file is only ever mapped.
    try:
        return os.lseek(fd, start, os.SEEK_HOLE) >= start + length
    except OSError:
        return False


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
