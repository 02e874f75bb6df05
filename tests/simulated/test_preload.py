"""The preload library over the simulated driver, without an agent: its control socket and its gates, in one process.

What needs an agent (extents that leave and come back) is tested with the whole product in tests/engine and tests/cli.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kybernate.cuda import wire
from kybernate.cuda.control import Control, HoldStatus
from kybernate.cuda.wire import Message, ProcessState, Record, Type
from kybernate.model.errors import Busy, KybernateError, Unsupported
from kybernate.model.native import preload_library
from kybernate.model.types import ExtentId

from .conftest import MIB, SUCCESS, Out, Process

WAITING = (Type.QUIESCE, Type.HOLD)
IDLE_FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def run_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="kyb-run-"))
    (directory / "control").mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def preloaded(start: Callable[..., Process], run_directory: Path) -> Process:
    # A sanitizer's run-time comes after it, as it does in a workload.
    preload = ":".join(filter(None, [str(preload_library()), os.environ.get("LD_PRELOAD")]))
    return start(variables={"LD_PRELOAD": preload, "KYBERNATE_RUN_DIRECTORY": str(run_directory)})


@pytest.fixture
def control_path(preloaded: Process, run_directory: Path) -> Path:
    return run_directory / "control" / f"{preloaded.pid}.sock"


def works(process: Process) -> bool:
    """It allocates, fills and sums as if nothing had been."""
    address = process.allocate(4 * MIB)
    assert process.launch("fill_u32", address, MIB, 7) == SUCCESS
    first = process.sum(address, MIB)
    assert process.launch("add_one_u32", address, MIB) == SUCCESS
    changed = (process.sum(address, MIB) - first) % (1 << 32) == MIB % (1 << 32)
    process.ok("cuMemFree_v2", address)
    return changed


def test_without_an_agent_memory_is_native_and_the_process_works(preloaded: Process, control_path: Path) -> None:
    assert works(preloaded)
    with Control(control_path) as control:
        assert control.status().state is ProcessState.OPEN
        assert control.extents() == []


def test_a_call_waits_at_the_gate_and_goes_on_when_it_opens(preloaded: Process, control_path: Path) -> None:
    address = preloaded.allocate(2 * MIB)
    with Control(control_path) as control:
        assert control.quiesce(5) == []
        assert control.status().state is ProcessState.QUIET
        waiting = preloaded.start("cuMemsetD32_v2", address, 5, 16)
        assert preloaded.join(waiting, timeout_s=0.2) is None
        control.open()
        assert preloaded.join(waiting) == SUCCESS


def test_an_agent_that_hangs_up_half_way_leaves_the_process_running(preloaded: Process, control_path: Path) -> None:
    for steps in (["quiesce"], ["quiesce", "release"]):
        with Control(control_path) as control:
            control.quiesce(5)
            if "release" in steps:
                control.release()
                assert control.status().state is ProcessState.RELEASED
        assert works(preloaded)
        with Control(control_path) as control:
            assert control.status().state is ProcessState.OPEN


def test_a_committed_process_waits_for_its_memory(preloaded: Process, control_path: Path) -> None:
    address = preloaded.allocate(2 * MIB)
    with Control(control_path) as control:
        control.quiesce(5)
        control.release()
        control.discard()
    with Control(control_path) as control:
        assert control.status().committed
        with pytest.raises(KybernateError, match="released"):
            control.open()
        waiting = preloaded.start("cuMemsetD32_v2", address, 5, 16)
        assert preloaded.join(waiting, timeout_s=0.2) is None
        control.map([], [])
        control.open()
    assert preloaded.join(waiting) == SUCCESS
    assert works(preloaded)


def test_managed_memory_is_refused_until_it_is_freed(preloaded: Process, control_path: Path) -> None:
    managed = int(preloaded.ok("cuMemAllocManaged", Out(), 4 * MIB, 1))
    with Control(control_path) as control, pytest.raises(Unsupported, match="managed"):
        control.quiesce(1)
    assert works(preloaded)
    preloaded.ok("cuMemFree_v2", managed)
    with Control(control_path) as control:
        control.quiesce(5)


def test_an_open_capture_is_busy_until_it_ends(preloaded: Process, control_path: Path) -> None:
    stream = int(preloaded.ok("cuStreamCreate", Out(), 1))
    preloaded.ok("cuStreamBeginCapture_v2", stream, 2)
    with Control(control_path) as control, pytest.raises(Busy, match="capture"):
        control.quiesce(0.2)
    preloaded.ok("cuStreamEndCapture", stream, Out())
    with Control(control_path) as control:
        control.quiesce(5)
    assert works(preloaded)


def test_many_open_captures_are_all_waited_for(preloaded: Process, control_path: Path) -> None:
    streams = [int(preloaded.ok("cuStreamCreate", Out(), 1)) for _ in range(150)]
    for stream in streams:
        preloaded.ok("cuStreamBeginCapture_v2", stream, 2)
    for stream in streams[1:]:
        preloaded.ok("cuStreamEndCapture", stream, Out())
    with Control(control_path) as control, pytest.raises(Busy, match="capture"):
        control.quiesce(0.2)
    preloaded.ok("cuStreamEndCapture", streams[0], Out())
    with Control(control_path) as control:
        control.quiesce(5)
    assert works(preloaded)


def test_its_socket_is_its_users_own(preloaded: Process, control_path: Path) -> None:
    assert control_path.stat().st_mode & 0o777 == 0o600
    assert preloaded.pid  # alive


def test_a_kernel_that_does_not_end_is_busy_and_runs_on(preloaded: Process, control_path: Path) -> None:
    flag = int(preloaded.ok("cuMemHostAlloc", Out(), 4096, 0))
    stream = int(preloaded.ok("cuStreamCreate", Out(), 1))
    assert preloaded.launch("spin", flag, stream=stream) == SUCCESS
    for _ in range(2):  # the second time there is a thread left of the first
        with Control(control_path) as control, pytest.raises(Busy, match="did not finish in time"):
            control.quiesce(0.2)
    preloaded.ok("cuMemsetD32_v2", flag, 1, 1)
    assert preloaded.result("cuStreamSynchronize", stream) == SUCCESS
    with Control(control_path) as control:
        control.quiesce(5)


def test_a_thread_that_waits_for_a_kernel_does_not_hide_the_extents(preloaded: Process, control_path: Path) -> None:
    """A new agent has to take over a process that waits for the GPU, however long."""
    flag = int(preloaded.ok("cuMemHostAlloc", Out(), 4096, 0))
    stream = int(preloaded.ok("cuStreamCreate", Out(), 1))
    assert preloaded.launch("spin", flag, stream=stream) == SUCCESS
    waiting = preloaded.start("cuStreamSynchronize", stream)
    with Control(control_path) as control:
        assert control.extents() == []
    preloaded.ok("cuMemsetD32_v2", flag, 1, 1)
    assert preloaded.join(waiting) == SUCCESS


@pytest.mark.parametrize("wrong", ["release", "remap", "discard", "map"])
def test_words_out_of_order_change_nothing(wrong: str, preloaded: Process, control_path: Path) -> None:
    with Control(control_path) as control:
        with pytest.raises(KybernateError):
            control.map([], []) if wrong == "map" else getattr(control, wrong)()
        assert control.status().state is ProcessState.OPEN
    assert works(preloaded)


def test_unknown_extents_are_refused(preloaded: Process, control_path: Path) -> None:
    with Control(control_path) as control:
        control.quiesce(5)
        control.release()
        with pytest.raises(KybernateError, match="does not have"):
            control.discard([ExtentId(4711)])
        with Path(os.devnull).open() as nothing, pytest.raises(KybernateError, match="does not have"):
            control.map([Record(ExtentId(4711), 0, 2 * MIB)], [nothing.fileno()])
    assert works(preloaded)


def _say(path: Path, packets: list[bytes]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        for packet in packets:
            with contextlib.suppress(OSError):
                connection.send(packet)
                if not connection.recv(1 << 16):
                    return


# QUIESCE and HOLD with a long time-out and RELEASE are legal words: what they do is undone when the connection ends.
MESSAGES = st.builds(
    lambda kind, status, flags, argument, ids: wire.pack(
        Message(
            kind, status=status, flags=flags, argument=argument, records=tuple(Record(ExtentId(i), i, i) for i in ids)
        )
    ),
    st.sampled_from([t for t in Type if t not in WAITING]),
    st.sampled_from(wire.Status),
    st.sampled_from(wire.Flag),
    st.integers(0, (1 << 64) - 1),
    st.lists(st.integers(0, (1 << 64) - 1), max_size=5),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    packet = bytearray(draw(MESSAGES))
    for _ in range(draw(st.integers(1, 4))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    # Byte 6 is the type: a damaged packet must not become a QUIESCE of hours.
    if packet[6] in WAITING:
        packet[6] = 0
    return bytes(packet[: draw(st.integers(1, len(packet)))])


@IDLE_FUZZ
@given(packets=st.lists(st.one_of(st.binary(min_size=1, max_size=400), MESSAGES, damaged()), max_size=6))
def test_garbage_on_the_control_socket_changes_nothing(
    packets: list[bytes], preloaded: Process, control_path: Path
) -> None:
    _say(control_path, packets)
    with Control(control_path) as control:
        assert control.status().state is ProcessState.OPEN
    assert preloaded.popen.poll() is None


def test_a_forked_child_does_not_answer_for_its_parent(preloaded: Process, control_path: Path) -> None:
    preloaded.ask("fork")
    with Control(control_path) as control:
        control.quiesce(5)
    assert works(preloaded)


def test_held_launches_wait_while_memory_calls_pass(preloaded: Process, control_path: Path) -> None:
    memory = preloaded.allocate(4 * MIB)
    assert preloaded.launch("fill_u32", memory, 4, 1) == SUCCESS
    before = preloaded.sum(memory, 4)
    with Control(control_path) as control:
        assert control.hold(5) == HoldStatus(idle=True, reason="")
        assert control.status().state is ProcessState.HELD
        waiting = preloaded.start_launch("add_one_u32", memory, 4)
        assert preloaded.join(waiting, timeout_s=0.2) is None
        assert preloaded.result("cuMemsetD32_v2", memory, 5, 4) == SUCCESS
        assert control.hold(5, step=True).idle
        assert preloaded.join(waiting) == SUCCESS, "the one launch that may pass"
        second = preloaded.start_launch("add_one_u32", memory, 4)
        assert preloaded.join(second, timeout_s=0.2) is None
        control.quiesce(5)
        assert control.status().state is ProcessState.QUIET
    assert preloaded.join(second) == SUCCESS
    assert preloaded.sum(memory, 4) != before
    assert works(preloaded)


def test_a_step_that_nobody_takes_is_taken_back(preloaded: Process, control_path: Path) -> None:
    memory = preloaded.allocate(4 * MIB)
    with Control(control_path) as control:
        # The look at the GPU has 2 ms after the step's time is over, which a busy machine may use up.
        assert any(control.hold(0.05, step=True).idle for _ in range(50))
        waiting = preloaded.start_launch("add_one_u32", memory, 4)
        assert preloaded.join(waiting, timeout_s=0.2) is None
        control.open()
        assert preloaded.join(waiting) == SUCCESS


def test_hanging_up_while_launches_are_held_opens_the_gates(preloaded: Process, control_path: Path) -> None:
    flag = int(preloaded.ok("cuMemHostAlloc", Out(), 4096, 0))
    stream = int(preloaded.ok("cuStreamCreate", Out(), 1))
    assert preloaded.launch("spin", flag, stream=stream) == SUCCESS
    with Control(control_path) as control:
        held = control.hold(0.1)
        assert not held.idle
        assert "did not finish in time" in held.reason
        with pytest.raises(KybernateError, match="held"):
            control.extents()
    assert preloaded.launch("nothing") == SUCCESS
    preloaded.ok("cuMemsetD32_v2", flag, 1, 1)
    assert works(preloaded)


def test_managed_memory_is_found_before_launches_are_held(preloaded: Process, control_path: Path) -> None:
    preloaded.ok("cuMemAllocManaged", Out(), 4 * MIB, 1)
    with Control(control_path) as control, pytest.raises(Unsupported, match="managed"):
        control.hold(1)
    assert works(preloaded)
