"""All extents of this node: which there are, whose they are, how much is resident. The broker's books."""

from __future__ import annotations

import itertools
import os
import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from kybernate.cuda.driver import CudaError, Gpu
from kybernate.cuda.extents import Extent, ExtentSpace, Piece
from kybernate.cuda.packets import close_all
from kybernate.model.errors import BadInput, Conflict
from kybernate.model.types import CHUNK_BYTES, ExtentId, GpuUuid, HostPid, WorkloadName


class ExtentRegistry:
    """See the module. Thread-safe."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._spaces = {gpu.uuid: ExtentSpace(gpu) for gpu in gpus}
        self._lock = threading.Lock()
        # By workload too: an id that a workload makes up can't stand in another's way.
        self._extents: dict[tuple[WorkloadName, ExtentId], Extent] = {}
        # Kept beside, since every request asks for the sums and a workload may have ten thousands of extents.
        self._resident: Counter[tuple[WorkloadName, GpuUuid]] = Counter()
        generation = secrets.randbits(31) << 32
        self._ids = (ExtentId(generation | number) for number in itertools.count(1))

    def create(
        self,
        *,
        workload: WorkloadName,
        pid: HostPid,
        gpu: Gpu,
        sizes: Sequence[int],
        ids: Sequence[ExtentId] | None = None,
        rdma: bool = False,
    ) -> list[Extent]:
        """New, zeroed extents in the given sizes (bytes), all or none.

        `ids` names the extents they stand for, when a process that was paused gets its memory again.

        Raises:
            NoRoom: the GPU's free memory doesn't do.
            Conflict: one of `ids` has its memory already.
            CudaError: the driver failed otherwise.
        """
        space = self._spaces[gpu.uuid]
        with self._lock:
            if ids is not None and (there := self._extents.keys() & {(workload, i) for i in ids}):
                raise Conflict(f"{len(there)} extents of workload {workload} are in VRAM already")
        pieces = space.create(sizes, rdma=rdma)
        with self._lock:
            names = ids if ids is not None else self._new_ids(workload, len(pieces))
            extents = [
                _extent(name, piece, workload=workload, pid=pid, space=space, rdma=rdma)
                for name, piece in zip(names, pieces, strict=True)
            ]
            for extent in extents:
                self._add(extent)
        return extents

    def _add(self, extent: Extent) -> None:
        if (before := self._extents.get(_key(extent))) is not None:
            self._remove(before)
        self._extents[_key(extent)] = extent
        self._resident[extent.workload, extent.gpu.uuid] += extent.size

    def _remove(self, extent: Extent) -> None:
        del self._extents[_key(extent)]
        holding = (extent.workload, extent.gpu.uuid)
        self._resident[holding] -= extent.size
        if not self._resident[holding]:
            del self._resident[holding]

    def _new_ids(self, workload: WorkloadName, count: int) -> list[ExtentId]:
        """Past those that the workload claims already, by whatever means."""
        unused = (i for i in self._ids if (workload, i) not in self._extents)
        return list(itertools.islice(unused, count))

    def export(self, extent: Extent) -> int:
        """A new descriptor of the extent's memory; the caller closes it."""
        return self._space(extent).export(extent)

    def adopt(
        self, *, workload: WorkloadName, pid: HostPid, gpu: Gpu, number: ExtentId, size: int, rdma: bool, fd: int
    ) -> Extent:
        """Take an extent back into account from a workload's descriptor: after a restart, or when a pause is undone.

        The descriptor stays the caller's. An extent that is known already is handed back as it is.

        Raises:
            BadInput: the size makes no sense, or the descriptor isn't that memory.
            Conflict: the id belongs to another process.
        """
        check_size(size, gpu)
        with self._lock:
            known = self._extents.get((workload, number))
        if known is not None:
            if (known.pid, known.size, known.gpu) != (pid, size, gpu):
                raise Conflict(f"process {pid} of workload {workload} claims extent {number:#x} of process {known.pid}")
            return known
        space = self._spaces[gpu.uuid]
        copy = -1
        try:
            copy = _duplicate(fd)
            piece = space.adopt(fd, size)
        except CudaError as e:
            close_all([copy])
            raise BadInput(
                f"extent {number:#x} of workload {workload}: its descriptor isn't that memory ({e.message})"
            ) from e
        except BaseException:
            close_all([copy])
            raise
        extent = _extent(number, piece, workload=workload, pid=pid, space=space, rdma=rdma, fd=copy)
        with self._lock:
            self._add(extent)
        return extent

    def drop(self, extents: Iterable[Extent]) -> None:
        """Unmap, release, forget. Those gone already are skipped; those being copied go when the copy ends.

        Raises:
            CudaError: the driver failed; all are forgotten all the same.
        """
        by_space: dict[int, tuple[ExtentSpace, list[Extent]]] = {}
        with self._lock:
            for extent in extents:
                if self._extents.get(_key(extent)) is extent:
                    self._remove(extent)
                space = self._space(extent)
                by_space.setdefault(id(space), (space, []))[1].append(extent)
        for space, mine in by_space.values():
            space.destroy(mine)

    def extents(self, workload: WorkloadName, pid: HostPid | None = None) -> list[Extent]:
        """A workload's (process's) extents, in the order they were made."""
        with self._lock:
            return [e for e in self._extents.values() if e.workload == workload and (pid is None or e.pid == pid)]

    def resident_bytes(self, workload: WorkloadName | None = None, gpu: Gpu | None = None) -> int:
        """Bytes of all extents, or of one workload's, or one GPU's."""
        with self._lock:
            return sum(
                size
                for (holder, uuid), size in self._resident.items()
                if (workload is None or holder == workload) and (gpu is None or uuid == gpu.uuid)
            )

    def find(self, workload: WorkloadName, ids: Iterable[ExtentId]) -> list[Extent | None]:
        """Each of these of the workload; None where there is none of that id."""
        with self._lock:
            return [self._extents.get((workload, number)) for number in ids]

    def _space(self, extent: Extent) -> ExtentSpace:
        return self._spaces[extent.gpu.uuid]


def check_size(size: int, gpu: Gpu) -> None:
    """Raises BadInput unless an allocation may have so many bytes."""
    if size <= 0 or size % CHUNK_BYTES or size > gpu.total_bytes:
        raise BadInput(f"{size} bytes: not a multiple of {CHUNK_BYTES} from 1 to GPU {gpu.index}'s {gpu.total_bytes}")


def _extent(
    number: ExtentId,
    piece: Piece,
    *,
    workload: WorkloadName,
    pid: HostPid,
    space: ExtentSpace,
    rdma: bool,
    fd: int | None = None,
) -> Extent:
    return Extent(
        id=number,
        workload=workload,
        pid=pid,
        gpu=space.gpu,
        size=piece.size,
        handle=piece.handle,
        device_pointer=piece.device_pointer,
        rdma=rdma,
        fd=fd,
        space=space,
    )


def _key(extent: Extent) -> tuple[WorkloadName, ExtentId]:
    return extent.workload, extent.id


def _duplicate(fd: int) -> int:
    try:
        return os.dup(fd)
    except OSError as e:
        raise BadInput(f"descriptor {fd} isn't open: {e.strerror}") from e
