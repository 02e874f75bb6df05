"""What memory says about itself, while it is there, while it is away, and when it is back."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kybernate.cuda.control import Control
from kybernate.model.errors import Busy

from .conftest import INVALID_VALUE, MIB, POSIX_FD, SUCCESS, Out, Process, access, number, properties
from .test_free_cache import Granter, control_path, gpu, grant, granter, run_directory, worker

__all__ = ["control_path", "gpu", "grant", "granter", "run_directory", "worker"]

CONTEXT, SYNC_MEMOPS, BUFFER_ID, RANGE_SIZE, HANDLE_TYPES = 1, 6, 7, 12, 14
MAPPING_SIZE, MAPPING_BASE, BLOCK_ID = 18, 19, 20
ATTRIBUTES = [a for a in range(1, 21) if a != 5]
DEVICE = struct.pack("<ii", 1, 0)
ON = struct.pack("<i", 1)


def mapped(process: Process, size: int) -> int:
    """Memory by the application's own virtual memory management."""
    address = int(process.ok("cuMemAddressReserve", Out(), size, 0, 0, 0))
    handle = process.create(size, exportable=False)
    process.ok("cuMemMap", address, size, 0, handle, 0)
    process.ok("cuMemSetAccess", address, size, access(), 1)
    process.ok("cuMemRelease", handle)
    return address


def said(process: Process, address: int) -> dict[str, tuple[object, ...]]:
    """Every answer about an address."""
    answers = {f"attribute {a}": process.call("cuPointerGetAttribute", Out(), a, address) for a in ATTRIBUTES}
    answers["range"] = process.call("cuMemGetAddressRange_v2", Out(), Out(), address)
    answers["access"] = process.call("cuMemGetAccess", Out(), DEVICE, address)
    return answers


def away_and_back(path: Path) -> None:
    """Unmapped, and mapped again from the descriptors kept: to the driver it is new memory then."""
    with Control(path) as control:
        control.quiesce(5)
        control.release()
        control.remap()
        control.open()


@pytest.mark.parametrize("call", ["cuPointerGetAttribute", "cuPointerGetAttributes", "cuMemGetAccess"])
def test_questions_wait_while_the_memory_is_away(worker: Process, control_path: Path, call: str) -> None:
    address = worker.allocate(4 * MIB)
    arguments: dict[str, tuple[int | bytes | Out, ...]] = {
        "cuPointerGetAttribute": (Out(), CONTEXT, address),
        "cuPointerGetAttributes": (0, b"", b"", address),
        "cuMemGetAccess": (Out(), DEVICE, address),
    }
    with Control(control_path) as control:
        control.quiesce(5)
        before = worker.start(call, *arguments[call])
        answer = worker.join(before)
        assert answer is not None, "nothing is unmapped yet, and whoever asks may hold a lock that somebody else needs"
        control.release()
        waiting = worker.start(call, *arguments[call])
        assert worker.join(waiting, timeout_s=0.2) is None
        control.remap()
        control.open()
        assert worker.join(waiting) == answer


def test_a_range_of_ours_is_told_without_waiting(worker: Process, control_path: Path) -> None:
    address, own = worker.allocate(3 * MIB), mapped(worker, 4 * MIB)
    with Control(control_path) as control:
        control.quiesce(5)
        control.release()
        assert worker.ok("cuMemGetAddressRange_v2", Out(), Out(), address + MIB) == (address, 3 * MIB)
        assert worker.ok("cuMemGetAddressRange_v2", Out(), Out(), own + MIB) == (own, 4 * MIB)
        small = worker.start("cuMemGetAddressRange_v2", Out(), Out(), 16)
        assert worker.join(small, timeout_s=0.2) is None, "what isn't ours only the driver knows"
        control.remap()
        control.open()
        assert worker.join(small) not in (None, SUCCESS)


def test_memory_that_comes_back_is_the_same(worker: Process, control_path: Path) -> None:
    addresses = [worker.allocate(4 * MIB), mapped(worker, 4 * MIB), worker.allocate(4096)]
    worker.ok("cuPointerSetAttribute", ON, SYNC_MEMOPS, addresses[0])
    before = [said(worker, address) for address in addresses]
    for _ in range(3):
        away_and_back(control_path)
        assert [said(worker, address) for address in addresses] == before
    assert number(worker.call("cuPointerGetAttribute", Out(), SYNC_MEMOPS, addresses[0])[1]) == 1
    ids = {number(worker.call("cuPointerGetAttribute", Out(), BUFFER_ID, address)[1]) for address in addresses}
    assert len(ids) == 3


def test_an_allocation_of_several_extents_is_one(worker: Process) -> None:
    size = 1100 * MIB
    address = worker.allocate(size)
    ends = [said(worker, at) for at in (address, address + size - 4096)]
    for attribute in (CONTEXT, BUFFER_ID, RANGE_SIZE, MAPPING_SIZE, MAPPING_BASE, BLOCK_ID):
        assert ends[0][f"attribute {attribute}"] == ends[1][f"attribute {attribute}"]
    worker.ok("cuPointerSetAttribute", ON, SYNC_MEMOPS, address)
    assert number(worker.call("cuPointerGetAttribute", Out(), SYNC_MEMOPS, address + size - 4096)[1]) == 1


def test_an_extent_speaks_as_an_allocation_of_the_drivers(worker: Process, start: Callable[..., Process]) -> None:
    """All that tells extents from the driver's own allocations, but for values that are somebody's own."""
    native = start()
    ours, theirs = worker.allocate(4 * MIB), native.allocate(4 * MIB)
    contexts = [int(process.ok("cuCtxGetCurrent", Out())) for process in (worker, native)]
    assert number(worker.call("cuPointerGetAttribute", Out(), CONTEXT, ours)[1]) == contexts[0]
    assert number(native.call("cuPointerGetAttribute", Out(), CONTEXT, theirs)[1]) == contexts[1]
    for attribute in (2, SYNC_MEMOPS, 8, 9, 10, RANGE_SIZE, 13, HANDLE_TYPES, 16, 17, MAPPING_SIZE):
        one, other = (
            process.call("cuPointerGetAttribute", Out(), attribute, address)
            for process, address in ((worker, ours), (native, theirs))
        )
        assert one == other, attribute


@pytest.mark.parametrize("exportable", [False, True])
def test_handle_types_are_those_that_were_asked_for(worker: Process, exportable: bool) -> None:
    address = int(worker.ok("cuMemAddressReserve", Out(), 4 * MIB, 0, 0, 0))
    handle = int(worker.ok("cuMemCreate", Out(), 4 * MIB, properties(exportable=exportable), 0))
    worker.ok("cuMemMap", address, 4 * MIB, 0, handle, 0)
    told = number(worker.call("cuPointerGetAttribute", Out(), HANDLE_TYPES, address)[1])
    assert told == (POSIX_FD if exportable else 0)


def test_an_allocation_in_the_place_of_a_freed_one_is_another(worker: Process) -> None:
    """Caches of registered memory compare ids to learn that what they know of an address is over."""
    address = worker.allocate(4 * MIB)
    ids = [worker.call("cuPointerGetAttribute", Out(), a, address) for a in (BUFFER_ID, BLOCK_ID)]
    worker.ok("cuMemFree_v2", address)
    assert worker.result("cuPointerSetAttribute", ON, SYNC_MEMOPS, address) == INVALID_VALUE
    assert worker.result("cuMemGetAccess", Out(), DEVICE, address) == INVALID_VALUE
    assert worker.allocate(4 * MIB) == address
    again = [worker.call("cuPointerGetAttribute", Out(), a, address) for a in (BUFFER_ID, BLOCK_ID)]
    assert all(one[0] == other[0] == SUCCESS and one != other for one, other in zip(ids, again, strict=True))


def test_memory_with_an_attribute_set_is_not_kept(worker: Process, granter: Granter) -> None:
    address = worker.allocate(4 * MIB)
    worker.ok("cuPointerSetAttribute", ON, SYNC_MEMOPS, address)
    worker.ok("cuMemFree_v2", address)
    assert granter.resident == 0


def test_questions_pass_while_a_capture_is_open(worker: Process, control_path: Path) -> None:
    address, stream = worker.allocate(4 * MIB), int(worker.ok("cuStreamCreate", Out(), 1))
    worker.ok("cuStreamBeginCapture_v2", stream, 2)
    with Control(control_path) as control, pytest.raises(Busy, match="capture"):
        control.quiesce(0.2)
    assert number(worker.call("cuPointerGetAttribute", Out(), RANGE_SIZE, address)[1]) == 4 * MIB
    worker.ok("cuStreamEndCapture", stream, Out())
    away_and_back(control_path)
    assert number(worker.call("cuPointerGetAttribute", Out(), RANGE_SIZE, address)[1]) == 4 * MIB


def test_a_dead_agent_leaves_no_question_unanswered(worker: Process, control_path: Path) -> None:
    address = worker.allocate(4 * MIB)
    with Control(control_path) as control:
        control.quiesce(5)
        control.release()
        waiting = worker.start("cuPointerGetAttribute", Out(), CONTEXT, address)
    assert worker.join(waiting) == SUCCESS


def test_nodes_with_addresses_wait_while_the_memory_is_away(worker: Process, control_path: Path) -> None:
    address, graph = worker.allocate(4 * MIB), int(worker.ok("cuGraphCreate", Out(), 0))
    node = struct.pack("<QQIIQQ", address, 0, 9, 4, 1024, 1)
    with Control(control_path) as control:
        control.quiesce(5)
        control.release()
        waiting = worker.start("cuGraphAddMemsetNode", Out(), graph, 0, 0, node, 0)
        assert worker.join(waiting, timeout_s=0.2) is None
        control.remap()
        control.open()
        assert worker.join(waiting) == SUCCESS
    executable = int(worker.ok("cuGraphInstantiateWithFlags", Out(), graph, 0))
    worker.ok("cuGraphLaunch", executable, 0)
    assert worker.read(address + 4092, 8) == struct.pack("<II", 9, 0)


def test_simulated_driver_knows_nothing_of_unmapped_addresses(start: Callable[..., Process]) -> None:
    """As the real one: that is what these tests stand on."""
    process = start()
    address = int(process.ok("cuMemAddressReserve", Out(), 4 * MIB, 0, 0, 0))
    assert process.result("cuPointerGetAttribute", Out(), CONTEXT, address) == INVALID_VALUE
    assert process.result("cuMemGetAccess", Out(), DEVICE, address) == INVALID_VALUE
    assert process.result("cuGraphAddMemsetNode", Out(), int(process.ok("cuGraphCreate", Out(), 0)), 0, 0,
                          struct.pack("<QQIIQQ", address, 0, 9, 4, 1024, 1), 0) == INVALID_VALUE  # fmt: skip
