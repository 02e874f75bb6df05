"""What belongs to the whole process: initialising, fork, the resolver, Python's bindings, the link's speed."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kybernate.cuda import simulated
from kybernate.cuda.simulated import SimulatedGpu

from .conftest import (
    INVALID_VALUE,
    MIB,
    NO_DEVICE,
    NOT_FOUND,
    NOT_INITIALIZED,
    NOT_SUPPORTED,
    SUCCESS,
    Out,
    Process,
    number,
)

FUNCTIONS = Path(__file__).parents[2] / "native" / "simulated" / "functions.inc"


@pytest.mark.parametrize("value", ["", "/nonexistent", "/proc", __file__])
def test_without_a_gpu_there_is_no_device(start: Callable[..., Process], value: str) -> None:
    process = start(variables={simulated.VARIABLE: value}, setup=False)
    assert process.result("cuInit", 0) == NO_DEVICE
    assert process.result("cuMemAlloc_v2", Out(), MIB) == NOT_INITIALIZED


def test_nothing_works_before_cu_init(start: Callable[..., Process]) -> None:
    process = start(setup=False)
    assert process.result("cuDeviceGetCount", Out(4)) == NOT_INITIALIZED
    assert process.result("cuInit", 1) == INVALID_VALUE
    process.ok("cuInit", 0)
    assert process.ok("cuDeviceGetCount", Out(4)) == 1
    assert process.result("cuMemAlloc_v2", Out(), MIB) == 201


def test_the_device_says_that_it_is_simulated(process: Process, gpu: SimulatedGpu) -> None:
    name = process.call("cuDeviceGetName", Out(64), 64, 0)[1].rstrip(b"\0")
    assert name == b"Kybernate simulated GPU"
    uuid = process.call("cuDeviceGetUuid_v2", Out(16), 0)[1].hex()
    assert uuid == gpu.uuid.removeprefix("GPU-").replace("-", "")
    assert [process.ok("cuDeviceGetAttribute", Out(4), a, 0) for a in (75, 76, 102, 103)] == [9, 0, 1, 1]
    assert process.ok("cuDeviceTotalMem_v2", Out(), 0) == gpu.size_bytes


def test_a_forked_child_has_no_cuda_and_no_hold_on_the_gpu(process: Process, gpu: SimulatedGpu) -> None:
    process.allocate(4 * MIB)
    process.create(4 * MIB)
    assert process.ask("fork")[0] == NOT_INITIALIZED
    assert process.read(process.allocate(4 * MIB)) == bytes(16)


def test_the_link_can_be_slow(start: Callable[..., Process]) -> None:
    process = start(variables={simulated.LINK_VARIABLE: "0.25"})
    memory = process.allocate(32 * MIB)
    host = process.ok("cuMemHostAlloc", Out(), 32 * MIB, 0)
    began = time.monotonic()
    process.ok("cuMemcpyHtoDAsync_v2", memory, host, 32 * MIB, 0)
    process.ok("cuCtxSynchronize")
    assert time.monotonic() - began >= 32 / 256


def resolved(process: Process, name: str, version: int) -> tuple[int, int, int]:
    result, pointer, status = process.call("cuGetProcAddress_v2", name.encode() + b"\0", Out(), version, 0, Out(4))
    return result, number(pointer), number(status)


def test_every_listed_function_is_found_by_its_version(process: Process) -> None:
    rows = re.findall(r"^VARIANT\((\w+), (\d+), (\w+)\)", FUNCTIONS.read_text(), re.MULTILINE)
    assert len(rows) > 150
    for base, version, _ in rows:
        result, pointer, status = resolved(process, base, int(version))
        assert (result, status) == (SUCCESS, 0), base
        assert pointer


def test_the_newest_variant_that_is_old_enough(process: Process) -> None:
    at = {version: resolved(process, "cuCtxCreate", version)[1] for version in (3020, 11040, 12000, 12050, 13000)}
    assert at[11040] == at[12000]
    assert at[12050] == at[13000]
    assert len(set(at.values())) == 3
    assert resolved(process, "cuCtxCreate", 2000) == (NOT_FOUND, 0, 2)
    assert resolved(process, "cuNoSuchCall", 13000) == (NOT_FOUND, 0, 1)
    assert process.call("cuGetExportTable", Out(), bytes(16))[:2] == (NOT_FOUND, bytes(8))


def test_an_image_for_a_real_gpu_is_refused(process: Process) -> None:
    assert process.result("cuModuleLoadData", Out(), b"\x7fELF" + bytes(60)) == 200


def test_pythons_bindings_work_on_it(gpu: SimulatedGpu) -> None:
    pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)
    program = """
import ctypes
from cuda.bindings import driver as d
def ok(answer):
    assert answer[0] == d.CUresult.CUDA_SUCCESS, answer
    return answer[1] if len(answer) == 2 else answer[1:]
ok(d.cuInit(0))
ok(d.cuCtxSetCurrent(ok(d.cuDevicePrimaryCtxRetain(ok(d.cuDeviceGet(0))))))
p = d.CUmemAllocationProp()
p.type = d.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
p.location.type = d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
p.requestedHandleTypes = d.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
size = 4 << 20
handle = ok(d.cuMemCreate(size, p, 0))
address = int(ok(d.cuMemAddressReserve(size, 0, 0, 0)))
ok(d.cuMemMap(address, size, 0, handle, 0))
a = d.CUmemAccessDesc()
a.location.type = d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
a.flags = d.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
ok(d.cuMemSetAccess(address, size, [a], 1))
module = ok(d.cuModuleLoadData(b"KYBERNATE-SIMULATED\\0"))
function = ok(d.cuModuleGetFunction(module, b"add_one_u32"))
ok(d.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, ((address, size // 4), (ctypes.c_uint64, ctypes.c_uint64)), 0))
ok(d.cuCtxSynchronize())
content = bytearray(4)
ok(d.cuMemcpyDtoH(content, address, 4))
assert content == b"\\1\\0\\0\\0", content
assert d.cuMemExportToShareableHandle(handle, p.requestedHandleTypes, 0)[0] == 0
print("fine")
"""
    environment = simulated.environment([gpu], os.environ)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_pitched_copies(process: Process) -> None:
    address, pitch = process.ok("cuMemAllocPitch_v2", Out(), Out(), 100, 3, 4)
    assert pitch % 512 == 0
    host = process.ok("cuMemHostAlloc", Out(), 4096, 0)
    process.ask("poke", address=host, content=bytes(range(12)).hex())

    def copy(*, to_device: bool) -> bytes:
        ours, theirs = (1, host, 0, 4), (2, 0, address, pitch)
        source, destination = (ours, theirs) if to_device else (theirs, ours)
        side = "<QQi4xQQQQ"
        sides = [struct.pack(side, 0, 0, s[0], s[1], s[2], 0, s[3]) for s in (source, destination)]
        return sides[0] + sides[1] + struct.pack("<QQ", 4, 3)

    process.ok("cuMemcpy2D_v2", copy(to_device=True))
    assert process.read(address + 2 * pitch, 4) == bytes(range(8, 12))
    process.ask("poke", address=host, content=bytes(12).hex())
    process.ok("cuMemcpy2D_v2", copy(to_device=False))
    assert process.ask("peek", address=host, size=12) == bytes(range(12)).hex()


def test_what_is_not_simulated_says_so(process: Process) -> None:
    assert process.result("cuMemPoolExportToShareableHandle", Out(), 0, 1, 0) == NOT_SUPPORTED
