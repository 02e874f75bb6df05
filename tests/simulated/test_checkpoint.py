"""The checkpoint calls: the state machine, what survives, and every refusal the engine must know about."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kybernate.cuda import simulated
from kybernate.cuda.simulated import SimulatedGpu

from .conftest import (
    CHECKPOINTED,
    FAILED,
    GPU_BYTES,
    ILLEGAL_STATE,
    INVALID_VALUE,
    LOCKED,
    MIB,
    NOT_READY,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    RUNNING,
    SUCCESS,
    Out,
    Process,
    number,
)

SIZE = 8 * MIB
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207


@pytest.fixture
def agent(start: Callable[..., Process]) -> Process:
    return start()


@pytest.fixture
def target(start: Callable[..., Process]) -> Process:
    return start()


def test_the_states_in_order(agent: Process, target: Process) -> None:
    steps = [
        (agent.lock, LOCKED),
        (agent.checkpoint, CHECKPOINTED),
        (agent.restore, LOCKED),
        (agent.unlock, RUNNING),
        (agent.lock, LOCKED),
        (agent.unlock, RUNNING),
    ]
    assert agent.state_of(target.pid) == RUNNING
    for step, state in steps:
        assert step(target.pid) == SUCCESS
        assert agent.state_of(target.pid) == state


@pytest.mark.parametrize(
    ("before", "refused", "state"),
    [
        pytest.param([], ["checkpoint", "restore", "unlock"], RUNNING, id="running"),
        pytest.param(["lock"], ["lock", "restore"], LOCKED, id="locked"),
        pytest.param(["lock", "checkpoint"], ["lock", "checkpoint", "unlock"], CHECKPOINTED, id="checkpointed"),
    ],
)
def test_everything_else_is_an_illegal_state(
    agent: Process, target: Process, before: list[str], refused: list[str], state: int
) -> None:
    for step in before:
        assert getattr(agent, step)(target.pid) == SUCCESS
    for step in refused:
        assert getattr(agent, step)(target.pid) == ILLEGAL_STATE
        assert agent.state_of(target.pid) == state


def test_native_memory_comes_back_at_its_address(agent: Process, target: Process, gpu: SimulatedGpu) -> None:
    small = target.allocate(1000)
    large = target.allocate(5 * MIB)
    handle = target.create(SIZE)
    mapped = target.map(handle, SIZE)
    reserved = target.ok("cuMemAddressReserve", Out(), SIZE, 0, 0, 0)
    host = target.ok("cuMemHostAlloc", Out(), 4096, 0)
    target.ok("cuMemsetD8_v2", small, 1, 1000)
    target.ok("cuMemsetD8_v2", large, 2, 5 * MIB)
    assert target.launch("fill_u32", mapped, SIZE // 4, 3) == SUCCESS
    target.ask("poke", address=host, content="0102")
    before = target.sum(mapped, SIZE // 4)
    for _ in range(3):
        agent.park(target.pid)
        assert gpu.used_bytes == 0
        assert target.ask("peek", address=host, size=2) == "0102"
        agent.bring_back(target.pid)
        assert target.read(small, 1000) == b"\1" * 1000
        assert target.sum(large, 5 * MIB // 4) == 0x02020202 * (5 * MIB // 4)
        assert target.sum(mapped, SIZE // 4) == before
    target.ok("cuMemMap", reserved, SIZE, 0, target.create(SIZE), 0)
    target.ok("cuMemUnmap", mapped, SIZE)


def test_a_checkpointed_process_holds_nothing_of_the_gpu(agent: Process, target: Process, gpu: SimulatedGpu) -> None:
    target.allocate(SIZE)
    exported = target.export(target.create(SIZE))
    agent.park(target.pid)

    def held() -> list[str]:
        links = []
        for path in Path(f"/proc/{target.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the connection it was asked over is just being closed
                links.append(str(path.readlink()))
        return [link for link in links if str(gpu.path) in link]

    assert len(held()) == 1  # what the application exported and keeps
    assert gpu.used_bytes in (0, SIZE)  # 0 where the kernel doesn't account for it
    target.ask("close_fd", fd=exported)
    assert held() == []
    assert gpu.used_bytes == 0
    assert str(gpu.path) not in Path(f"/proc/{target.pid}/maps").read_text()
    agent.bring_back(target.pid)


def test_calls_wait_while_locked(agent: Process, target: Process) -> None:
    assert agent.lock(target.pid) == SUCCESS
    threads = [target.start("cuMemAlloc_v2", Out(), MIB), target.start("cuCtxSynchronize")]
    assert [target.join(thread, timeout_s=0.2) for thread in threads] == [None, None]
    assert agent.checkpoint(target.pid) == SUCCESS
    assert [target.join(thread, timeout_s=0.1) for thread in threads] == [None, None]
    agent.bring_back(target.pid)
    assert [target.join(thread) for thread in threads] == [SUCCESS, SUCCESS]


def test_a_lock_gives_up_while_work_runs_and_the_process_runs_on(agent: Process, target: Process) -> None:
    flag = target.ok("cuMemHostAlloc", Out(), 4096, 0)
    assert target.launch("spin", flag) == SUCCESS
    assert agent.lock(target.pid, timeout_ms=100) == NOT_READY
    assert agent.state_of(target.pid) == RUNNING
    target.allocate(MIB)
    target.ask("poke", address=flag, content="01000000")
    assert agent.lock(target.pid) == SUCCESS


def test_a_lock_gives_up_while_a_call_is_inside(agent: Process, target: Process) -> None:
    flag = target.ok("cuMemHostAlloc", Out(), 4096, 0)
    assert target.launch("spin", flag) == SUCCESS
    inside = target.start("cuCtxSynchronize")
    assert agent.lock(target.pid, timeout_ms=100) == NOT_READY
    target.ask("poke", address=flag, content="01000000")
    assert target.join(inside) == SUCCESS
    agent.park(target.pid)


def test_a_lock_without_a_timeout_ends_with_its_caller(
    start: Callable[..., Process], agent: Process, target: Process, eventually: Callable[..., Any]
) -> None:
    flag = target.ok("cuMemHostAlloc", Out(), 4096, 0)
    assert target.launch("spin", flag) == SUCCESS
    other = start()
    waiting = [other.start("cuCheckpointProcessLock", target.pid, bytes(64))]

    def pending() -> bool:
        if agent.lock(target.pid, timeout_ms=50) == ILLEGAL_STATE:
            return True
        if other.join(waiting[-1], timeout_s=0) is not None:  # it came while ours was pending
            waiting.append(other.start("cuCheckpointProcessLock", target.pid, bytes(64)))
        return False

    eventually(pending, what="the lock is pending")
    other.kill()
    eventually(lambda: agent.lock(target.pid, timeout_ms=50) == NOT_READY, what="the lock is given up")
    target.ask("poke", address=flag, content="01000000")
    assert agent.lock(target.pid) == SUCCESS


def test_a_thread_stopped_while_it_waited_counts_as_inside(agent: Process, target: Process) -> None:
    """Lock, stop the waiting thread, unlock: the next lock can't succeed until the thread goes on."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert agent.lock(target.pid) == SUCCESS
    thread = target.start("cuCtxSynchronize")
    assert target.join(thread, timeout_s=0.2) is None
    outcome: list[int] = []

    def stopped() -> None:  # ptrace is tied to one thread of ours
        assert libc.ptrace(PTRACE_SEIZE, thread, 0, 0) == 0
        assert libc.ptrace(PTRACE_INTERRUPT, thread, 0, 0) == 0
        os.waitpid(thread, 0x40000000)  # __WALL
        outcome.append(agent.unlock(target.pid))
        outcome.append(agent.lock(target.pid, timeout_ms=200))
        libc.ptrace(PTRACE_DETACH, thread, 0, 0)

    runner = threading.Thread(target=stopped)
    runner.start()
    runner.join()
    assert outcome == [SUCCESS, NOT_READY]
    assert target.join(thread) == SUCCESS
    agent.park(target.pid)


@pytest.mark.parametrize("unmapped", [False, True], ids=["mapped", "handle only"])
def test_imported_memory_loses_the_process_at_restore(agent: Process, target: Process, unmapped: bool) -> None:
    fd = agent.take_fd(agent.export(agent.create(SIZE)))
    handle = target.import_from(fd)
    address = target.map(handle, SIZE)
    if unmapped:
        target.ok("cuMemUnmap", address, SIZE)
    else:
        target.ok("cuMemRelease", handle)
    agent.park(target.pid)
    assert agent.restore(target.pid) == NOT_SUPPORTED
    assert agent.state_of(target.pid) == FAILED
    assert [agent.restore(target.pid), agent.unlock(target.pid)] == [ILLEGAL_STATE, ILLEGAL_STATE]
    os.close(fd)


def test_imported_memory_that_was_let_go_is_no_obstacle(agent: Process, target: Process) -> None:
    handle = agent.create(SIZE)
    fd = agent.take_fd(agent.export(handle))
    agent.ok("cuMemsetD32_v2", agent.map(handle, SIZE), 42, SIZE // 4)
    imported = target.import_from(fd)
    address = target.map(imported, SIZE)
    target.ok("cuMemUnmap", address, SIZE)
    target.ok("cuMemRelease", imported)
    agent.park(target.pid)
    agent.bring_back(target.pid)
    again = target.import_from(fd)
    target.map(again, SIZE, at=address)
    assert number(target.read(address, 4)) == 42
    os.close(fd)


def test_managed_memory_is_refused_and_the_process_runs_on(agent: Process, target: Process) -> None:
    managed = target.ok("cuMemAllocManaged", Out(), MIB, 1)
    target.ok("cuMemsetD8_v2", managed, 6, MIB)
    assert agent.lock(target.pid) == SUCCESS
    assert agent.checkpoint(target.pid) == NOT_SUPPORTED
    assert agent.state_of(target.pid) == LOCKED
    assert agent.unlock(target.pid) == SUCCESS
    assert target.read(managed, 4) == b"\6" * 4
    target.ok("cuMemFree_v2", managed)
    agent.park(target.pid)


@pytest.mark.parametrize("size", [1000, 5 * MIB])
def test_open_legacy_ipc_is_refused_on_both_sides(agent: Process, target: Process, size: int) -> None:
    memory = agent.allocate(size)
    agent.ok("cuMemsetD8_v2", memory, 8, size)
    handle = agent.call("cuIpcGetMemHandle", Out(64), memory)[1]
    # The handle goes by value: 64 bytes on the stack, which ctypes can't be told by name here.
    opened = target.ask("ipc_open", handle=handle.hex())
    assert opened[0] == SUCCESS
    assert target.read(opened[1], 4) == b"\x08" * 4
    for process, other in ((agent, target), (target, agent)):
        assert other.lock(process.pid) == SUCCESS
        assert other.checkpoint(process.pid) == NOT_SUPPORTED
        assert other.unlock(process.pid) == SUCCESS
    target.ok("cuIpcCloseMemHandle", opened[1])
    agent.park(target.pid)


def test_ipc_is_for_native_memory_alone(process: Process) -> None:
    mapped = process.map(process.create(SIZE), SIZE)
    assert process.result("cuIpcGetMemHandle", Out(64), mapped) == INVALID_VALUE


@pytest.mark.root
def test_a_restore_without_room_can_be_tried_again(agent: Process, target: Process) -> None:
    memory = target.allocate(100 * MIB)
    target.ok("cuMemsetD8_v2", memory, 4, 16)
    agent.park(target.pid)
    blocker = agent.allocate(64 * MIB)
    assert agent.restore(target.pid) == OUT_OF_MEMORY
    assert agent.state_of(target.pid) == CHECKPOINTED
    assert GPU_BYTES - agent.free_bytes() == 64 * MIB
    agent.ok("cuMemFree_v2", blocker)
    agent.bring_back(target.pid)
    assert target.read(memory) == b"\4" * 16


def test_the_restore_thread_is_told_by_its_host_id(agent: Process, target: Process) -> None:
    thread = agent.ok("cuCheckpointProcessGetRestoreThreadId", target.pid, Out(4))
    status = Path(f"/proc/{target.pid}/task/{thread}")
    assert (status / "comm").read_text() == "cuda-restore\n"
    blocked = next(line for line in (status / "status").read_text().splitlines() if line.startswith("SigBlk"))
    assert int(blocked.split()[1], 16) >> (signal.SIGTERM - 1) & 1


def test_a_process_without_cuda_is_an_invalid_value(agent: Process) -> None:
    assert agent.result("cuCheckpointProcessGetState", os.getpid(), Out(4)) == INVALID_VALUE
    assert agent.lock(0x7FFFFFFF) == INVALID_VALUE


@pytest.mark.root
def test_it_reaches_into_other_namespaces(agent: Process, start: Callable[..., Process]) -> None:
    prefix = ["unshare", "--pid", "--mount", "--net", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    target = start(prefix=prefix)
    children = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
    inner = int(children[0])
    memory = target.allocate(SIZE)
    target.ok("cuMemsetD8_v2", memory, 9, SIZE)
    agent.park(inner)
    thread = agent.ok("cuCheckpointProcessGetRestoreThreadId", inner, Out(4))
    assert Path(f"/proc/{inner}/task/{thread}").exists()
    agent.bring_back(inner)
    assert target.read(memory) == b"\x09" * 16


@pytest.mark.root
def test_another_user_is_refused(agent: Process, start: Callable[..., Process]) -> None:
    other = start(setup=False)
    other.ask("become", uid=65534)
    assert other.ask("setup") == [SUCCESS, SUCCESS]
    assert other.lock(agent.pid) != SUCCESS
    assert agent.state_of(agent.pid) == RUNNING
    assert agent.lock(other.pid) == SUCCESS  # root may


def test_garbage_on_the_socket_harms_nobody(agent: Process, target: Process, gpu: SimulatedGpu) -> None:
    for path in (gpu.path / "sockets").iterdir():
        for packet in (b"", b"x", os.urandom(200), struct.pack("<II", 0x4D53594B, 99) + bytes(400)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(str(path))
                client.send(packet)
    assert agent.state_of(target.pid) == RUNNING
    agent.park(target.pid)


def test_another_gpu_takes_its_place(agent: Process, start: Callable[..., Process], gpu: SimulatedGpu) -> None:
    second = simulated.make(gpu.path.with_name("second"), size_bytes=GPU_BYTES)
    try:
        target = start(variables={simulated.VARIABLE: f"{gpu.path}:{second.path}"})
        memory = target.allocate(SIZE)
        target.ok("cuMemsetD8_v2", memory, 5, SIZE)
        agent.park(target.pid)

        def raw(uuid: str) -> bytes:
            return bytes.fromhex(uuid.removeprefix("GPU-").replace("-", ""))

        pairs = raw(gpu.uuid) + raw(second.uuid) + raw(second.uuid) + raw(gpu.uuid)
        assert target.popen.poll() is None
        result = agent.ask("restore_on", pid=target.pid, pairs=pairs.hex())
        assert result == SUCCESS
        assert agent.unlock(target.pid) == SUCCESS
        assert target.read(memory) == b"\x05" * 16
        if second.mounted:
            assert (gpu.used_bytes, second.used_bytes) == (0, SIZE)
        target.kill()
    finally:
        simulated.remove(second.path)
