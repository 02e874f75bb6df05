"""The agent's directory is full: what runs goes on, what can't be done says why, and with room again nothing was forgotten."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.error
from collections.abc import Callable

import pytest
from tests.agent.conftest import kybernate
from tests.agent.serving.conftest import ServingAgent, free_port, server
from tests.agent.serving.test_metrics import ask
from tests.conftest import SLOWER, Eventually, SmallTmpfs

from kybernate.model.types import MIB

# `small_tmpfs` comes first in each test: what is set up first goes last, and the agent must have ended by then.
pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]


def doctor(agent: ServingAgent, name: str) -> tuple[bool, str]:
    checks = json.loads(kybernate(agent, "doctor", "--json").stdout)["checks"]
    found = next(check for check in checks if check["name"] == name)
    return found["ok"], f"{found['detail']} {found['remedy']}"


def kinds(agent: ServingAgent) -> list[str]:
    return [event.kind for event in agent.client.events(count=1000)]


def test_a_full_state_directory_takes_nothing_down_and_is_named(
    small_tmpfs: Callable[[int], SmallTmpfs], begin: Callable[..., ServingAgent], eventually: Eventually
) -> None:
    tmpfs, port = small_tmpfs(48 * MIB), free_port()
    agent = begin(root=tmpfs.place, port=port, models={"m": server("m", size=8 * MIB)}, activator={"workers": 1})
    agent.run("before", "/bin/sleep", "1000")

    def answers() -> bool:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            ask(port, "m")
            return True
        return False

    eventually(answers, timeout_s=60, what="the address answers")
    assert doctor(agent, "agent's directory")[0]

    tmpfs.fill(agent.state.root / "somebody's core")
    eventually(lambda: "state-full" in kinds(agent), what="it is noticed")
    well, text = doctor(agent, "agent's directory")
    assert not well
    assert "is full" in text
    assert "somebody's core" in text
    ask(port, "m")

    # A start is refused in one line, and leaves nothing.
    refused = kybernate(agent, "run", "during", "--", "/bin/sleep", "1000")
    assert (refused.returncode, refused.stderr.count("\n")) == (5, 1), refused.stderr
    assert "is full" in refused.stderr
    assert str(agent.client.workload("during").state) == "exited"
    assert not agent.state.run_directory("during").exists()  # type: ignore[arg-type]

    # The activator's worker ends: the next one comes, full as the disk is.
    worker = agent.client.serving().workers[0].pid
    os.kill(worker, signal.SIGKILL)
    eventually(answers, timeout_s=60, what="the address answers again")
    assert agent.client.serving().workers[0].pid != worker
    agent.client.stop("before")

    tmpfs.free()
    eventually(lambda: "state-room" in kinds(agent), what="there is room again, which is noticed")
    assert doctor(agent, "agent's directory")[0]
    agent.run("after", "/bin/sleep", "1000")

    # What happened meanwhile was remembered: a new agent knows it, and the worker too.
    agent.kill()
    agent.start()
    states = {workload.name: str(workload.state) for workload in agent.client.workloads()}
    assert states["before"] == "exited"
    assert states["after"] == "running"
    ask(port, "m")
    assert {"state-full", "state-room"} <= set(kinds(agent))


def test_an_agent_that_starts_on_a_full_disk_forgets_nothing(
    small_tmpfs: Callable[[int], SmallTmpfs], begin: Callable[..., ServingAgent]
) -> None:
    """Its database can't be opened for want of room: that is said, and the database stays what it is."""
    tmpfs = small_tmpfs(48 * MIB)
    agent = begin(root=tmpfs.place)
    agent.run("mine", "/bin/sleep", "1000")
    agent.end()
    tmpfs.fill()
    with contextlib.suppress(AssertionError):
        agent.start()
    tmpfs.free()
    agent.end()
    assert not agent.state.database.with_name("agent.db.broken").exists()
    agent.start()
    assert [workload.name for workload in agent.client.workloads()] == ["mine"]
