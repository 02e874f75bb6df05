"""Workloads go to a store and come back: real processes, real CRIU, a real store; only the GPU is simulated."""

from __future__ import annotations

import contextlib
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
from kybernate.engine.faults import TIER_STEPS, VARIABLE
from kybernate.model.errors import KybernateError
from kybernate.model.types import MIB
from kybernate.process.tree import attach

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

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
        for run_directory in root.glob("*/workloads/*"):
            with contextlib.suppress(KybernateError):
                attach(run_directory).remove()
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


def test_agents_die_while_they_park(scenario: Run) -> None:
    """One after the other, each at another step; the first with a connection to the process that it had just frozen."""
    assert scenario("park", fault="pause.frozen:kill") == -9
    for step in (step for step in TIER_STEPS if step.startswith("capture.")):
        assert scenario("park_what_was_found", fault=f"{step}:kill") == -9, step
    scenario("after_a_parking_died")


def test_agents_die_while_they_revive(scenario: Run) -> None:
    scenario("park")
    for step in (step for step in TIER_STEPS if not step.startswith("capture.")):
        assert scenario("revive_anew", fault=f"{step}:kill") == -9, step
    scenario("after_a_revival_was_saved")


@pytest.mark.parametrize(
    "name",
    [
        "steps_that_fail_leave_everything_as_it_was",
        "what_cannot_be_dumped_stays_paused",
        "moved_by_the_driver_alone",
        "refusals_change_nothing",
        "damage_is_found_before_anything_starts",
        "too_small_a_pool_says_so",
        "a_cancelled_step_leaves_nothing",
    ],
)
def test_scenario(scenario: Run, name: str) -> None:
    scenario(name)
