"""Workloads go to a store and come back: real processes, real CRIU, a real store; only the GPU is simulated."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import SLOWER

from kybernate.cuda import simulated
from kybernate.engine.faults import VARIABLE
from kybernate.model.types import MIB

pytestmark = [pytest.mark.root, pytest.mark.timeout(180 * SLOWER)]

SCENARIOS = Path(__file__).with_name("stored_scenarios.py")
Run = Callable[..., int]


@pytest.fixture
def scenario() -> Iterator[Run]:
    """`scenario(name, fault="STEP:kill")` runs a function of stored_scenarios.py; several runs share their places."""
    root = Path("/run") / f"kyb-{secrets.token_hex(4)}"
    root.mkdir(mode=0o755)
    memory = Path(tempfile.mkdtemp(prefix="kyb-", dir="/dev/shm"))
    gpu = simulated.make(root / "gpu", size_bytes=256 * MIB)
    environment = simulated.environment([gpu], dict(os.environ))

    def run(name: str, *, fault: str = "") -> int:
        done = subprocess.run(
            [sys.executable, SCENARIOS, name, root, memory],
            env=environment | ({VARIABLE: fault} if fault else {}),
            capture_output=True,
            text=True,
            timeout=150 * SLOWER,
            check=False,
        )
        if done.returncode and not (fault.endswith(":kill") and done.returncode == -9):
            pytest.fail(
                f"{name} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-6000:]}", pytrace=False
            )
        return done.returncode

    try:
        yield run
    finally:
        simulated.remove(gpu.path)
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(memory, ignore_errors=True)


def test_parked_and_back(scenario: Run) -> None:
    scenario("parked_and_back")


def test_another_agent_resumes(scenario: Run) -> None:
    scenario("park")
    scenario("another_agent_resumes")


def test_clones(scenario: Run) -> None:
    scenario("clones")
