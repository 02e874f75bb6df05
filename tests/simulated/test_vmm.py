"""Virtual memory management: sharing between processes, and the refusals of the real driver."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from kybernate.cuda.simulated import SimulatedGpu

from .conftest import (
    GPU_BYTES,
    ILLEGAL_ADDRESS,
    INVALID_VALUE,
    MIB,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    POSIX_FD,
    SUCCESS,
    Out,
    Process,
    Received,
    access,
    number,
    properties,
)

SIZE = 8 * MIB


def test_the_granularity_is_two_mebibytes(process: Process) -> None:
    assert process.ok("cuMemGetAllocationGranularity", Out(), properties(), 0) == 2 * MIB
    assert process.result("cuMemCreate", Out(), MIB, properties(), 0) == INVALID_VALUE
    assert process.result("cuMemCreate", Out(), 2 * GPU_BYTES, properties(), 0) == OUT_OF_MEMORY


def test_one_process_makes_it_and_another_sees_the_same_bytes(start: Callable[..., Process]) -> None:
    agent, workload = start(), start()
    handle = agent.create(SIZE)
    fd = agent.take_fd(agent.export(handle))
    ours = agent.map(handle, SIZE)
    imported = workload.import_from(fd)
    theirs = workload.map(imported, SIZE)
    agent.ok("cuMemsetD32_v2", ours, 0x11223344, SIZE // 4)
    assert workload.read(theirs) == bytes.fromhex("44332211") * 4
    assert workload.launch("add_one_u32", theirs, 4) == SUCCESS
    assert number(agent.read(ours, 4)) == 0x11223345
    os.close(fd)


def test_an_imported_handle_cannot_be_exported_again(start: Callable[..., Process]) -> None:
    agent, workload = start(), start()
    fd = agent.take_fd(agent.export(agent.create(SIZE)))
    imported = workload.import_from(fd)
    os.close(fd)
    assert workload.result("cuMemExportToShareableHandle", Out(4), imported, POSIX_FD, 0) == INVALID_VALUE


def test_memory_made_without_a_handle_type_cannot_be_exported(process: Process) -> None:
    handle = process.create(SIZE, exportable=False)
    assert process.result("cuMemExportToShareableHandle", Out(4), handle, POSIX_FD, 0) == INVALID_VALUE


@pytest.mark.root
def test_a_kept_descriptor_outlives_the_maker(start: Callable[..., Process], gpu: SimulatedGpu) -> None:
    maker, other = start(), start()
    handle = maker.create(SIZE)
    fd = maker.take_fd(maker.export(handle))
    maker.ok("cuMemsetD32_v2", maker.map(handle, SIZE), 5, SIZE // 4)
    maker.kill()
    assert gpu.used_bytes == SIZE
    imported = other.import_from(fd)
    assert number(other.read(other.map(imported, SIZE), 4)) == 5
    os.close(fd)
    other.kill()
    assert gpu.used_bytes == 0


def test_something_else_is_not_imported(process: Process) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for fd in (Received(), 12345):
        result = process.result("cuMemImportFromShareableHandle", Out(), fd, POSIX_FD, fds=[null])
        assert result == INVALID_VALUE
    os.close(null)


def test_only_whole_handles_are_mapped(process: Process) -> None:
    handle = process.create(SIZE)
    address = process.ok("cuMemAddressReserve", Out(), 2 * SIZE, 0, 0, 0)
    assert process.result("cuMemMap", address, SIZE // 2, 0, handle, 0) == NOT_SUPPORTED
    assert process.result("cuMemMap", address, SIZE // 2, SIZE // 2, handle, 0) == NOT_SUPPORTED
    assert process.result("cuMemMap", address, 2 * SIZE, 0, handle, 0) == INVALID_VALUE
    process.ok("cuMemMap", address, SIZE, 0, handle, 0)
    assert process.result("cuMemMap", address, SIZE, 0, handle, 0) == INVALID_VALUE
    process.ok("cuMemMap", address + SIZE, SIZE, 0, handle, 0)  # twice the same memory is allowed
    process.ok("cuMemSetAccess", address, 2 * SIZE, access(), 1)
    process.ok("cuMemsetD32_v2", address, 9, 1)
    assert number(process.read(address + SIZE, 4)) == 9


def test_memory_lives_as_long_as_it_is_mapped(process: Process) -> None:
    handle = process.create(SIZE)
    address = process.map(handle, SIZE)
    process.ok("cuMemRelease", handle)
    assert GPU_BYTES - process.free_bytes() == SIZE
    again = process.ok("cuMemRetainAllocationHandle", Out(), address + MIB)
    content = process.call("cuMemGetAllocationPropertiesFromHandle", Out(32), again)[1]
    assert content == properties()
    process.ok("cuMemRelease", again)
    assert process.result("cuMemUnmap", address, SIZE // 2) == INVALID_VALUE
    assert process.result("cuMemAddressFree", address, SIZE) == INVALID_VALUE
    process.ok("cuMemUnmap", address, SIZE)
    assert process.free_bytes() == GPU_BYTES
    process.ok("cuMemAddressFree", address, SIZE)
    assert process.result("cuMemRelease", handle) == INVALID_VALUE


def test_access_is_what_was_set(process: Process) -> None:
    handle = process.create(SIZE)
    address = process.ok("cuMemAddressReserve", Out(), SIZE, 0, 0, 0)
    location = bytes.fromhex("0100000000000000")
    process.ok("cuMemMap", address, SIZE, 0, handle, 0)
    assert process.ok("cuMemGetAccess", Out(), location, address) == 0
    assert process.result("cuMemcpyDtoH_v2", Out(16), address, 16) == INVALID_VALUE
    process.ok("cuMemSetAccess", address, SIZE, access(1), 1)
    assert process.read(address) == bytes(16)
    assert process.result("cuMemsetD8_v2", address, 1, 1) == INVALID_VALUE
    process.ok("cuMemSetAccess", address, SIZE, access(3), 1)
    process.ok("cuMemsetD8_v2", address, 1, 1)
    assert process.ok("cuMemGetAccess", Out(), location, address) == 3


def test_one_access_call_over_many_mappings(process: Process) -> None:
    count = 16
    address = process.ok("cuMemAddressReserve", Out(), count * 2 * MIB, 0, 0, 0)
    for i in range(count):
        process.ok("cuMemMap", address + i * 2 * MIB, 2 * MIB, 0, process.create(2 * MIB), 0)
    process.ok("cuMemSetAccess", address, count * 2 * MIB, access(), 1)
    process.ok("cuMemsetD8_v2", address, 3, count * 2 * MIB)
    assert process.ok("cuMemGetAddressRange_v2", Out(), Out(), address + 5 * MIB) == (address + 4 * MIB, 2 * MIB)
    process.ok("cuMemUnmap", address, count * 2 * MIB)


def test_a_reservation_is_where_it_was_asked_for(process: Process) -> None:
    first = process.ok("cuMemAddressReserve", Out(), SIZE, 0, 0, 0)
    process.ok("cuMemAddressFree", first, SIZE)
    assert process.ok("cuMemAddressReserve", Out(), SIZE, 0, first, 0) == first
    assert process.ok("cuMemAddressReserve", Out(), SIZE, 0, first, 0) != first


def test_a_kernel_that_strays_spoils_the_context(process: Process) -> None:
    address = process.ok("cuMemAddressReserve", Out(), SIZE, 0, 0, 0)
    assert process.launch("add_one_u32", address, 4) == SUCCESS
    assert process.result("cuCtxSynchronize") == ILLEGAL_ADDRESS
    assert process.result("cuMemAlloc_v2", Out(), 4 * MIB) == ILLEGAL_ADDRESS
    process.ok("cuDevicePrimaryCtxReset_v2", 0)
    assert process.result("cuMemAlloc_v2", Out(), 4 * MIB) == SUCCESS


def test_garbage_for_a_handle(process: Process) -> None:
    for name, arguments in {
        "cuMemRelease": (),
        "cuMemExportToShareableHandle": (POSIX_FD, 0),
    }.items():
        out = (Out(4),) if name.startswith("cuMemExport") else ()
        assert process.result(name, *out, 0xDEADBEEF, *arguments) == INVALID_VALUE
