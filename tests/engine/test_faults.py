"""kill -9 of the agent, and of the workload, at every step of pause and resume, on the simulated driver.

The code is shared with the run on a real GPU, tests/gpu/faults.py. Needs root: without it there are no cgroups to freeze.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gpu"))

from faults import SLOWER, Rig
from tests.guardian import guarded

from kybernate.engine.faults import PAUSE_STEPS, STEPS
from kybernate.engine.undo import UNFORESEEN
from kybernate.model.types import MIB

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and cgroups"),
    pytest.mark.timeout(300 * SLOWER),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("faults")
    made = Rig(size=32 * MIB, pool=128 * MIB, simulated=256 * MIB, directory=directory)
    with guarded(made.agent.root), made:
        yield made


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Unique on this machine, since cgroups are looked for by name."""
    return f"{request.function.__name__.replace('_', '-')}-{os.getpid()}"


def logged(rig: Rig, name: str) -> str:
    """What the agent's log says from the first line that speaks of the workload."""
    text: str = rig.agent.log.read_text(errors="replace")
    return text[text.index(name) :]


@pytest.mark.parametrize("step", STEPS)
def test_agent_dies(rig: Rig, name: str, step: str) -> None:
    if not rig.agent.alive:
        rig.agent.start()
    rig.start(name)
    try:
        found = rig.agent_dies(name, step)
        assert found in ("running", "paused")
        assert rig.agent.exact_end(name).startswith("exact ")
    finally:
        if not rig.agent.alive:
            rig.agent.start()
        rig.agent.client.stop(name, grace_s=0, remove=True)


@pytest.mark.parametrize("way", ["error", "busy"])
@pytest.mark.parametrize(
    "step",
    [
        "pause.quiet",
        "pause.released",
        "pause.checkpointed",
        "pause.discarding",
        "pause.discarded",
        "pause.frozen",
        "resume.restored",
        "resume.unlocked",
        "resume.mapped",
        "resume.opened",
    ],
)
def test_a_step_fails(rig: Rig, name: str, step: str, way: str) -> None:
    """Also one that a process answered with "busy" after something had changed: the ledger must not say that nothing has."""
    if not rig.agent.alive:
        rig.agent.start()
    rig.start(name)
    try:
        assert rig.step_fails(name, step, way) in ("running", "paused")
        assert rig.agent.exact_end(name).startswith("exact ")
        assert UNFORESEEN not in logged(rig, name)
    finally:
        rig.agent.client.stop(name, grace_s=0, remove=True)


@pytest.mark.parametrize("step", STEPS)
def test_workload_dies(rig: Rig, name: str, step: str) -> None:
    """The answer speaks of the program that ended, whatever the switch noticed of it first, and every undo is done."""
    if not rig.agent.alive:
        rig.agent.start()
    answer = rig.workload_dies(name, step)
    told = f"of workload {name} ended while it was being {'paused' if step in PAUSE_STEPS else 'resumed'}"
    assert answer == "done" or told in answer
    said = logged(rig, name)
    assert UNFORESEEN not in said
    assert "undo of" not in said, "there is nothing to undo for a process that has ended"
