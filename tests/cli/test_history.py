"""`kybernate history`: drawn and in numbers, from a real agent's memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.agent.conftest import POOL_BYTES, AgentProcess, agent_process
from tests.conftest import Eventually

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    yield from agent_process(settings=f"agent: {{pool: {{size: {POOL_BYTES}}}}}\n", simulated_gpu=True)


def kybernate(agent: AgentProcess, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kybernate.cli", *words, "--state-dir", str(agent.state.root)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "60"},
        timeout=120,
        check=False,
    )


def test_history(agent: AgentProcess, eventually: Eventually) -> None:
    assert kybernate(agent, "history", "--last", "90").stdout == "there was no workload in the last 1 min 30 s\n"
    agent.run_cuda("stays")
    eventually(lambda: agent.steps("stays") > 0, timeout_s=60)
    agent.run("short", "true")
    agent.client.wait("short")
    agent.client.pause("stays")
    agent.client.resume("stays")

    done = kybernate(agent, "history")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    drawn = {line.split()[0]: line for line in lines[:2]}
    assert set(drawn) == {"stays", "short"}
    assert len(drawn["stays"]) == 60
    assert drawn["stays"].endswith("█")
    assert "█ in VRAM" in lines[3]
    stays = next(line for line in lines[5:] if line.startswith("stays "))
    assert re.search(r" 2 +80\.0 MiB +1 +\d+\.\d\d s +1 +\d+\.\d\d s$", stays), stays

    only = kybernate(agent, "history", "stays", "--last", "1h")
    assert "short" not in only.stdout
    listed = kybernate(agent, "history", "stays", "--stays").stdout.splitlines()
    assert [line.split()[1] == "now" for line in listed[1:]] == [False, True]
    found = json.loads(kybernate(agent, "history", "stays", "--json").stdout)
    assert {each["workload"] for each in (*found["intervals"], *found["switches"])} == {"stays"}
    assert [each["operation"] for each in found["switches"]] == ["pause", "resume"]

    unknown = kybernate(agent, "history", "nobody")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "kybernate: nobody was nowhere in the last 1 h 0 min (try a longer --last)\n"
