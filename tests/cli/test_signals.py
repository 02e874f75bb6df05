"""`run --wait` stands for what it started: signals that it gets are the workload's, and its exit status is the workload's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.agent.conftest import AgentProcess, agent_process
from tests.cli.test_command_line import kybernate
from tests.conftest import Eventually

from kybernate.model.errors import Conflict, NotFound

pytestmark = pytest.mark.timeout(180)

HANDLES = "trap 'exit 7' TERM HUP INT QUIT USR1; echo ready; while :; do sleep 0.05; done"
IGNORES = "trap '' INT; echo ready; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    yield from agent_process(settings="", simulated_gpu=False)


@contextmanager
def waiting(agent: AgentProcess, program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`kybernate run job --wait`, in a session of its own."""
    command = [sys.executable, "-m", "kybernate.cli", "run", "job", *words, "--state-dir", str(agent.state.root)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KYBERNATE_")}
    with subprocess.Popen(
        [*command, "--", "sh", "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            agent.client.stop("job", grace_s=0, remove=True)


def ready(agent: AgentProcess) -> bool:
    try:
        return "ready" in agent.output("job")
    except NotFound:
        return False  # it is about to be started


def passes(process: subprocess.Popen[str]) -> bool:
    """Whether its handlers are there: before, a signal ends the command alone."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(caught & 1 << signal.SIGUSR2 - 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
@pytest.mark.parametrize("how", ["--wait", "--follow"])
def test_a_signal_is_passed_on(agent: AgentProcess, eventually: Eventually, number: signal.Signals, how: str) -> None:
    with waiting(agent, HANDLES, how) as process:
        eventually(lambda: ready(agent) and passes(process), what="the program's own handlers")
        process.send_signal(number)
        assert process.wait(60) == 7, process.communicate()
        assert agent.client.workload("job").exit_status == 7


def test_a_second_ctrl_c_leaves_it_running(agent: AgentProcess, eventually: Eventually) -> None:
    with waiting(agent, IGNORES, "--wait") as process:
        eventually(lambda: ready(agent) and passes(process))
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "SIGINT was passed on to job; once more, and it is left running" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert agent.client.workload("job").state == "running"
        assert "job runs on" in process.stderr.read()


def test_a_signal_for_what_has_ended_is_refused(agent: AgentProcess) -> None:
    agent.run("gone", "true")
    agent.client.wait("gone")
    with pytest.raises(Conflict, match="workload gone has ended"):
        agent.client.signal("gone", signal.SIGTERM)
    agent.client.stop("gone", remove=True)
    assert json.loads(kybernate("ps", "--json", state=agent.state.root).stdout)["workloads"] == []
