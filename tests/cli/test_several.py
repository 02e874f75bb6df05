"""One order for several workloads, or for all; and the shell that knows their names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.conftest import SIZE, AgentProcess, agent_process
from tests.cli.test_command_line import kybernate

from kybernate.model.types import MIB

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def machine() -> Iterator[AgentProcess]:
    """With room for all of them in VRAM and in the pool."""
    yield from agent_process(settings=f"agent: {{pool: {{size: {256 * MIB}}}}}\n", simulated_gpu=True)


@pytest.fixture
def agent(machine: AgentProcess) -> Iterator[AgentProcess]:
    """With two workloads that compute, `one` and `two`."""
    for name in ("one", "two"):
        machine.run_cuda(name, bytes_=SIZE)
    yield machine
    machine.stop_all()
    assert machine.client.workloads() == []


def states(agent: AgentProcess) -> dict[str, str]:
    return {each.name: str(each.state) for each in agent.client.workloads()}


def test_several_names_in_one_order(agent: AgentProcess) -> None:
    done = kybernate("pause", "one", "two", state=agent.state.root)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["one", "two"]
    assert states(agent) == {"one": "paused", "two": "paused"}
    done = kybernate("resume", "two", "one", "two", "--json", state=agent.state.root)
    assert [each["workload"] for each in json.loads(done.stdout)] == ["two", "one"], "each of them once"
    assert states(agent) == {"one": "running", "two": "running"}


def test_one_name_is_answered_as_ever(agent: AgentProcess) -> None:
    assert json.loads(kybernate("pause", "one", "--json", state=agent.state.root).stdout)["workload"] == "one"
    assert json.loads(kybernate("stop", "one", "--json", state=agent.state.root).stdout)["workload"] == "one"


def test_one_that_fails_keeps_the_others_from_nothing(agent: AgentProcess) -> None:
    done = kybernate("pause", "one", "nobody", "two", state=agent.state.root)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "nobody" in done.stderr
    assert states(agent) == {"one": "paused", "two": "paused"}
    done = kybernate("resume", "nobody", "one", "--json", state=agent.state.root)
    assert done.returncode == 2
    failed, resumed = json.loads(done.stdout)
    assert (failed["workload"], failed["code"], resumed["workload"]) == ("nobody", "not_found", "one")


def test_all_of_them(agent: AgentProcess) -> None:
    state = agent.state.root
    assert kybernate("pause", "one", state=state).returncode == 0
    done = kybernate("pause", "--all", "--json", state=state)
    assert [each["workload"] for each in json.loads(done.stdout)] == ["two"], "whoever has VRAM"
    assert kybernate("resume", "--all", state=state).returncode == 0
    assert states(agent) == {"one": "running", "two": "running"}
    assert kybernate("rm", "--all", state=state).stdout == "there is none\n", "they run"
    assert kybernate("stop", "--all", "--grace", "0", state=state).returncode == 0
    assert states(agent) == {"one": "exited", "two": "exited"}
    assert kybernate("rm", "--all", state=state).stdout == "one: removed\ntwo: removed\n"
    assert kybernate("resume", "--all", "--json", state=state).stdout == "[]\n"


@pytest.mark.root
def test_all_of_them_below_ram_and_back(agent: AgentProcess) -> None:
    state = agent.state.root
    assert kybernate("pause", "one", state=state).returncode == 0
    done = kybernate("pause", "--all", "--tier", "nvme", state=state)
    assert done.returncode == 0, done.stderr
    assert {each.tier for each in agent.client.workloads()} == {"nvme"}, "also one that was paused in RAM"
    done = kybernate("prefetch", "--all", state=state)
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["one", "two"], done.stderr
    assert kybernate("move", "--all", "--tier", "nvme", state=state).stdout == "there is none\n", "they lie there"
    assert kybernate("resume", "--all", state=state).returncode == 0
    assert agent.steps("one") >= 0, "exact"


@pytest.mark.parametrize("command", ["pause", "resume", "stop", "rm", "prefetch"])
def test_names_or_all(tmp_path: Path, command: str) -> None:
    for words in ([], ["x", "--all"]):
        done = kybernate(command, *words, state=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "--all" in done.stderr


def test_the_shell_knows_the_names(agent: AgentProcess, tmp_path: Path) -> None:
    """In a real bash: Tab behind each command."""
    script = kybernate("completion", "bash", state=tmp_path).stdout
    own = tmp_path / "bin" / "kybernate"
    own.parent.mkdir()
    own.write_text(f'#!/bin/sh\nexec {sys.executable} -m kybernate.cli "$@"\n')
    own.chmod(0o755)

    def tab(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in ("kybernate", *words))
        line = (
            f"{script}\nCOMP_WORDS=({typed})\nCOMP_CWORD={len(words)}\n_kybernate\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        environment = {"PATH": f"{own.parent}:/usr/bin:/bin", "KYBERNATE_STATE_DIR": str(agent.state.root)}
        bash = shutil.which("bash")
        assert bash is not None
        done = subprocess.run(
            [bash, "-c", line], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.split()

    agent.client.pause("one")
    assert tab("pause", "") == ["two"]
    assert tab("resume", "") == ["one"]
    assert tab("stop", "") == ["one", "two"]
    assert tab("stop", "one", "") == ["two"], "not one that is there already"
    assert tab("logs", "t") == ["two"]
    assert tab("rm", "") == []
    agent.client.stop("two", grace_s=0)
    assert tab("rm", "") == ["two"]


def test_the_shell_says_nothing_without_an_agent(tmp_path: Path) -> None:
    done = kybernate("__complete", "pause", "", state=tmp_path)
    assert (done.returncode, done.stdout.strip("\x1f\n"), done.stderr) == (0, "begin", "")
