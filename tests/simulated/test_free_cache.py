"""Freed memory that the preload library keeps for the next cuMemAlloc: when it is reused, and when it goes back at once.

A process under the preload library, and a broker in a process of its own, as in life.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Eventually

from kybernate.cuda import simulated
from kybernate.cuda.control import Control
from kybernate.cuda.simulated import SimulatedGpu
from kybernate.model.native import preload_library

from .conftest import INVALID_VALUE, MIB, NOT_FOUND, OUT_OF_MEMORY, SUCCESS, Out, Process, access, number
from .test_stress import program

__all__ = ["program"]

GPU_BYTES = 4096 * MIB
KEPT_BYTES = 64 * MIB
KEPT_BLOCKS = 16
GRANTER = Path(__file__).with_name("granter.py")
RANGE_START, RANGE_SIZE = 11, 12


class Granter:
    """See granter.py."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, str(GRANTER), str(theirs.fileno()), str(directory), str(GPU_BYTES)]
            self._popen = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self._channel = ours
        ours.settimeout(60)
        assert ours.recv(16) == b"ready"

    def ask(self, do: str, **words: Any) -> Any:
        self._channel.send(json.dumps({"do": do, **words}).encode())
        return json.loads(self._channel.recv(1 << 16))

    def limit(self, capacity: int, *, own: int = GPU_BYTES) -> None:
        self.ask("limit", capacity=capacity, own=own)

    @property
    def resident(self) -> int:
        return int(self.ask("state")["resident"])

    @property
    def asked(self) -> int:
        """How often memory was asked for."""
        return int(self.ask("state")["asked"])

    @property
    def waited(self) -> int:
        return int(self.ask("state")["waited"])

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._channel.close()


@pytest.fixture
def gpu(gpu_path: Path) -> SimulatedGpu:
    return simulated.make(gpu_path, size_bytes=GPU_BYTES)


@pytest.fixture
def run_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="kyb-run-"))
    (directory / "control").mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def grant(run_directory: Path) -> Iterator[Callable[..., Granter]]:
    """`grant(gpu, ...)` gives an agent for these GPUs."""
    with contextlib.ExitStack() as stack:

        def make(*gpus: SimulatedGpu) -> Granter:
            granter = Granter(simulated.environment(gpus, os.environ), run_directory)
            stack.callback(granter.kill)
            return granter

        yield make


@pytest.fixture
def granter(gpu: SimulatedGpu, grant: Callable[..., Granter]) -> Granter:
    return grant(gpu)


def variables(run_directory: Path) -> dict[str, str]:
    # A sanitizer's run-time comes after it, as it does in a workload.
    preload = ":".join(filter(None, [str(preload_library()), os.environ.get("LD_PRELOAD")]))
    return {"LD_PRELOAD": preload, "KYBERNATE_RUN_DIRECTORY": str(run_directory)}


@pytest.fixture
def worker(granter: Granter, start: Callable[..., Process], run_directory: Path) -> Process:
    return start(variables=variables(run_directory))


@pytest.fixture
def control_path(worker: Process, run_directory: Path) -> Path:
    return run_directory / "control" / f"{worker.pid}.sock"


def freed(process: Process, size: int = 4 * MIB) -> int:
    """Address of memory that was allocated and freed."""
    address = process.allocate(size)
    process.ok("cuMemFree_v2", address)
    return address


def test_the_same_size_comes_back_without_asking(worker: Process, granter: Granter) -> None:
    first = freed(worker)
    assert granter.resident == 4 * MIB, "kept memory is resident"
    assert [freed(worker, size) for size in (4 * MIB, 4 * MIB - 1, 2 * MIB + 1)] == [first] * 3, "one size, rounded up"
    assert (granter.asked, granter.resident) == (1, 4 * MIB)
    address = worker.allocate(3 * MIB)
    assert worker.ok("cuMemGetAddressRange_v2", Out(), Out(), address) == (first, 3 * MIB)
    assert worker.launch("fill_u32", address, 3 * MIB // 4, 7) == SUCCESS
    assert worker.sum(address, 3 * MIB // 4)


def test_another_size_asks(worker: Process, granter: Granter) -> None:
    freed(worker, 4 * MIB)
    freed(worker, 6 * MIB)
    assert (granter.asked, granter.resident) == (2, 10 * MIB)


def test_two_at_once_are_two(worker: Process, granter: Granter) -> None:
    freed(worker)
    addresses = [worker.allocate(4 * MIB) for _ in range(2)]
    assert (len(set(addresses)), granter.asked, granter.resident) == (2, 2, 8 * MIB)


@pytest.mark.parametrize("async_", [False, True])
def test_freed_in_order_of_a_stream(worker: Process, granter: Granter, async_: bool) -> None:
    stream = int(worker.ok("cuStreamCreate", Out(), 1))
    address = worker.allocate(4 * MIB)
    assert worker.launch("fill_u32", address, MIB, 7, stream=stream) == SUCCESS
    worker.ok("cuMemFreeAsync", address, stream) if async_ else worker.ok("cuMemFree_v2", address)
    assert (worker.allocate(4 * MIB), granter.asked) == (address, 1)


@pytest.mark.parametrize("async_", [False, True])
def test_freeing_waits_for_the_work(worker: Process, async_: bool) -> None:
    flag = int(worker.ok("cuMemHostAlloc", Out(), 4096, 0))
    stream = int(worker.ok("cuStreamCreate", Out(), 1))
    address = freed(worker)
    assert worker.allocate(4 * MIB) == address
    assert worker.launch("spin", flag, stream=stream) == SUCCESS
    freeing = worker.start(*(("cuMemFreeAsync", address, stream) if async_ else ("cuMemFree_v2", address)))
    assert worker.join(freeing, timeout_s=0.2) is None
    worker.ok("cuMemsetD32_v2", flag, 1, 1)
    assert worker.join(freeing) == SUCCESS


def test_it_is_bounded_in_bytes_and_the_oldest_goes_first(worker: Process, granter: Granter) -> None:
    sizes = [size * MIB for size in (30, 20, 12, 16)]
    addresses = [worker.allocate(size) for size in sizes]
    for address in addresses:
        worker.ok("cuMemFree_v2", address)
    assert granter.resident == sum(sizes[1:]) <= KEPT_BYTES
    assert [worker.allocate(size) for size in sizes[1:]] == addresses[1:]
    assert granter.asked == 4
    worker.allocate(sizes[0])
    assert granter.asked == 5


def test_it_is_bounded_in_number(worker: Process, granter: Granter) -> None:
    for address in [worker.allocate(2 * MIB) for _ in range(KEPT_BLOCKS + 4)]:
        worker.ok("cuMemFree_v2", address)
    assert granter.resident == KEPT_BLOCKS * 2 * MIB


@pytest.mark.parametrize("size", [34 * MIB, 300 * MIB])
def test_large_ones_go_back_at_once(worker: Process, granter: Granter, size: int) -> None:
    freed(worker, size)
    assert granter.resident == 0


def test_a_small_gpu_keeps_little(
    gpu_path: Path, grant: Callable[..., Granter], start: Callable[..., Process], run_directory: Path
) -> None:
    small = simulated.make(gpu_path.with_name("small"), size_bytes=256 * MIB)
    try:
        granter = grant(small)
        worker = start(variables={**variables(run_directory), simulated.VARIABLE: str(small.path)})
        freed(worker, 4 * MIB)
        assert granter.resident == 4 * MIB
        freed(worker, 6 * MIB)
        assert granter.resident == 4 * MIB, "a 64th of the GPU"
        worker.kill()
    finally:
        simulated.remove(small.path)


def test_an_idle_process_gives_it_back(worker: Process, granter: Granter, eventually: Eventually) -> None:
    freed(worker, 4 * MIB)
    freed(worker, 6 * MIB)
    held = worker.allocate(2 * MIB)
    eventually(lambda: granter.resident == 2 * MIB, what="kept memory grows old")
    assert freed(worker)
    assert worker.ok("cuMemGetAddressRange_v2", Out(), Out(), held) == (held, 2 * MIB)


def test_it_is_free_memory_to_the_application(worker: Process, granter: Granter) -> None:
    before = worker.free_bytes()
    held = worker.allocate(4 * MIB)
    assert worker.free_bytes() == before - 4 * MIB
    worker.ok("cuMemFree_v2", held)
    assert (worker.free_bytes(), granter.resident) == (before, 4 * MIB)


@pytest.mark.parametrize("how", ["wait", "never"])
@pytest.mark.parametrize("call", ["cuMemAlloc", "cuMemCreate"])
def test_it_goes_back_before_anybody_waits(worker: Process, granter: Granter, how: str, call: str) -> None:
    held = worker.allocate(8 * MIB)
    freed(worker, 12 * MIB)
    granter.limit(24 * MIB, own=24 * MIB if how == "never" else GPU_BYTES)
    worker.allocate(16 * MIB) if call == "cuMemAlloc" else worker.create(16 * MIB)
    assert (granter.resident, granter.waited) == (24 * MIB, 0)
    worker.ok("cuMemFree_v2", held)


def test_what_never_fits_is_still_refused(worker: Process, granter: Granter) -> None:
    granter.limit(24 * MIB, own=24 * MIB)
    freed(worker, 8 * MIB)
    assert worker.result("cuMemAlloc_v2", Out(), 26 * MIB) == OUT_OF_MEMORY
    assert granter.resident == 0
    assert freed(worker, 8 * MIB) == freed(worker, 8 * MIB)
    assert granter.resident == 8 * MIB, "the need is over: it is kept again"


def test_nothing_is_kept_while_a_thread_waits_for_room(
    worker: Process, granter: Granter, eventually: Eventually
) -> None:
    granter.limit(24 * MIB)
    held = worker.allocate(20 * MIB)
    waiting = worker.start("cuMemAlloc_v2", Out(), 8 * MIB)
    eventually(lambda: granter.waited == 1, what="it waits")
    freed(worker, 4 * MIB)
    worker.ok("cuMemFree_v2", held)
    assert granter.resident == 0
    granter.ask("make room")
    assert worker.join(waiting) == SUCCESS
    assert granter.resident == 8 * MIB


def test_a_pause_gives_it_back_and_copies_nothing_of_it(worker: Process, granter: Granter, control_path: Path) -> None:
    held = worker.allocate(6 * MIB)
    freed(worker, 4 * MIB)
    freed(worker, 8 * MIB)
    assert granter.resident == 18 * MIB
    with Control(control_path) as control:
        assert [(record.address, record.size) for record in control.quiesce(5)] == [(held, 6 * MIB)]
        assert granter.resident == 6 * MIB, "the agent has it before it is told that the process is quiet"
        control.release()
        control.remap()
        control.open()
    assert worker.sum(held, MIB) == 0
    assert freed(worker) == freed(worker)


def test_a_second_free_is_refused(worker: Process) -> None:
    address = freed(worker)
    stream = int(worker.ok("cuStreamCreate", Out(), 1))
    assert worker.result("cuMemFree_v2", address) == INVALID_VALUE
    assert worker.result("cuMemFree_v2", address + 2 * MIB) == INVALID_VALUE
    assert worker.result("cuMemFreeAsync", address, stream) == INVALID_VALUE
    assert worker.allocate(4 * MIB) == address


def test_the_address_of_freed_memory_is_nobodys(worker: Process, granter: Granter) -> None:
    address = freed(worker)
    for at in (address, address + 3 * MIB):
        assert worker.result("cuMemGetAddressRange_v2", Out(), Out(), at) == NOT_FOUND
        assert worker.result("cuPointerGetAttribute", Out(), RANGE_SIZE, at) == INVALID_VALUE
        assert worker.result("cuMemRetainAllocationHandle", Out(), at) == INVALID_VALUE
        assert worker.result("cuIpcGetMemHandle", Out(64), at) == INVALID_VALUE
    assert worker.result("cuMemUnmap", address, 4 * MIB) == INVALID_VALUE
    assert worker.result("cuMemSetAccess", address, 4 * MIB, access(), 1) == INVALID_VALUE
    assert granter.resident == 4 * MIB
    assert worker.allocate(4 * MIB) == address
    assert number(worker.call("cuPointerGetAttribute", Out(), RANGE_START, address + MIB)[1]) == address
    assert worker.launch("fill_u32", address, MIB, 7) == SUCCESS


def test_what_others_may_reach_is_not_kept(worker: Process, granter: Granter) -> None:
    shared = worker.allocate(4 * MIB)
    worker.ok("cuIpcGetMemHandle", Out(64), shared)
    worker.ok("cuMemFree_v2", shared)
    assert granter.resident == 0


def test_what_has_other_rights_is_not_kept(worker: Process, granter: Granter) -> None:
    changed = worker.allocate(4 * MIB)
    worker.ok("cuMemSetAccess", changed, 4 * MIB, access(1), 1)
    worker.ok("cuMemFree_v2", changed)
    assert granter.resident == 0


def test_another_context_neither_takes_nor_keeps_it(worker: Process, granter: Granter) -> None:
    primary = int(worker.ok("cuCtxGetCurrent", Out()))
    kept = freed(worker)
    second = int(worker.ok("cuCtxCreate_v2", Out(), 0, 0))
    theirs = worker.allocate(4 * MIB)
    assert theirs != kept
    worker.ok("cuCtxSetCurrent", primary)
    worker.ok("cuMemFree_v2", theirs)
    assert granter.resident == 4 * MIB, "freed under a context that does not own it"
    worker.ok("cuCtxDestroy_v2", second)
    assert worker.allocate(4 * MIB) == kept


def test_a_context_takes_what_it_kept_along(worker: Process, granter: Granter) -> None:
    primary = int(worker.ok("cuCtxGetCurrent", Out()))
    second = int(worker.ok("cuCtxCreate_v2", Out(), 0, 0))
    freed(worker)
    worker.allocate(6 * MIB)
    assert granter.resident == 10 * MIB
    worker.ok("cuCtxDestroy_v2", second)
    assert granter.resident == 0
    worker.ok("cuCtxSetCurrent", primary)
    assert freed(worker) == freed(worker)


def test_nothing_is_kept_while_a_capture_is_open(worker: Process, granter: Granter) -> None:
    """Freeing doesn't wait then, so somebody may still be using it."""
    stream = int(worker.ok("cuStreamCreate", Out(), 1))
    address = worker.allocate(4 * MIB)
    worker.ok("cuStreamBeginCapture_v2", stream, 2)
    worker.ok("cuMemFree_v2", address)
    assert granter.resident == 0
    worker.ok("cuStreamEndCapture", stream, Out())


def test_a_forked_child_has_nothing_of_it(worker: Process, granter: Granter, eventually: Eventually) -> None:
    kept = freed(worker)
    assert worker.ask("fork")[0] & 64 == 0, "a descriptor of the GPU's memory"
    assert (worker.allocate(4 * MIB), granter.asked) == (kept, 1)
    worker.ok("cuMemFree_v2", kept)
    eventually(lambda: granter.resident == 0, what="the parent still gives it back")


def test_a_new_agent_never_learns_of_it(
    worker: Process,
    granter: Granter,
    gpu: SimulatedGpu,
    grant: Callable[..., Granter],
    eventually: Eventually,
) -> None:
    held = worker.allocate(6 * MIB)
    assert worker.launch("fill_u32", held, MIB, 7) == SUCCESS
    before = worker.sum(held, MIB)
    kept = freed(worker)
    granter.kill()
    assert freed(worker) == kept, "it needs no agent"
    successor = grant(gpu)
    assert (successor.ask("adopt", pid=worker.pid), successor.resident) == (1, 6 * MIB)
    assert worker.sum(held, MIB) == before
    freed(worker)
    assert (successor.asked, successor.resident) == (1, 10 * MIB)
    worker.ok("cuMemFree_v2", held)
    eventually(lambda: successor.resident == 0, what="all goes back to the successor")


def test_what_a_new_agent_never_heard_of_holds_nothing_up(
    worker: Process, granter: Granter, gpu: SimulatedGpu, grant: Callable[..., Granter]
) -> None:
    """Memory of several agents that goes back at once: the one that lives gets its own."""
    second = int(worker.ok("cuCtxCreate_v2", Out(), 0, 0))
    worker.allocate(4 * MIB)
    granter.kill()
    successor = grant(gpu)
    worker.allocate(6 * MIB)
    assert successor.resident == 6 * MIB
    worker.ok("cuCtxDestroy_v2", second)
    assert successor.resident == 0


def test_without_an_agent_it_still_grows_old(
    worker: Process, granter: Granter, gpu: SimulatedGpu, eventually: Eventually
) -> None:
    freed(worker)
    granter.kill()
    if gpu.mounted:
        eventually(lambda: gpu.used_bytes == 0, what="kept memory grows old")


def test_threads_keep_their_sums(
    program: Path,
    granter: Granter,
    gpu: SimulatedGpu,
    run_directory: Path,
    eventually: Eventually,
) -> None:
    """Threads that allocate and free while they are quiesced, listed and aged: no two ever hold the same memory."""
    environment = {**simulated.environment([gpu], os.environ), **variables(run_directory)}
    command = [str(program), "4"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        path = run_directory / "control" / f"{process.pid}.sock"
        for _ in range(20):
            with Control(path) as control:
                control.quiesce(20)
                control.release()
                control.remap()
                control.open()
            granter.ask("adopt", pid=process.pid)
        process.stdin.close()
        assert int(process.stdout.readline()) > 0
        assert process.wait() == SUCCESS
