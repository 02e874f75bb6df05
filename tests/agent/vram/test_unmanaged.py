"""VRAM past our library: who has how much of it, what the books then say, and what people are told. No agent, no GPU."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from kybernate.agent.api.explain import explain
from kybernate.agent.records.ledger import Entry
from kybernate.agent.vram.unmanaged import Bare, shares
from kybernate.agent.vram.vram import VramUsage
from kybernate.cuda.driver import Gpu
from kybernate.cuda.processes import DriverList, SimulatedList
from kybernate.cuda.simulated import SimulatedGpu
from kybernate.doctor.doctor import of_agent
from kybernate.model.api import NodeView
from kybernate.model.types import MIB, Backend, Depth, GpuUuid, HostPid, WorkloadName, WorkloadState

A, B = WorkloadName("a"), WorkloadName("b")
G, H = GpuUuid("GPU-g"), GpuUuid("GPU-h")


def bare(workload: WorkloadName, pid: int) -> Bare:
    return Bare(workload, HostPid(pid), "python")


def test_what_the_driver_lists_is_the_workloads() -> None:
    memory = {HostPid(1): {G: 10, H: 1}, HostPid(2): {G: 5}, HostPid(3): {G: 7}}
    found = shares([bare(A, 1), bare(A, 2), bare(B, 3)], memory, {G: 1000})
    assert found == {A: {G: 15, H: 1}, B: {G: 7}}


def test_whom_the_driver_does_not_list_shares_what_nothing_else_explains() -> None:
    assert shares([bare(A, 1), bare(B, 2), bare(B, 3)], {HostPid(1): {G: 10}}, {G: 50, H: 0}) == {
        A: {G: 10},
        B: {G: 40},
    }
    assert shares([bare(A, 1)], {}, {G: -5}) == {A: {}}
    assert shares([], {}, {G: 50}) == {}


def gpu(uuid: GpuUuid) -> Gpu:
    return Gpu(
        index=0,
        uuid=uuid,
        uuid_bytes=b"",
        name="",
        total_bytes=100,
        simulated=True,
        compute_capability=(9, 0),
        context=None,
    )


class Extents:
    """20 bytes on every GPU, of everybody and anybody."""

    def resident_bytes(self, _workload: WorkloadName | None = None, _gpu: Gpu | None = None) -> int:
        return 20


def entry(name: WorkloadName = A, **fields: Any) -> Entry:
    plain = Entry(name=name, state=WorkloadState.RUNNING, since=0.0, backend=Backend.BROKER, last_use=0.0)
    return dataclasses.replace(plain, **fields)


@pytest.mark.parametrize(
    ("state", "depth", "external", "counts"),
    [
        (WorkloadState.RUNNING, None, False, True),
        (WorkloadState.PAUSING, None, False, True),
        (WorkloadState.PAUSED, Depth.ZERO, False, False),
        (WorkloadState.PAUSED, Depth.WARM, False, True),
        (WorkloadState.RESUMING, Depth.ZERO, False, False),
        (WorkloadState.EXITED, None, False, False),
        (WorkloadState.LOST, None, False, False),
        (WorkloadState.RUNNING, None, True, False),
    ],
)
def test_the_books_count_it_for_as_long_as_it_is_in_vram(
    state: WorkloadState, depth: Depth | None, external: bool, counts: bool
) -> None:
    books = VramUsage(Extents().resident_bytes)
    books.changed(None, entry(unmanaged={G: 5}))
    books.changed(None, entry(B, unmanaged={G: 3, H: 1}))
    assert books.resident_bytes(None, gpu(G)) == 28
    now = entry(state=state, depth=depth, external=external, unmanaged={G: 6})
    books.changed(entry(unmanaged={G: 5}), now)
    assert books.resident_bytes(A, gpu(G)) == 20 + (6 if counts else 0)
    assert books.resident_bytes(B, gpu(H)) == 21
    books.changed(now, None)
    assert books.resident_bytes(A) == 20
    assert books.resident_bytes() == 24


def test_explain_says_that_the_library_is_missing_and_why() -> None:
    text = explain(entry(unmanaged={G: 64 * MIB}), events=[], resident_bytes=80 * MIB, now=1.0).text
    assert "80.0 MiB of VRAM, 64.0 MiB of that without Kybernate's library, by a command that drops LD_PRELOAD" in text
    chosen = entry(unmanaged={G: 64 * MIB}, backend=Backend.DRIVER)
    assert "LD_PRELOAD" not in explain(chosen, events=[], resident_bytes=64 * MIB, now=1.0).text
    assert explain(entry(), events=[], resident_bytes=MIB, now=1.0).text.endswith(
        "It holds 1.0 MiB of VRAM in extents."
    )


def test_doctor_names_workloads_without_the_library() -> None:
    view = NodeView(
        version="1", pid=1, started=0.0, state_directory="/s", simulated=True, driver_version=None, gpus=[], pool=None, notes=[],
        workloads={}, without_library=["a", "b"],
    )  # fmt: skip
    check = next(check for check in of_agent(view, now=0.0) if check.name == "library in workloads")
    assert (check.ok, check.needed) == (False, False)
    assert check.detail.startswith("a, b: ")
    healthy = view.model_copy(update={"without_library": []})
    assert not [check for check in of_agent(healthy, now=0.0) if check.name == "library in workloads"]


def test_a_machine_without_nvml_lists_nobody_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    listed = DriverList([GpuUuid("GPU-00000000-0000-0000-0000-000000000000")])
    for _ in range(3):
        assert listed.memory_of([HostPid(os.getpid())]) == {}
    assert len(caplog.records) == 1


def test_open_files_of_a_simulated_gpu_are_counted_once_each(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"x" * 8192)
    size = place.stat().st_blocks * 512
    listed = SimulatedList([SimulatedGpu(path=tmp_path, size_bytes=1, uuid=G, mounted=True)])
    me = HostPid(os.getpid())
    before = listed.memory_of([me])[me].get(G, 0)
    with place.open("rb"), place.open("rb"):
        assert listed.memory_of([me])[me][G] == before + size
    assert listed.memory_of([HostPid(2**22 + 1)]) == {HostPid(2**22 + 1): {}}
    assert SimulatedList([SimulatedGpu(path=tmp_path, size_bytes=1, uuid=G, mounted=False)]).memory_of([me]) == {me: {}}
