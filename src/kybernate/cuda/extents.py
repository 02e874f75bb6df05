"""Extents: pieces of physical VRAM that the agent owns, and where the agent itself maps them.

Each extent is mapped into the agent's own reserved addresses when it is made, so that hashing and copying never map
anything later. Extents made together lie side by side, which lets one call set access to, or unmap, many of them.

An extent in use (`hold`) is never unmapped under a running copy or kernel, which would break the agent's context for all
workloads: `destroy` of a held extent takes effect when its last holder lets go.

Limits: mapped whole (the driver maps neither parts nor offsets); one address space a GPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from kybernate.cuda.driver import CudaError, Gpu, bindings, call
from kybernate.cuda.ranges import RangeAllocator
from kybernate.model.errors import NoRoom, WorkloadLost
from kybernate.model.types import CHUNK_BYTES, GIB, ExtentId, HostPid, WorkloadName


@dataclass(slots=True, eq=False)
class Extent:
    """One extent. `size` in bytes; `device_pointer` is the agent's own mapping of it."""

    id: ExtentId
    workload: WorkloadName
    pid: HostPid
    gpu: Gpu
    size: int
    handle: int
    device_pointer: int
    rdma: bool = False
    fd: int | None = None
    """Kept for an adopted extent only: an imported handle can't be exported again, so a copy of its descriptor is handed out."""
    space: ExtentSpace | None = field(default=None, repr=False)
    holders: int = field(default=0, repr=False)
    doomed: bool = field(default=False, repr=False)

    @property
    def chunks(self) -> int:
        return self.size // CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Piece:
    """Mapped memory that isn't an extent yet."""

    handle: int
    device_pointer: int
    size: int


class ExtentSpace:
    """The agent's addresses on one GPU. Thread-safe."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._lock = threading.Lock()
        # Four times what can be resident: addresses cost nothing and fragmentation then can't hurt.
        self._reserved = max(4 * gpu.total_bytes, GIB) // CHUNK_BYTES * CHUNK_BYTES
        with gpu.current():
            self._base = int(call("cuMemAddressReserve", self._reserved, 0, 0, 0))
        self._addresses = RangeAllocator(start=self._base, size=self._reserved)
        self._access = _access(gpu)

    def create(self, sizes: Sequence[int], *, rdma: bool = False) -> list[Piece]:
        """New memory, zeroed by the driver, mapped side by side: all of it or none.

        Raises:
            NoRoom: the GPU has too little free memory.
            CudaError: anything else.
        """
        properties = _properties(self.gpu, rdma=rdma)
        handles: list[int] = []
        with self.gpu.current():
            try:
                for size in sizes:
                    handles.append(int(call("cuMemCreate", size, properties, 0)))  # noqa: PERF401 - undone below
                return self._map(handles, sizes)
            except (CudaError, NoRoom) as e:
                for handle in handles:
                    with suppress(CudaError):
                        call("cuMemRelease", handle)
                if isinstance(e, CudaError) and e.out_of_memory:
                    raise NoRoom(
                        f"GPU {self.gpu.index} has no room for {sum(sizes)} bytes: {self.gpu.free_bytes()} of "
                        f"{self.gpu.total_bytes} bytes are free"
                    ) from e
                raise

    def adopt(self, fd: int, size: int) -> Piece:
        """Map memory that somebody else's descriptor stands for. The descriptor stays the caller's.

        Raises:
            CudaError: it is no memory of this GPU, or not of that size.
        """
        with self.gpu.current():
            handle = int(call("cuMemImportFromShareableHandle", fd, _descriptor_type()))
            try:
                return self._map([handle], [size])[0]
            except (CudaError, NoRoom):
                call("cuMemRelease", handle)
                raise

    def export(self, extent: Extent) -> int:
        """A new descriptor of the extent's memory, close-on-exec; the caller closes it."""
        if extent.fd is not None:
            return os.dup(extent.fd)
        fd = int(call("cuMemExportToShareableHandle", extent.handle, _descriptor_type(), 0))
        os.set_inheritable(fd, False)
        return fd

    def destroy(self, extents: Iterable[Extent]) -> None:
        """Unmap and release. Extents that are held go when their last holder lets go; those gone already are skipped."""
        with self._lock:
            now = []
            for extent in extents:
                if not extent.doomed:
                    extent.doomed = True
                    if extent.holders == 0:
                        now.append(extent)
        self._release(now)

    def hold(self, extents: Sequence[Extent]) -> None:
        """Keep extents mapped until `unhold`.

        Raises:
            WorkloadLost: one of them is gone already (its process ended); none is held.
        """
        with self._lock:
            for extent in extents:
                if extent.doomed:
                    raise WorkloadLost(
                        f"process {extent.pid} of workload {extent.workload} has ended, or has freed extent {extent.id:#x}",
                        hint=f"`kybernate logs {extent.workload}` has its last words",
                    )
            for extent in extents:
                extent.holders += 1

    def unhold(self, extents: Iterable[Extent]) -> None:
        """The end of `hold`; extents that were destroyed meanwhile go now."""
        with self._lock:
            last = []
            for extent in extents:
                extent.holders -= 1
                if extent.doomed and extent.holders == 0:
                    last.append(extent)
        self._release(last)

    def _map(self, handles: Sequence[int], sizes: Sequence[int]) -> list[Piece]:
        total = sum(sizes)
        with self._lock:
            base = self._addresses.take(total)
        address, pieces = base, []
        try:
            for handle, size in zip(handles, sizes, strict=True):
                call("cuMemMap", address, size, 0, handle, 0)
                pieces.append(Piece(handle=handle, device_pointer=address, size=size))
                address += size
            call("cuMemSetAccess", base, total, [self._access], 1)
        except CudaError:
            if pieces:
                with suppress(CudaError):
                    call("cuMemUnmap", base, address - base)
            with self._lock:
                self._addresses.give(base, total)
            raise
        return pieces

    def _release(self, extents: list[Extent]) -> None:
        if not extents:
            return
        extents.sort(key=lambda extent: extent.device_pointer)
        failure: CudaError | None = None
        with self.gpu.current():
            start = 0
            for i in range(1, len(extents) + 1):
                before = extents[i - 1]
                if i < len(extents) and before.device_pointer + before.size == extents[i].device_pointer:
                    continue
                address = extents[start].device_pointer
                length = before.device_pointer + before.size - address
                start = i
                try:
                    call("cuMemUnmap", address, length)  # one call for all that lie side by side
                except CudaError as e:
                    failure = e  # these addresses are never used again; the memory still goes with the handles
                    continue
                with self._lock:
                    self._addresses.give(address, length)
            for extent in extents:
                try:
                    # The driver scrubs memory as it is released, 0.6 ms for each GiB; threads don't make it faster (measured).
                    call("cuMemRelease", extent.handle)
                except CudaError as e:
                    failure = e
                if extent.fd is not None:
                    os.close(extent.fd)
                    extent.fd = None
        if failure is not None:
            raise failure


@contextmanager
def held(extents: Sequence[Extent]) -> Iterator[Callable[[Iterable[Extent]], None]]:
    """Hold extents of one GPU, which may be none at all, for the block. What it gives lets go of some before the end; it
    passes over extents that aren't held.

    Raises:
        WorkloadLost: one of them is gone.
    """
    spaces = {id(extent.space): extent.space for extent in extents}
    if len(spaces) > 1:
        raise ValueError("extents of several GPUs in one copy")
    space = next(iter(spaces.values()), None)
    if space is None:
        yield lambda extents: None
        return
    space.hold(extents)
    rest = dict.fromkeys(extents)

    def unhold(some: Iterable[Extent]) -> None:
        mine = [extent for extent in some if extent in rest]
        for extent in mine:
            del rest[extent]
        if mine:
            space.unhold(mine)

    try:
        yield unhold
    finally:
        space.unhold(rest)


def _descriptor_type() -> Any:
    return bindings().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


def _properties(gpu: Gpu, *, rdma: bool) -> Any:
    driver = bindings()
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = gpu.index
    properties.requestedHandleTypes = _descriptor_type()
    properties.allocFlags.gpuDirectRDMACapable = int(rdma)
    return properties


def _access(gpu: Gpu) -> Any:
    driver = bindings()
    access = driver.CUmemAccessDesc()
    access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access.location.id = gpu.index
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    return access
