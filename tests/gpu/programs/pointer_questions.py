"""Threads that work on the CPU for 2 ms, then ask the driver about their memory: every answer is the one given without pauses.

By ctypes, so that it runs on the simulated driver, too. Each question is asked once before the first step; from then on several
threads ask all of them, each in an order of its own, and one more holds a lock while it asks that host functions on the GPU's
streams take. `--list` prints the calls that are asked.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from program import Loop, cannot_run, mismatch, say

MIB = 1 << 20
SIZE = 8 * MIB
CPU_WORK_S = 0.002
THREADS = 3
ATTRIBUTES = [a for a in range(1, 22) if a != 5]  # without the peer-to-peer tokens of kernel modules
DEVICE = struct.pack("<ii", 1, 0)  # CUmemLocation
PROPERTIES = struct.pack("<iiiiQ8x", 1, 0, 1, 0, 0)  # CUmemAllocationProp: pinned, on device 0, without a handle type
READ_WRITE = struct.pack("<iii", 1, 0, 3)  # CUmemAccessDesc
SYNC_MEMOPS = 6
COPIED = (("allocated", "second"), ("mapped", "allocated"), ("pooled", "mapped"), ("nowhere", "mapped"))
PTX = b""".version 6.0
.target sm_50
.address_size 64
.visible .global .align 4 .u32 counter;
.visible .entry nothing() { ret; }
\0"""
Answer = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Out:
    """A parameter the call writes to, of so many bytes."""

    size: int = 8


class Driver:
    """The driver's functions by name; `asked` has those that were called."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.asked: set[str] = set()
        self.simulated = hasattr(self.library, "kybernate_simulated_version")

    def has(self, name: str) -> bool:
        return hasattr(self.library, name)

    def call(self, name: str, *arguments: int | bytes | Out) -> Answer:
        """Its result, and what it wrote."""
        self.asked.add(name)
        outs: list[ctypes.Array[ctypes.c_char]] = []
        converted: list[object] = []
        for argument in arguments:
            if isinstance(argument, Out):
                outs.append(ctypes.create_string_buffer(argument.size))
                converted.append(outs[-1])
            elif isinstance(argument, bytes):
                converted.append(ctypes.create_string_buffer(argument, len(argument)))
            else:
                converted.append(ctypes.c_uint64(argument & (1 << 64) - 1))
        result = int(getattr(self.library, name)(*converted))
        return result, b"".join(out.raw for out in outs)

    def number(self, name: str, *arguments: int | bytes | Out) -> int:
        """What it wrote; the call must succeed."""
        result, wrote = self.call(name, *arguments)
        if result:
            cannot_run(f"{name} answers {result}")
        return int.from_bytes(wrote[:8], "little")

    def several(self, attributes: list[int], address: int) -> Answer:
        """cuPointerGetAttributes, for all attributes at once."""
        self.asked.add("cuPointerGetAttributes")
        values = [ctypes.create_string_buffer(8) for _ in attributes]
        places = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        kinds = (ctypes.c_int * len(attributes))(*attributes)
        result = int(self.library.cuPointerGetAttributes(len(attributes), kinds, places, ctypes.c_uint64(address)))
        return result, b"".join(value.raw for value in values)


@dataclass
class Memory:
    """One of each kind."""

    cuda: Driver
    context: int = 0
    device: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    module: int = 0
    function: int = 0
    stream: int = 0

    def make(self) -> None:
        cuda, number = self.cuda, self.cuda.number
        if cuda.call("cuInit", 0)[0]:
            cannot_run("no CUDA device")
        self.device = number("cuDeviceGet", Out(4), 0)
        self.context = number("cuDevicePrimaryCtxRetain", Out(), self.device)
        self.enter()
        self.stream = number("cuStreamCreate", Out(), 1)
        first, second = (number("cuMemAlloc_v2", Out(), SIZE) for _ in range(2))
        mapped = number("cuMemAddressReserve", Out(), SIZE, 0, 0, 0)
        handle = number("cuMemCreate", Out(), SIZE, PROPERTIES, 0)
        cuda.call("cuMemMap", mapped, SIZE, 0, handle, 0)
        cuda.call("cuMemSetAccess", mapped, SIZE, READ_WRITE, 1)
        cuda.call("cuMemRelease", handle)
        self.kinds = {
            "allocated": first,
            "inside": first + SIZE - 4096,
            "second": second,
            "small": number("cuMemAlloc_v2", Out(), 4096),
            "mapped": mapped,
            "inside mapped": mapped + 4 * MIB + 64,
            "pooled": number("cuMemAllocAsync", Out(), MIB, self.stream),
            "pinned": number("cuMemHostAlloc", Out(), 64 * 1024, 0),
            "nowhere": 16,
        }
        if cuda.simulated:  # whose addresses nobody gets again so soon
            self.kinds["freed"] = number("cuMemAlloc_v2", Out(), SIZE)
            cuda.call("cuMemFree_v2", self.kinds["freed"])
        cuda.call("cuMemsetD32_v2", first, 7, SIZE // 4)
        cuda.call("cuPointerSetAttribute", struct.pack("<i", 1), SYNC_MEMOPS, second)
        image = b"KYBERNATE-SIMULATED\0" if cuda.simulated else PTX
        self.module = number("cuModuleLoadData", Out(), image)
        self.function = number("cuModuleGetFunction", Out(), self.module, b"nothing\0")

    def enter(self) -> None:
        self.cuda.call("cuCtxSetCurrent", self.context)


def copy_node(source: int, destination: int) -> bytes:
    """CUDA_MEMCPY3D of 4096 bytes on the device."""
    side = "<QQQQi4xQQQQQQ"
    from_, to = (struct.pack(side, 0, 0, 0, 0, 2, 0, address, 0, 0, 0, 0) for address in (source, destination))
    return from_ + to + struct.pack("<QQQ", 4096, 1, 1)


def set_node(address: int) -> bytes:
    """CUDA_MEMSET_NODE_PARAMS of 1024 words."""
    return struct.pack("<QQIIQQ", address, 0, 9, 4, 1024, 1)


Question = tuple[str, Callable[[], Answer]]


def about_addresses(memory: Memory) -> Iterator[Question]:
    cuda = memory.cuda
    for kind, address in memory.kinds.items():
        for attribute in ATTRIBUTES:
            asked = partial(cuda.call, "cuPointerGetAttribute", Out(), attribute, address)
            yield f"attribute {attribute} of {kind}", asked
        yield f"attributes of {kind}", partial(cuda.several, [1, 2, 3, 7, 8, 9, 11, 12, 13, 20], address)
        yield f"range of {kind}", partial(cuda.call, "cuMemGetAddressRange_v2", Out(), Out(), address)
        yield f"access to {kind}", partial(cuda.call, "cuMemGetAccess", Out(), DEVICE, address)
        if cuda.has("cuMemGetLocationInfo"):
            asked = partial(cuda.call, "cuMemGetLocationInfo", address, 4096, 4096, 4096, Out(64))
            yield f"location of {kind}", asked
        yield f"handle behind {kind}", partial(handle_behind, cuda, address)
        if cuda.has("cuTensorMapEncodeTiled"):
            yield f"tensor map of {kind}", partial(tensor_map, cuda, address)
    one, second = struct.pack("<i", 1), memory.kinds["second"]
    yield "setting an attribute", partial(cuda.call, "cuPointerSetAttribute", one, SYNC_MEMOPS, second)
    pinned = memory.kinds["pinned"]
    yield "device address of pinned memory", partial(cuda.call, "cuMemHostGetDevicePointer_v2", Out(), pinned, 0)
    yield "flags of pinned memory", partial(cuda.call, "cuMemHostGetFlags", Out(4), pinned)
    variable = partial(cuda.call, "cuModuleGetGlobal_v2", Out(), Out(), memory.module, b"counter\0")
    yield "address of a variable", variable


def handle_behind(cuda: Driver, address: int) -> Answer:
    """Whether there is one, and its properties: the number itself is anybody's."""
    result, handle = cuda.call("cuMemRetainAllocationHandle", Out(), address)
    if result:
        return result, b""
    number = int.from_bytes(handle, "little")
    answer = cuda.call("cuMemGetAllocationPropertiesFromHandle", Out(32), number)
    return cuda.call("cuMemRelease", number)[0] or answer[0], answer[1]


def tensor_map(cuda: Driver, address: int) -> Answer:
    """128 bytes, aligned to 64; 256 x 256 words."""
    cuda.asked.add("cuTensorMapEncodeTiled")
    room = ctypes.create_string_buffer(128 + 64)
    place = (ctypes.addressof(room) + 63) & ~63
    lengths, strides = (ctypes.c_uint64 * 2)(256, 256), (ctypes.c_uint64 * 1)(1024)
    box, steps = (ctypes.c_uint32 * 2)(64, 64), (ctypes.c_uint32 * 2)(1, 1)
    result = cuda.library.cuTensorMapEncodeTiled(
        ctypes.c_void_p(place), 4, 2, ctypes.c_void_p(address), lengths, strides, box, steps, 0, 0, 0, 0
    )
    return int(result), ctypes.string_at(place, 128)


def about_graphs(memory: Memory) -> Iterator[Question]:
    cuda, kinds = memory.cuda, memory.kinds

    def built(name: str, parameters: bytes) -> Answer:
        graph = cuda.number("cuGraphCreate", Out(), 0)
        result, _ = cuda.call(name, Out(), graph, 0, 0, parameters, memory.context)
        counted = cuda.call("cuGraphGetNodes", graph, 0, Out())
        cuda.call("cuGraphDestroy", graph)
        return result, counted[1]

    for source, destination in COPIED:
        node = copy_node(kinds[source], kinds[destination])
        yield f"a copy from {source} to {destination}", partial(built, "cuGraphAddMemcpyNode", node)
    for kind in ("second", "inside mapped", "pooled", "nowhere"):
        yield f"a fill of {kind}", partial(built, "cuGraphAddMemsetNode", set_node(kinds[kind]))


def about_the_rest(memory: Memory) -> Iterator[Question]:
    """What needs no gate by our reckoning, and what allocates."""
    cuda, device, stream, function = memory.cuda, memory.device, memory.stream, memory.function
    ask = partial(partial, cuda.call)
    yield "the stack's limit", ask("cuCtxGetLimit", Out(), 0)
    yield "the current context", ask("cuCtxGetCurrent", Out())
    yield "the primary context", ask("cuDevicePrimaryCtxRetain", Out(), device)
    yield "the current device", ask("cuCtxGetDevice", Out(4))
    yield "a capture's state", ask("cuStreamIsCapturing", stream, Out(4))
    yield "a stream's flags", ask("cuStreamGetFlags", stream, Out(4))
    yield "multiprocessors", ask("cuDeviceGetAttribute", Out(4), 16, device)
    yield "the default pool", ask("cuDeviceGetDefaultMemPool", Out(), device)
    yield "a function", ask("cuModuleGetFunction", Out(), memory.module, b"nothing\0")
    yield "a function's registers", ask("cuFuncGetAttribute", Out(4), 4, function)
    yield "occupancy", ask("cuOccupancyMaxActiveBlocksPerMultiprocessor", Out(4), function, 64, 0)
    yield "free memory", lambda: (cuda.call("cuMemGetInfo_v2", Out(), Out())[0], b"")
    yield "an allocation of its own", lambda: passing(cuda, "cuMemAlloc_v2", [], "cuMemFree_v2", [])
    yield "one in order of a stream", lambda: passing(cuda, "cuMemAllocAsync", [stream], "cuMemFreeAsync", [stream])
    yield (
        "an allocation freed in order of a stream",
        lambda: passing(cuda, "cuMemAlloc_v2", [], "cuMemFreeAsync", [stream]),
    )
    yield "a mapping of its own", lambda: mapping(cuda)


def passing(cuda: Driver, allocate: str, how: list[int], free: str, then: list[int]) -> Answer:
    """Allocate, ask, write, read, free."""
    result, raw = cuda.call(allocate, Out(), 2 * MIB, *how)
    if result:
        return result, b"not allocated"
    address = int.from_bytes(raw, "little")
    for stream in how:
        cuda.call("cuStreamSynchronize", stream)
    size = cuda.call("cuMemGetAddressRange_v2", Out(), Out(), address + 4096)
    cuda.call("cuMemsetD32_v2", address, 11, 1024)
    found = cuda.call("cuMemcpyDtoH_v2", Out(4096), address, 4096)
    result, _ = cuda.call(free, address, *then)
    whole = bool(how) or size == (0, struct.pack("<QQ", address, 2 * MIB))  # a pool has its own ranges
    exact = whole and found == (0, struct.pack("<I", 11) * 1024)
    return result, b"exact" if exact else b"wrong"


def mapping(cuda: Driver) -> Answer:
    """Reserve, create, map, allow, ask, and all of it back."""
    size = 2 * MIB
    address = int.from_bytes(cuda.call("cuMemAddressReserve", Out(), size, 0, 0, 0)[1], "little")
    handle = int.from_bytes(cuda.call("cuMemCreate", Out(), size, PROPERTIES, 0)[1], "little")
    results = [cuda.call("cuMemMap", address, size, 0, handle, 0)[0]]
    results.append(cuda.call("cuMemSetAccess", address, size, READ_WRITE, 1)[0])
    access = cuda.call("cuMemGetAccess", Out(), DEVICE, address)[1]
    results += [cuda.call("cuMemUnmap", address, size)[0], cuda.call("cuMemRelease", handle)[0]]
    results.append(cuda.call("cuMemAddressFree", address, size)[0])
    return max(results), access


class Asker:
    def __init__(self, memory: Memory, loop: Loop) -> None:
        self._memory = memory
        self._loop = loop
        self.questions: list[Question] = [*about_addresses(memory), *about_graphs(memory), *about_the_rest(memory)]
        self._answers = {what: ask() for what, ask in self.questions}
        self._lock = threading.Lock()
        self._host_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._taken)

    @property
    def going(self) -> bool:
        return not self._loop.stopped

    def ask(self, question: Question) -> None:
        what, ask = question
        time.sleep(CPU_WORK_S)
        if (answer := ask()) != self._answers[what]:
            was = self._answers[what]
            mismatch(f"{what}: {answer[0]} {answer[1].hex()}, and without a pause {was[0]} {was[1].hex()}")

    def forever(self, seed: int) -> None:
        self._memory.enter()
        order = random.Random(seed)
        while self.going:
            for question in order.sample(self.questions, len(self.questions)):
                if not self.going:
                    return
                self.ask(question)

    def hold_a_lock(self) -> None:
        """Questions that wait for nothing on the GPU, asked under a lock that the GPU's work may be waiting for."""
        self._memory.enter()
        mine = [question for question in self.questions if question[0].startswith(("attribute", "range", "access"))]
        while self.going:
            for question in mine:
                with self._lock:
                    self.ask(question)
                if not self.going:
                    return

    def need_the_lock(self) -> None:
        self._memory.enter()
        library, stream = self._memory.cuda.library, ctypes.c_void_p(self._memory.stream)
        while self.going:
            if library.cuLaunchHostFunc(stream, self._host_function, None) or library.cuStreamSynchronize(stream):
                mismatch("a host function's stream failed")
            time.sleep(CPU_WORK_S)

    def _taken(self, _: object) -> None:
        with self._lock:
            pass


def main() -> None:
    loop = Loop()
    cuda = Driver()
    memory = Memory(cuda)
    memory.make()
    cuda.asked.clear()
    asker = Asker(memory, loop)
    if "--list" in sys.argv:
        say(" ".join(sorted(cuda.asked)))
        return
    threads = [threading.Thread(target=asker.forever, args=(seed,)) for seed in range(THREADS)]
    threads += [threading.Thread(target=asker.hold_a_lock), threading.Thread(target=asker.need_the_lock)]
    for thread in threads:
        thread.start()
    for step in loop:
        asker.ask(asker.questions[step % len(asker.questions)])
    for thread in threads:
        thread.join()
    found = cuda.call("cuMemcpyDtoH_v2", Out(SIZE), memory.kinds["second"], 4)
    if found[0]:
        mismatch(f"at the end: {found[0]}")
    loop.finish(note=f"questions={len(asker.questions)}")


main()
