"""Streams, events, graphs: order, and a kernel that runs until it is told to stop."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import CAPTURE_UNSUPPORTED, ILLEGAL_STATE, INVALID_VALUE, MIB, NOT_READY, SUCCESS, Out, Process, number

NON_BLOCKING = 1
CAPTURE_RELAXED = 2


class Spin:
    """A running `spin` kernel."""

    def __init__(self, process: Process, stream: int) -> None:
        self.process = process
        self.flag = int(process.ok("cuMemHostAlloc", Out(), 4096, 0))
        assert process.launch("spin", self.flag, stream=stream) == SUCCESS

    def stop(self) -> None:
        self.process.ask("poke", address=self.flag, content="01000000")


def stream_of(process: Process, flags: int = 0) -> int:
    return int(process.ok("cuStreamCreate", Out(), flags))


def test_a_stream_is_not_ready_while_its_kernel_runs(process: Process) -> None:
    stream = stream_of(process)
    assert process.result("cuStreamQuery", stream) == SUCCESS
    spin = Spin(process, stream)
    assert process.result("cuStreamQuery", stream) == NOT_READY
    waiting = process.start("cuStreamSynchronize", stream)
    assert process.join(waiting, timeout_s=0.1) is None
    spin.stop()
    assert process.join(waiting) == SUCCESS
    assert process.result("cuStreamQuery", stream) == SUCCESS


def test_work_behind_a_running_kernel_waits_in_order(process: Process) -> None:
    stream = stream_of(process, NON_BLOCKING)
    memory = process.allocate(4 * MIB)
    spin = Spin(process, stream)
    for _ in range(5):
        assert process.launch("add_one_u32", memory, 4, stream=stream) == SUCCESS
    process.ok("cuMemsetD32Async", memory + 4, 100, 1, stream)
    assert number(process.read(memory, 4)) == 0  # by the default stream, which a non-blocking one doesn't hold up
    spin.stop()
    process.ok("cuStreamSynchronize", stream)
    assert struct.unpack("<3I", process.read(memory, 12)) == (5, 100, 5)


def test_the_default_stream_waits_for_blocking_ones(process: Process) -> None:
    memory = process.allocate(4 * MIB)
    spin = Spin(process, stream_of(process))
    waiting = process.start("cuMemsetD32_v2", memory, 1, 1)
    assert process.join(waiting, timeout_s=0.1) is None
    spin.stop()
    assert process.join(waiting) == SUCCESS


def test_events_mark_and_order(process: Process) -> None:
    first, second = stream_of(process, NON_BLOCKING), stream_of(process, NON_BLOCKING)
    begin, end = (process.ok("cuEventCreate", Out(), 0) for _ in range(2))
    memory = process.allocate(4 * MIB)
    process.ok("cuEventRecord", begin, first)
    spin = Spin(process, first)
    process.ok("cuMemsetD32Async", memory, 1, 4, first)
    process.ok("cuEventRecord", end, first)
    process.ok("cuStreamWaitEvent", second, end, 0)
    assert process.launch("add_one_u32", memory, 4, stream=second) == SUCCESS
    assert process.result("cuEventQuery", end) == NOT_READY
    assert process.call("cuEventElapsedTime_v2", Out(4), begin, end)[0] == NOT_READY
    spin.stop()
    process.ok("cuStreamSynchronize", second)
    assert number(process.read(memory, 4)) == 2
    result, elapsed = process.call("cuEventElapsedTime_v2", Out(4), begin, end)
    assert result == SUCCESS
    assert struct.unpack("<f", elapsed)[0] > 0
    for event in (begin, end):
        process.ok("cuEventDestroy_v2", event)


def test_a_captured_graph_runs_when_it_is_launched_and_each_time(process: Process) -> None:
    stream = stream_of(process)
    memory, other = process.allocate(4 * MIB), process.allocate(4 * MIB)
    process.ok("cuStreamBeginCapture_v2", stream, CAPTURE_RELAXED)
    assert process.ok("cuStreamIsCapturing", stream, Out(4)) == 1
    assert process.launch("add_one_u32", memory, 4, stream=stream) == SUCCESS
    process.ok("cuMemcpyDtoDAsync_v2", other, memory, 16, stream)
    graph = process.ok("cuStreamEndCapture", stream, Out())
    assert number(process.read(memory, 4)) == 0
    instance = process.ok("cuGraphInstantiateWithFlags", Out(), graph, 0)
    process.ok("cuGraphDestroy", graph)
    for _ in range(3):
        process.ok("cuGraphLaunch", instance, stream)
    process.ok("cuStreamSynchronize", stream)
    assert number(process.read(other, 4)) == 3
    process.ok("cuGraphExecDestroy", instance)


def test_a_stream_that_joins_a_capture_belongs_to_the_graph(process: Process) -> None:
    origin, joined = stream_of(process), stream_of(process)
    fork, join = (process.ok("cuEventCreate", Out(), 2) for _ in range(2))
    memory = process.allocate(4 * MIB)
    process.ok("cuStreamBeginCapture_v2", origin, CAPTURE_RELAXED)
    process.ok("cuEventRecord", fork, origin)
    process.ok("cuStreamWaitEvent", joined, fork, 0)
    assert process.ok("cuStreamIsCapturing", joined, Out(4)) == 1
    assert process.launch("add_one_u32", memory, 4, stream=joined) == SUCCESS
    process.ok("cuEventRecord", join, joined)
    process.ok("cuStreamWaitEvent", origin, join, 0)
    graph = process.ok("cuStreamEndCapture", origin, Out())
    assert process.ok("cuStreamIsCapturing", joined, Out(4)) == 0
    instance = process.ok("cuGraphInstantiateWithFlags", Out(), graph, 0)
    process.ok("cuGraphLaunch", instance, origin)
    assert number(process.read(memory, 4)) == 1


def test_synchronising_a_stream_that_captures_is_refused(process: Process) -> None:
    stream = stream_of(process)
    assert process.result("cuStreamEndCapture", stream, Out()) == ILLEGAL_STATE
    process.ok("cuStreamBeginCapture_v2", stream, CAPTURE_RELAXED)
    assert process.result("cuStreamSynchronize", stream) == CAPTURE_UNSUPPORTED
    assert process.result("cuStreamEndCapture", stream, Out()) == 901


@pytest.mark.parametrize("bits", [32, 64])
def test_words_are_written_and_awaited(process: Process, bits: int) -> None:
    stream, host = stream_of(process, NON_BLOCKING), process.ok("cuMemHostAlloc", Out(), 4096, 0)
    process.ok(f"cuStreamWaitValue{bits}_v2", stream, host, 3, 0)
    process.ok(f"cuStreamWriteValue{bits}_v2", stream, host + 8, 77, 0)
    assert process.result("cuStreamQuery", stream) == NOT_READY
    process.ask("poke", address=host, content="05" + "00" * 7)
    process.ok("cuStreamSynchronize", stream)
    assert process.ask("peek", address=host + 8, size=1) == "4d"


def test_destroying_a_stream_lets_its_work_finish(process: Process, eventually: Callable[..., Any]) -> None:
    stream = stream_of(process, NON_BLOCKING)
    memory = process.allocate(4 * MIB)
    spin = Spin(process, stream)
    assert process.launch("add_one_u32", memory, 4, stream=stream) == SUCCESS
    process.ok("cuStreamDestroy_v2", stream)
    spin.stop()
    process.ok("cuCtxSynchronize")
    assert number(process.read(memory, 4)) == 1


def test_a_bad_launch_is_refused(process: Process) -> None:
    memory = process.allocate(4 * MIB)
    assert process.launch("no_such_kernel", memory) == 500
    assert process.result("cuLaunchKernel", 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0) == 400
    assert process.result("cuMemcpyHtoD_v2", 0, bytes(4), 4) == INVALID_VALUE


def test_memory_freed_in_a_stream_lives_until_its_turn(process: Process) -> None:
    stream = stream_of(process, NON_BLOCKING)
    memory = process.ok("cuMemAllocAsync", Out(), 4 * MIB, stream)
    spin = Spin(process, stream)
    process.ok("cuMemFreeAsync", memory, stream)
    assert process.read(memory) == bytes(16)
    spin.stop()
    process.ok("cuStreamSynchronize", stream)
    assert process.result("cuMemcpyDtoH_v2", Out(16), memory, 16) == INVALID_VALUE
