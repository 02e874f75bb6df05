"""Workloads of several CUDA processes, whose kernels wait for each other, on a real agent and the simulated driver."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import SLOWER, Eventually
from tests.node.conftest import AgentProcess

from kybernate.model.types import MIB, Depth, WorkloadState

pytestmark = [pytest.mark.root, pytest.mark.timeout(180 * SLOWER)]

MEETING = str(Path(__file__).with_name("programs") / "meeting.py")


@pytest.fixture(autouse=True)
def _clean(gpu_agent: AgentProcess) -> Iterator[None]:
    yield
    gpu_agent.stop_all()


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
