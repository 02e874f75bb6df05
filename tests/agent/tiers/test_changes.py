"""What would not come back as it was is refused, or told, through a real agent."""

from __future__ import annotations

import json
import sys

import pytest
from tests.agent.conftest import MakeAgent, kybernate
from tests.conftest import SLOWER, Eventually

from kybernate.model.api import SnapshotRequest
from kybernate.model.errors import Unsupported
from kybernate.model.types import TierName, WorkloadState

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

SEMAPHORE = """
import os, time
held = os.eventfd(1, os.EFD_SEMAPHORE)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_change_is_refused_until_it_is_allowed(make_agent: MakeAgent, eventually: Eventually) -> None:
    agent = make_agent()
    agent.run("counts", sys.executable, "-c", SEMAPHORE)
    eventually(lambda: "ready" in agent.output("counts"), timeout_s=60, what="it runs")
    refused = kybernate(agent, "pause", "counts", "--tier", "nvme")
    assert refused.returncode == Unsupported.exit_status
    assert "EFD_SEMAPHORE" in refused.stderr
    assert agent.client.workload("counts").state is WorkloadState.RUNNING
    with pytest.raises(Unsupported, match="EFD_SEMAPHORE"):
        agent.client.snapshot("counts", SnapshotRequest.of(image="gold"))
    taken = agent.client.snapshot("counts", SnapshotRequest.of(image="gold", allow_changes=True))
    assert any("EFD_SEMAPHORE" in note for note in taken.notes)
    agent.client.pause("counts", tier=TierName.RAM)
    with pytest.raises(Unsupported, match="EFD_SEMAPHORE"):
        agent.client.move("counts", TierName.NVME)
    moved = kybernate(agent, "move", "counts", "--tier", "nvme", "--allow-changes")
    assert moved.returncode == 0, moved.stderr
    assert "EFD_SEMAPHORE" in moved.stderr
    agent.client.resume("counts")
    # It is an ordinary eventfd now.
    again = json.loads(kybernate(agent, "pause", "counts", "--tier", "nvme", "--json").stdout)
    assert again["notes"] == []
    agent.client.stop("counts", remove=True)
