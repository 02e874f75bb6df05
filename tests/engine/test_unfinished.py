"""What can't be brought into order for want of room is not lost: it waits, and goes on when there is room again."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gpu"))

from faults import SLOWER, STEP_S, Rig
from tests.conftest import Eventually
from tests.guardian import guarded

from kybernate.model.errors import AgentAway, Busy, KybernateError, NoRoom
from kybernate.model.types import MIB, WorkloadState

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and cgroups"),
    pytest.mark.timeout(300 * SLOWER),
]

PROGRAMS = Path(__file__).with_name("programs")
NATIVE_MIB, EXTENT_MIB = 48, 16
AGAIN_S = 120.0
"""The agent tries again by itself, after a minute at most."""
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = tmp_path_factory.mktemp("unfinished")
    made = Rig(size=32 * MIB, pool=128 * MIB, simulated=128 * MIB, directory=directory)
    with guarded(made.agent.root), made:
        yield made


@pytest.fixture
def name(rig: Rig) -> Iterator[str]:
    """A workload most of whose memory is native, at work. Its name is unique on this machine: cgroups are found by it."""
    made = f"unfinished-{next(_NUMBERS)}-{os.getpid()}"
    program = [sys.executable, str(PROGRAMS / "pieces.py"), str(NATIVE_MIB), str(EXTENT_MIB)]
    rig.agent.run(made, program).wait_steps(2, timeout_s=STEP_S)
    try:
        yield made
    finally:
        if not rig.agent.alive:
            rig.agent.start()
        rig.agent.client.stop(made, grace_s=0, remove=True)


@contextlib.contextmanager
def hog(rig: Rig) -> Iterator[None]:
    """All VRAM is taken, by a process that nobody can pause."""
    environment = {**os.environ, **rig.agent.simulation}
    with subprocess.Popen(
        [sys.executable, str(PROGRAMS / "hog.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"full\n"
            yield
        finally:
            process.kill()


def test_a_paused_workload_whose_context_finds_no_room_stays_paused(rig: Rig, name: str) -> None:
    client = rig.agent.client
    client.pause(name)
    with hog(rig), pytest.raises(NoRoom):
        client.resume(name, timeout_s=1)
    assert client.workload(name).state is WorkloadState.PAUSED
    client.resume(name)
    rig.progress(name)


def test_a_new_agent_without_room_waits_for_it(rig: Rig, name: str, eventually: Eventually) -> None:
    """The old one died when the context was out and its memory still there; the way back needs room for the context."""
    client = rig.agent.client
    rig.fault("pause.checkpointed", "kill")
    with contextlib.suppress(AgentAway):
        client.pause(name)
    assert rig.agent.wait_death(timeout_s=STEP_S) == -signal.SIGKILL
    with hog(rig):
        rig.agent.start()
        client = rig.agent.client
        assert waits(rig, name)
        eventually(lambda: "VRAM" in client.workload(name).reason, what="it is said what is missing")
        for order in (client.resume, client.pause):
            with pytest.raises(Busy, match="just now"):
                order(name)
            assert waits(rig, name)
    eventually(
        lambda: client.workload(name).state is WorkloadState.RUNNING,
        timeout_s=AGAIN_S,
        what="it is tried again by itself",
    )
    rig.progress(name)
    client.pause(name)
    client.resume(name)
    rig.progress(name)


def test_a_failed_pause_without_room_for_the_way_back_waits_for_it(rig: Rig, name: str, eventually: Eventually) -> None:
    client = rig.agent.client
    rig.fault("pause.checkpointed", "stop")
    with subprocess.Popen(
        [sys.executable, "-m", "kybernate.cli", "pause", name, "--state-dir", str(rig.agent.state.root)],
        stderr=subprocess.DEVNULL,
    ) as order:
        eventually(lambda: _stopped(rig.agent.pid), timeout_s=30, what="the pause is at its middle")
        with hog(rig):
            rig.fault("pause.marked", "error")
            os.kill(rig.agent.pid, signal.SIGCONT)
            assert order.wait(60) != 0
            assert waits(rig, name)
    eventually(
        lambda: client.workload(name).state is WorkloadState.RUNNING, timeout_s=AGAIN_S, what="it goes on by itself"
    )
    rig.progress(name)
    with contextlib.suppress(KybernateError):
        client.resume(name)


def waits(rig: Rig, name: str) -> bool:
    """It is paused, or just being tried again, which the agent does by itself at any moment."""
    view = rig.agent.client.workload(name)
    assert view.state in (WorkloadState.PAUSED, WorkloadState.RESUMING), view
    return True


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
