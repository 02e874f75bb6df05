"""What would not come back as it was is refused, or told, through a real agent."""

from __future__ import annotations

import json
import socket
import sys
import tempfile

import pytest
from tests.agent.conftest import MakeAgent, kybernate
from tests.conftest import SLOWER, Eventually

from kybernate.model.api import SnapshotRequest
from kybernate.model.errors import BadInput, Unsupported
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


BOUND = """
import socket, sys
bound = socket.socket(socket.AF_UNIX)
bound.bind(sys.argv[1])
bound.listen()
print("ready", flush=True)
while True:
    bound.accept()[0].close()
"""


def test_what_clones_would_share_is_told_and_not_taken_away(make_agent: MakeAgent, eventually: Eventually) -> None:
    agent = make_agent()
    with tempfile.TemporaryDirectory(prefix="kyb-bound-") as place:
        path = f"{place}/socket"
        agent.run("binds", sys.executable, "-c", BOUND, path)
        eventually(lambda: "ready" in agent.output("binds"), timeout_s=60, what="it runs")
        taken = json.loads(kybernate(agent, "snapshot", "binds", "--as", "gold", "--json").stdout)
        assert any(path in note for note in taken["notes"])
        refused = kybernate(agent, "clone", "gold", "again")
        assert refused.returncode != 0
        assert f"the Unix socket {path} is bound by a program that runs" in refused.stderr
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            assert client.recv(1) == b"", "the original has it"
        paused = json.loads(kybernate(agent, "pause", "binds", "--tier", "nvme", "--json").stdout)
        assert paused["notes"] == []
        agent.client.resume("binds")
        agent.client.stop("binds", remove=True)
        made = kybernate(agent, "clone", "gold", "again")
        assert made.returncode == 0, made.stdout + made.stderr
        agent.client.stop("again", remove=True)


def test_a_private_tmp_is_refused_where_the_state_directory_lies_in_it(make_agent: MakeAgent) -> None:
    refused = kybernate(make_agent(), "run", "own", "--private-tmp", "--", "true")
    assert refused.returncode == BadInput.exit_status
    assert "no layer can be laid over /tmp: " in refused.stderr
