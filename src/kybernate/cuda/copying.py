"""Moves the content of extents between VRAM and the pool, as little of it as possible.

`plan` hashes every chunk and compares: zero chunks have no host copy at all, clean chunks (their host copy has the same hash)
stay where they are, only dirty chunks are copied. `evict` and `fill` copy whole runs, contiguous in VRAM and in the pool, on
a stream of their own each, so that one workload's way out and another's way in use both directions of the link at once.

Clones of one image share slots. Such a slot is never written: a chunk that became dirty moves to a slot of its own.

A host copy's picture is `ExtentCopy`. A slot with the hash (0, 0) holds content that isn't known to be right and never
counts as clean; that is how a picture whose slots were being overwritten stays truthful.

Limits: one evict and one fill at a time on each GPU; further ones wait their turn.
"""

from __future__ import annotations

import enum
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kybernate.cuda.driver import CudaError, Gpu, bindings, call, status_of
from kybernate.cuda.extents import Extent, held
from kybernate.cuda.hashing import Hasher, HashKey
from kybernate.cuda.planning import NO_SLOT, Hashes, Runs, Slots, compare, find_runs
from kybernate.cuda.pool import PinnedPool
from kybernate.model.types import CHUNK_BYTES, ExtentId

_STREAM_NON_BLOCKING = 1
_AHEAD = 64
"""Extents whose copies are queued before the oldest must have finished: enough to keep the link busy even with extents of
2 MiB, few enough that `done` isn't kept waiting while the rest is queued."""
_AHEAD_BYTES = 1 << 30
"""Likewise in bytes beside the newest one, 20 ms of the link: other processes' small copies wait behind what is queued."""


@dataclass(slots=True)
class ExtentCopy:
    """The host copy of one extent. `size` in bytes."""

    size: int
    rdma: bool
    slots: Slots
    """Pool slot of each chunk, NO_SLOT for zero chunks."""
    hashes: Hashes
    """Shape (chunks, 2); (0, 0) with a slot: content unknown."""


Batch = tuple[Sequence[Extent], Sequence[ExtentCopy]]
"""Extents to fill, and what with."""
Done = Callable[[Sequence[Extent]], None]


class PlanState(enum.Enum):
    READY = "ready"
    EVICTING = "evicting"
    EVICTED = "evicted"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class PlanStats:
    """All in bytes."""

    bytes_total: int
    bytes_dirty: int
    bytes_clean: int
    bytes_zero: int
    bytes_taken: int
    """Pool space taken beyond what the previous host copy had."""


@dataclass(frozen=True, slots=True)
class CopyStats:
    """What a copy did: bytes moved, in how many pieces, wall time in seconds."""

    bytes_copied: int
    pieces: int
    seconds: float


@dataclass(slots=True)
class CopyPlan:
    """What an eviction will do. `copies` is the picture once it is done, one for each extent."""

    extents: list[Extent]
    copies: list[ExtentCopy]
    runs: Runs
    stats: PlanStats
    state: PlanState = PlanState.READY
    _previous: list[ExtentCopy | None] = field(default_factory=list, repr=False)
    _became_zero: Slots = field(default_factory=lambda: np.empty(0, dtype=np.int64), repr=False)
    """Slots of the previous copy that the new one doesn't need."""
    _moved: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=np.bool_), repr=False)
    """Chunks that change and whose previous slot others have, too."""
    _dirty: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=np.bool_), repr=False)
    _taken: Slots = field(default_factory=lambda: np.empty(0, dtype=np.int64), repr=False)


class CopyEngine:
    """The copies of one GPU. Streams and events are made once. Thread-safe."""

    def __init__(self, gpu: Gpu, *, pool: PinnedPool, hasher: Hasher) -> None:
        self._gpu = gpu
        self._pool = pool
        self._hasher = hasher
        with gpu.current():
            self._out = _Lane("cuMemcpyDtoHAsync")
            self._in = _Lane("cuMemcpyHtoDAsync")

    def plan(self, extents: Sequence[Extent], previous: Mapping[ExtentId, ExtentCopy]) -> CopyPlan:
        """Hash, compare, take slots. The workload must be quiet and its extents still mapped by the agent.

        Raises:
            NoRoom: the pool is too small; nothing was taken.
            WorkloadLost: an extent is gone.
            CudaError: hashing failed.
        """
        extents = list(extents)
        hashes = self._hasher.hash(extents)
        bounds = _bounds(extents)
        before = [_matching(extent, previous.get(extent.id)) for extent in extents]
        old_slots = np.full(len(hashes), NO_SLOT, dtype=np.int64)
        old_hashes = np.zeros_like(hashes)
        for i, copy in enumerate(before):
            if copy is not None:
                old_slots[bounds[i] : bounds[i + 1]] = copy.slots
                old_hashes[bounds[i] : bounds[i + 1]] = copy.hashes
        difference = compare(hashes, old_slots=old_slots, old_hashes=old_hashes)
        # A dirty chunk overwrites its old slot. That can't destroy the only good copy: the chunk's present content is in
        # VRAM, kept there by the workload's own descriptors until DISCARD, and the old content is no longer wanted. What
        # somebody else wants is left to them. A slot of our own can't become another's meanwhile: only we could share it.
        slots = np.where(difference.zero, NO_SLOT, old_slots)
        moved = difference.dirty & (old_slots >= 0)
        moved[moved] = self._pool.shared(old_slots[moved])
        new = difference.dirty & (old_slots < 0) | moved
        taken = self._pool.allocate(int(np.count_nonzero(new)))
        slots[new] = taken
        copies = [
            ExtentCopy(
                size=extent.size,
                rdma=extent.rdma,
                slots=slots[bounds[i] : bounds[i + 1]].copy(),
                hashes=hashes[bounds[i] : bounds[i + 1]].copy(),
            )
            for i, extent in enumerate(extents)
        ]
        stats = PlanStats(
            bytes_total=len(hashes) * CHUNK_BYTES,
            bytes_dirty=int(np.count_nonzero(difference.dirty)) * CHUNK_BYTES,
            bytes_clean=int(np.count_nonzero(difference.clean)) * CHUNK_BYTES,
            bytes_zero=int(np.count_nonzero(difference.zero)) * CHUNK_BYTES,
            bytes_taken=len(taken) * CHUNK_BYTES,
        )
        runs = _runs(extents, slots, wanted=difference.dirty, segment_slots=self._pool.segment_slots)
        return CopyPlan(
            extents,
            copies,
            runs,
            stats,
            _previous=before,
            _became_zero=old_slots[(old_slots >= 0) & difference.zero],
            _moved=moved,
            _dirty=difference.dirty,
            _taken=taken,
        )

    def evict(self, plan: CopyPlan, *, done: Done | None = None) -> CopyStats:
        """Copy the dirty chunks out. `done` is called in this thread, as extents' content is safe: first with all those that
        need no copy, then with the others in order.

        While it copies, `previous` as given to `plan` says of the slots being overwritten that their content is unknown;
        when it returns, `previous` is as true as `plan.copies`, and slots of chunks that became zero or moved are given up.

        Raises:
            CudaError, WorkloadLost: some content isn't safe; `abandon` the plan and let the workload run on.
        """
        if plan.state is not PlanState.READY:
            raise ValueError(f"evict of a plan that is {plan.state.value}")
        plan.state = PlanState.EVICTING
        bounds = _bounds(plan.extents)
        for i, copy in enumerate(plan._previous) if plan.stats.bytes_dirty else ():
            if copy is not None:
                part = slice(bounds[i], bounds[i + 1])
                copy.hashes[plan._dirty[part] & ~plan._moved[part] & (copy.slots >= 0)] = 0
        moving = [extent for i, extent in enumerate(plan.extents) if plan.runs.first[i] < plan.runs.first[i + 1]]
        with self._gpu.current(), held(moving) as unhold:

            def safe(extents: Sequence[Extent]) -> None:
                unhold(extents)  # so that `done` may free them while later ones are still being copied
                if done is not None:
                    done(extents)

            stats = self._out.run([(plan.extents, plan.runs)], self._pool, safe)
        if plan.stats.bytes_dirty or len(plan._became_zero):
            left = [plan._became_zero]
            for i, (copy, final) in enumerate(zip(plan._previous, plan.copies, strict=True)):
                if copy is not None:
                    moved = plan._moved[bounds[i] : bounds[i + 1]]
                    left.append(copy.slots[moved])
                    copy.slots[(final.slots < 0) | moved] = NO_SLOT
                    kept = copy.slots >= 0
                    copy.hashes[kept] = final.hashes[kept]
            self._pool.free(np.concatenate(left))
        plan.state = PlanState.EVICTED
        return stats

    def fill(self, batches: Iterable[Batch], *, done: Done | None = None) -> CopyStats:
        """Copy content into fresh extents. Zero chunks need nothing: the driver hands out zeroed memory.

        A batch is taken as soon as the copies before it are queued, so that memory can be made while the link is busy.
        `done` is called in this thread as extents are complete: of each batch first with those that need no copy.

        Raises:
            CudaError: the GPU failed; the host copy is untouched.
            WorkloadLost: an extent is gone.
            Whatever `batches` raises, once nothing is being copied any more.
        """
        with self._gpu.current(), ExitStack() as holds:
            waiting = iter(batches)
            first = next(waiting, None)  # waited for before the lane is taken
            if first is None:
                return CopyStats(bytes_copied=0, pieces=0, seconds=0.0)

            def prepared() -> Iterator[tuple[Sequence[Extent], Runs]]:
                for extents, copies in itertools.chain([first], waiting):
                    holds.enter_context(held(extents))
                    yield extents, self._wanted_runs(extents, copies)

            return self._in.run(prepared(), self._pool, done)

    def _wanted_runs(self, extents: Sequence[Extent], copies: Sequence[ExtentCopy]) -> Runs:
        for extent, copy in zip(extents, copies, strict=True):
            if extent.size != copy.size:
                raise ValueError(f"extent {extent.id:#x} of {extent.size} bytes can't take a copy of {copy.size}")
        slots = np.concatenate([copy.slots for copy in copies]) if copies else np.empty(0, dtype=np.int64)
        return _runs(extents, slots, wanted=slots >= 0, segment_slots=self._pool.segment_slots)

    @property
    def gpu(self) -> Gpu:
        return self._gpu

    @property
    def key(self) -> HashKey:
        """What `plan` hashes under."""
        return self._hasher.key

    def hashes(self, extents: Sequence[Extent]) -> list[Hashes]:
        """What each extent's chunks hash to now, under our own key. Raises WorkloadLost: an extent is gone."""
        found = self._hasher.hash(list(extents))
        return [part.copy() for part in np.split(found, _bounds(extents)[1:-1])] if extents else []

    def differing(self, extents: Sequence[Extent], copies: Sequence[ExtentCopy], key: HashKey | None = None) -> int:
        """How many chunks in VRAM are not what their copies' hashes say, made under `key` or our own. 40 GiB: about 13 ms.

        Raises:
            WorkloadLost: an extent is gone.
        """
        found = self._hasher.hash(list(extents), key)
        if not len(found):
            return 0
        expected = np.concatenate([copy.hashes for copy in copies])
        return int((found != expected).any(axis=1).sum())

    def abandon(self, plan: CopyPlan) -> None:
        """Give back the slots the plan took; `previous` stays valid with what it owns. A second call does nothing."""
        if plan.state is PlanState.ABANDONED:
            return
        plan.state = PlanState.ABANDONED
        self._pool.free(plan._taken)


class _Lane:
    """One direction: a stream, a ring of events. The context must be current."""

    def __init__(self, copy: str) -> None:
        self._copy = copy
        self._lock = threading.Lock()
        flags = bindings().CUevent_flags
        self._stream = call("cuStreamCreate", _STREAM_NON_BLOCKING)
        self._events = [
            call("cuEventCreate", flags.CU_EVENT_BLOCKING_SYNC.value | flags.CU_EVENT_DISABLE_TIMING.value)
            for _ in range(_AHEAD)
        ]

    def run(
        self,
        batches: Iterable[tuple[Sequence[Extent], Runs]],
        pool: PinnedPool,
        done: Done | None,
    ) -> CopyStats:
        with self._lock:
            began = time.perf_counter()
            try:
                chunks, pieces = self._issue(batches, pool, done)
            except BaseException:
                # Nothing may still be moving when the caller takes its memory back.
                status_of("cuStreamSynchronize", self._stream)
                raise
            return CopyStats(bytes_copied=chunks * CHUNK_BYTES, pieces=pieces, seconds=time.perf_counter() - began)

    def _issue(
        self,
        batches: Iterable[tuple[Sequence[Extent], Runs]],
        pool: PinnedPool,
        done: Done | None,
    ) -> tuple[int, int]:
        """Returns how many chunks in how many pieces."""
        pending: deque[tuple[Extent, Any]] = deque()
        events = itertools.cycle(self._events)
        queued = all_chunks = all_pieces = 0
        outward = self._copy == "cuMemcpyDtoHAsync"
        for extents, runs in batches:
            addresses, slots = runs.addresses.tolist(), runs.slots.tolist()
            chunks, first = runs.chunks.tolist(), runs.first.tolist()
            all_chunks += sum(chunks)
            all_pieces += len(chunks)
            still = [extent for i, extent in enumerate(extents) if first[i] == first[i + 1]]
            if still and done is not None:
                done(still)
            for i, extent in enumerate(extents):
                if first[i] == first[i + 1]:
                    continue
                for run in range(first[i], first[i + 1]):
                    host, device = pool.address(slots[run]), addresses[run]
                    size = chunks[run] * CHUNK_BYTES
                    if outward:
                        call(self._copy, host, device, size, self._stream)
                    else:
                        call(self._copy, device, host, size, self._stream)
                event = next(events)
                call("cuEventRecord", event, self._stream)
                queued += extent.size
                pending.append((extent, event))
                enough = len(pending) >= _AHEAD or queued - extent.size >= _AHEAD_BYTES
                queued -= self._settle(pending, done, wait=enough)
        while pending:
            self._settle(pending, done, wait=True)
        return all_chunks, all_pieces

    def _settle(self, pending: deque[tuple[Extent, Any]], done: Done | None, *, wait: bool) -> int:
        """Report what has finished, in order, with `wait` one at least. Returns the bytes that were on their way."""
        settled = 0
        while pending:
            extent, event = pending[0]
            if wait:
                call("cuEventSynchronize", event)
            elif not _finished(event):
                break
            wait = False
            settled += extent.size
            pending.popleft()
            if done is not None:
                done([extent])
        return settled


def _finished(event: Any) -> bool:
    status = status_of("cuEventQuery", event)[0]
    if not status:
        return True
    if status == bindings().CUresult.CUDA_ERROR_NOT_READY:
        return False
    raise CudaError(status.name, "cuEventQuery")


def _runs(extents: Sequence[Extent], slots: Slots, *, wanted: npt.NDArray[np.bool_], segment_slots: int) -> Runs:
    return find_runs(
        pointers=np.array([extent.device_pointer for extent in extents], dtype=np.int64),
        bounds=_bounds(extents),
        slots=slots,
        wanted=wanted,
        segment_slots=segment_slots,
        unit=CHUNK_BYTES,
    )


def _bounds(extents: Sequence[Extent]) -> npt.NDArray[np.int64]:
    """Index of each extent's first chunk, and the end."""
    return np.cumsum([0, *(extent.chunks for extent in extents)], dtype=np.int64)


def _matching(extent: Extent, copy: ExtentCopy | None) -> ExtentCopy | None:
    return copy if copy is not None and copy.size == extent.size else None
