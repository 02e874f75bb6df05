"""Native allocations: what they cost, what they read as, and that the kernel gives them back after a kill."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kybernate.cuda.simulated import SimulatedGpu

from .conftest import GPU_BYTES, INVALID_VALUE, MIB, NOT_FOUND, OUT_OF_MEMORY, SUCCESS, Out, Process, number


@pytest.mark.root
def test_the_whole_gpu_is_free_at_first_and_again_after_a_free(process: Process, gpu: SimulatedGpu) -> None:
    assert process.free_bytes() == GPU_BYTES
    address = process.allocate(8 * MIB)
    assert gpu.used_bytes == 8 * MIB == GPU_BYTES - process.free_bytes()
    process.ok("cuMemFree_v2", address)
    assert gpu.used_bytes == 0


@pytest.mark.root
def test_processes_share_one_gpu_and_a_killed_one_leaves_nothing(
    start: Callable[..., Process], gpu: SimulatedGpu
) -> None:
    first, second = start(), start()
    first.allocate(100 * MIB)
    assert second.result("cuMemAlloc_v2", Out(), 64 * MIB) == OUT_OF_MEMORY
    assert gpu.used_bytes == 100 * MIB
    first.kill()
    assert gpu.used_bytes == 0
    second.allocate(GPU_BYTES)


def test_memory_that_comes_again_reads_as_zeros(process: Process) -> None:
    for _ in range(3):
        address = process.allocate(4 * MIB)
        assert process.sum(address, MIB) == 0
        process.ok("cuMemsetD8_v2", address, 0xAB, 4 * MIB)
        assert process.read(address) == b"\xab" * 16
        process.ok("cuMemFree_v2", address)


def test_small_allocations_share_a_slab_and_do_not_overlap(process: Process) -> None:
    before = process.free_bytes()
    addresses = [process.allocate(700) for _ in range(100)]
    assert before - process.free_bytes() == 2 * MIB
    for i, address in enumerate(addresses):
        process.ok("cuMemsetD8_v2", address, i, 700)
    assert [process.read(address, 700) for address in addresses] == [bytes([i]) * 700 for i in range(100)]
    for address in addresses:
        process.ok("cuMemFree_v2", address)
    assert process.free_bytes() == before


def test_an_address_range_is_the_allocation(process: Process) -> None:
    address = process.allocate(5 * MIB)
    assert process.ok("cuMemGetAddressRange_v2", Out(), Out(), address + MIB) == (address, 5 * MIB)
    assert process.result("cuMemGetAddressRange_v2", Out(), Out(), 4096) == NOT_FOUND


def test_copies_and_fills(process: Process) -> None:
    a, b = process.allocate(4 * MIB), process.allocate(4 * MIB)
    process.ok("cuMemcpyHtoD_v2", a, bytes(range(256)), 256)
    process.ok("cuMemcpyDtoD_v2", b, a, 256)
    process.ok("cuMemsetD16_v2", b, 0x1234, 4)
    process.ok("cuMemsetD32_v2", b + 8, 0x89ABCDEF, 1)
    assert process.read(b, 256) == b"\x34\x12" * 4 + bytes.fromhex("efcdab89") + bytes(range(12, 256))


def test_what_is_not_ones_own_is_refused(process: Process) -> None:
    address = process.allocate(4 * MIB)
    assert process.result("cuMemFree_v2", address + 512) == INVALID_VALUE
    assert process.result("cuMemcpyDtoH_v2", Out(16), address + 4 * MIB - 8, 16) == INVALID_VALUE
    assert process.result("cuMemsetD8_v2", address, 1, 5 * MIB) == INVALID_VALUE
    process.ok("cuMemFree_v2", address)
    assert process.result("cuMemFree_v2", address) == INVALID_VALUE
    assert process.result("cuMemcpyDtoH_v2", Out(16), address, 16) == INVALID_VALUE


def test_pools_count_what_they_gave(process: Process) -> None:
    pool = process.ok("cuDeviceGetDefaultMemPool", Out(), 0)
    address = process.ok("cuMemAllocAsync", Out(), 4 * MIB, 0)
    assert process.ok("cuMemPoolGetAttribute", pool, 7, Out()) == 4 * MIB
    assert process.ok("cuPointerGetAttribute", Out(), 17, address) == pool
    process.ok("cuMemFreeAsync", address, 0)
    process.ok("cuCtxSynchronize")
    assert process.ok("cuMemPoolGetAttribute", pool, 7, Out()) == 0
    assert process.ok("cuMemPoolGetAttribute", pool, 8, Out()) == 4 * MIB


def test_pinned_memory_is_host_and_device_at_one_address(process: Process) -> None:
    host = process.ok("cuMemHostAlloc", Out(), 8192, 0)
    assert process.ok("cuMemHostGetDevicePointer_v2", Out(), host, 0) == host
    process.ask("poke", address=host, content=b"pinned!!".hex())
    assert process.read(host, 8) == b"pinned!!"
    assert process.ok("cuPointerGetAttribute", Out(4), 2, host) == 1
    process.ok("cuMemFreeHost", host)
    assert process.result("cuMemFreeHost", host) == INVALID_VALUE


def test_the_hash_tells_chunks_apart(process: Process) -> None:
    chunks = 4
    data, bases, out = process.allocate(chunks * 2 * MIB), process.allocate(8 * chunks), process.allocate(16 * chunks)
    addresses = [data + i * 2 * MIB for i in range(chunks)]
    process.ok("cuMemcpyHtoD_v2", bases, b"".join(a.to_bytes(8, "little") for a in addresses), 8 * chunks)
    process.ok("cuMemsetD8_v2", addresses[1], 1, 1)
    process.ok("cuMemsetD8_v2", addresses[2] + 2 * MIB - 1, 1, 1)
    process.ok("cuMemsetD8_v2", addresses[3], 1, 2 * MIB)

    def hashes(key: int) -> list[bytes]:
        assert process.launch("kybernate_hash_chunks", bases, key, ~key & (1 << 64) - 1, out, chunks) == SUCCESS
        content = process.read(out, 16 * chunks)
        return [content[i : i + 16] for i in range(0, len(content), 16)]

    first = hashes(7)
    assert first[0] == bytes(16)
    assert len(set(first)) == chunks
    assert hashes(7) == first
    assert all(a != b for a, b in zip(first[1:], hashes(8)[1:], strict=True))


def test_the_pattern_kernels_agree_with_their_description(process: Process) -> None:
    words = 1000
    address = process.allocate(4 * words)
    assert process.launch("fill_u32", address, words, 77) == SUCCESS

    def pattern(i: int) -> int:
        x = (i * 0x9E3779B9 + 77) & 0xFFFFFFFF
        x = (x ^ x >> 16) * 0x85EBCA6B & 0xFFFFFFFF
        x = (x ^ x >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        return x ^ x >> 16

    wanted = [pattern(i) for i in range(words)]
    assert [number(process.read(address + 4 * i, 4)) for i in (0, 1, 999)] == [wanted[0], wanted[1], wanted[999]]
    assert process.sum(address, words) == sum(wanted)
    assert process.launch("add_one_u32", address, words) == SUCCESS
    assert process.sum(address, words) == sum((w + 1) & 0xFFFFFFFF for w in wanted)
