"""Workloads whose processes use the GPU without our library, since their command drops LD_PRELOAD: seen, counted, and paused.

They compare all of their memory in every step, so each of these tests is one of exactness too.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator

import pytest
from tests.agent.conftest import AgentProcess, MakeAgent, goes_on, kybernate
from tests.conftest import SLOWER, Eventually

from kybernate.model.types import MIB, Backend, Depth, WorkloadState

pytestmark = [pytest.mark.root, pytest.mark.timeout(180 * SLOWER)]

SIZE = 80 * MIB
"""More than half of the simulated GPU: two don't fit."""
DROPS = (
    "sh",
    "-c",
    'exec env -i PATH="$PATH" LD_LIBRARY_PATH="$LD_LIBRARY_PATH" KYBERNATE_SIMULATED_GPU="$KYBERNATE_SIMULATED_GPU" "$@"',
    "sh",
)
"""All that is left is what finds the simulated driver; the real one is found without."""


@pytest.fixture(autouse=True)
def _clean(gpu_agent: AgentProcess) -> Iterator[None]:
    yield
    gpu_agent.stop_all()
    assert gpu_agent.client.node().gpus[0].resident_bytes == 0


def computing(size: int, *, seed: int = 1) -> list[str]:
    program = [sys.executable, "-m", "kybernate.benchmarks.workload", "--bytes", str(size), "--seed", str(seed)]
    return [*program, "--loop", "0.25", "--pace", "0.02"]


def started(agent: AgentProcess, eventually: Eventually, name: str, *, size: int = SIZE, **options: object) -> None:
    agent.run(name, *DROPS, *computing(size), **options)
    eventually(lambda: agent.steps(name) > 2, timeout_s=60, what=f"{name} computes")


def noticed(agent: AgentProcess, eventually: Eventually, name: str, size: int = SIZE) -> None:
    eventually(lambda: agent.client.workload(name).unmanaged_bytes >= size, timeout_s=30, what="it is noticed")


def test_a_workload_without_the_library_shows_with_its_vram_and_the_reason(
    gpu_agent: AgentProcess, eventually: Eventually
) -> None:
    client = gpu_agent.client
    started(gpu_agent, eventually, "bare")
    noticed(gpu_agent, eventually, "bare")
    view = client.workload("bare")
    assert view.resident_bytes == view.unmanaged_bytes < SIZE + 8 * MIB
    assert client.node().gpus[0].resident_bytes == view.resident_bytes
    event = next(event for event in client.events("bare") if event.kind == "without-library")
    (pid,) = event.data["pids"]
    assert pid in view.pids
    assert "LD_PRELOAD" in event.said
    explained = client.explain("bare").text
    assert "without Kybernate's library" in explained
    assert "no VRAM" not in explained
    table = kybernate(gpu_agent, "ps").stdout
    assert "no library" in table
    assert "its command drops LD_PRELOAD" in table
    assert "bare" in kybernate(gpu_agent, "doctor").stdout
    goes_on(gpu_agent, eventually, "bare")
    assert len([event for event in client.events("bare") if event.kind == "without-library"]) == 1


def test_it_gives_way_to_who_needs_its_room_and_goes_on_exactly(
    gpu_agent: AgentProcess, eventually: Eventually
) -> None:
    client = gpu_agent.client
    started(gpu_agent, eventually, "bare")
    gpu_agent.run_cuda("other", bytes_=SIZE, seed=2)
    eventually(lambda: gpu_agent.steps("other") > 2, timeout_s=60, what="the other one has its room")
    view = client.workload("bare")
    assert (view.state, view.depth, view.resident_bytes) == (WorkloadState.PAUSED, Depth.ZERO, 0)
    before = gpu_agent.steps("bare")
    client.resume("bare")  # in the place of the other
    assert client.workload("other").state is WorkloadState.PAUSED
    eventually(lambda: gpu_agent.steps("bare") > before + 2, timeout_s=60, what="it goes on")
    client.resume("other")
    assert client.workload("bare").state is WorkloadState.PAUSED
    goes_on(gpu_agent, eventually, "other")


def test_it_is_paused_to_the_depth_at_which_something_becomes_free(
    gpu_agent: AgentProcess, eventually: Eventually
) -> None:
    client = gpu_agent.client
    started(gpu_agent, eventually, "bare")
    noticed(gpu_agent, eventually, "bare")
    free = client.node().gpus[0].free_bytes
    assert client.pause("bare", depth=Depth.WARM).depth is Depth.ZERO
    assert client.node().gpus[0].free_bytes >= free + SIZE
    assert f"{SIZE // MIB}" in client.explain("bare").text, "what it needs to go on is known"
    client.resume("bare")
    goes_on(gpu_agent, eventually, "bare")
    noticed(gpu_agent, eventually, "bare")


def test_a_tree_of_which_one_process_has_the_library_and_one_has_not(
    gpu_agent: AgentProcess, eventually: Eventually
) -> None:
    client, half = gpu_agent.client, 40 * MIB
    both = f"{shlex.join(computing(half, seed=3))} & exec {shlex.join([*DROPS, *computing(half)])}"
    gpu_agent.run("mixed", "sh", "-c", both)
    eventually(lambda: client.workload("mixed").resident_bytes >= half, timeout_s=60, what="one has its memory")
    noticed(gpu_agent, eventually, "mixed", half)
    eventually(lambda: client.workload("mixed").resident_bytes >= 2 * half, timeout_s=60, what="both have theirs")
    gpu_agent.run_cuda("other", bytes_=SIZE, seed=2)
    eventually(lambda: gpu_agent.steps("other") > 2, timeout_s=60, what="the other one has its room")
    assert client.workload("mixed").state is WorkloadState.PAUSED
    client.resume("mixed")
    assert client.workload("other").state is WorkloadState.PAUSED
    goes_on(gpu_agent, eventually, "mixed")
    client.pause("mixed")
    client.resume("mixed")
    goes_on(gpu_agent, eventually, "mixed")


def test_a_workload_that_is_left_to_the_driver_by_choice_counts_as_well_and_nobody_wonders(
    gpu_agent: AgentProcess, eventually: Eventually
) -> None:
    client = gpu_agent.client
    gpu_agent.run("chosen", *computing(SIZE), backend=Backend.DRIVER)
    eventually(lambda: gpu_agent.steps("chosen") > 2, timeout_s=60, what="it computes")
    eventually(lambda: client.workload("chosen").resident_bytes >= SIZE, timeout_s=30, what="it is counted")
    assert "without-library" not in {event.kind for event in client.events("chosen")}
    gpu_agent.run_cuda("other", bytes_=SIZE, seed=2)
    eventually(lambda: gpu_agent.steps("other") > 2, timeout_s=60, what="the other one has its room")
    client.resume("chosen")
    goes_on(gpu_agent, eventually, "chosen")


def test_a_library_that_was_not_told_where_its_agent_is_counts_as_none(
    gpu_agent: AgentProcess, eventually: Eventually
) -> None:
    client = gpu_agent.client
    gpu_agent.run("lonely", "env", "-u", "KYBERNATE_RUN_DIRECTORY", *computing(SIZE))
    eventually(lambda: gpu_agent.steps("lonely") > 2, timeout_s=60, what="it computes")
    noticed(gpu_agent, eventually, "lonely")
    gpu_agent.run_cuda("other", bytes_=SIZE, seed=2)
    eventually(lambda: gpu_agent.steps("other") > 2, timeout_s=60, what="the other one has its room")
    client.resume("lonely")
    assert client.workload("other").state is WorkloadState.PAUSED
    goes_on(gpu_agent, eventually, "lonely")


def test_a_workload_with_the_library_is_never_taken_for_one_without(
    gpu_agent: AgentProcess, eventually: Eventually
) -> None:
    """Also while it begins: its process uses the GPU a moment before it listens."""
    client = gpu_agent.client
    for number in range(4):
        gpu_agent.run_cuda(f"has-{number}", bytes_=20 * MIB)
    for number in range(4):
        name = f"has-{number}"
        eventually(lambda name=name: gpu_agent.steps(name) > 2, timeout_s=60, what="it computes")
        assert client.workload(name).unmanaged_bytes == 0
        assert "without-library" not in {event.kind for event in client.events(name)}


def test_a_new_agent_knows_what_it_needs_back(make_agent: MakeAgent, eventually: Eventually) -> None:
    agent = make_agent()
    started(agent, eventually, "bare")
    noticed(agent, eventually, "bare")
    agent.client.pause("bare")
    agent.kill()
    agent.start()
    agent.run_cuda("other", bytes_=SIZE, seed=2)
    eventually(lambda: agent.steps("other") > 2, timeout_s=60, what="the other one computes")
    agent.client.resume("bare")
    assert agent.client.workload("other").state is WorkloadState.PAUSED
    goes_on(agent, eventually, "bare")
    assert json.loads(kybernate(agent, "ps", "--json").stdout)
    agent.stop_all()
