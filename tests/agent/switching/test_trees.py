"""Workloads of several CUDA processes, whose kernels wait for each other, on a real agent and the simulated driver."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from tests.agent.conftest import AgentProcess
from tests.conftest import SLOWER, Eventually

from kybernate.model.types import MIB, Depth, WorkloadState

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

PROGRAMS = Path(__file__).parents[1] / "programs"
MEETING, KEEPER = str(PROGRAMS / "meeting.py"), str(PROGRAMS / "keeper.py")


@pytest.mark.parametrize("depth", list(Depth))
def test_kernels_that_wait_for_another_process_come_to_an_end(
    gpu_agent: AgentProcess, eventually: Eventually, depth: Depth
) -> None:
    """Launches stop in the middle of a collective operation of two processes: it must be finished first."""
    client = gpu_agent.client
    gpu_agent.run("meeting", sys.executable, MEETING, "0.004")
    eventually(lambda: gpu_agent.steps("meeting") > 2, timeout_s=60, what="both compute")
    assert client.workload("meeting").resident_bytes == 16 * MIB
    for _ in range(8):
        report = client.pause("meeting", depth=depth, timeout_s=15)
        quiesce = next(step.seconds for step in report.steps if step.step == "quiesce")
        assert quiesce < 5 * SLOWER
        assert client.workload("meeting").state is WorkloadState.PAUSED
        client.resume("meeting")
        before = gpu_agent.steps("meeting")
        eventually(lambda before=before: gpu_agent.steps("meeting") > before + 1, timeout_s=60, what="both go on")


def test_vram_that_a_helper_process_keeps_is_told(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    client = gpu_agent.client
    size = 32 * MIB
    gpu_agent.run("keeper", sys.executable, KEEPER, str(size // MIB))
    eventually(lambda: "keeps" in gpu_agent.output("keeper"), timeout_s=30, what="the helper has it")
    client.pause("keeper")
    eventually(lambda: client.workload("keeper").held_bytes == size, timeout_s=30, what="it is noticed")
    event = next(event for event in client.events("keeper") if event.kind == "vram-held")
    (pid,) = event.data["pids"]
    assert f"process {pid} (python" in event.text
    assert pid in client.workload("keeper").pids
    assert "not free" in client.explain("keeper").text
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: client.workload("keeper").held_bytes == 0, timeout_s=30, what="it is free")
    assert client.events("keeper")[-1].kind == "vram-free"
    client.resume("keeper")


def test_a_pause_that_leaves_nothing_says_nothing(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    client = gpu_agent.client
    gpu_agent.run_cuda("clean", bytes_=32 * MIB)
    eventually(lambda: gpu_agent.steps("clean") > 2, timeout_s=60, what="it computes")
    free = client.node().gpus[0].free_bytes
    client.pause("clean")
    assert client.node().gpus[0].free_bytes >= free + 32 * MIB
    assert client.workload("clean").held_bytes == 0
    assert [event.kind for event in client.events("clean")] == ["started", "paused"]
