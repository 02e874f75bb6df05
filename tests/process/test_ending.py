"""How workloads end, what is said about it, and that nothing of them is left over, whatever was killed when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Leftovers, Workloads, ended

from kybernate.model.errors import BadInput, Busy, NotFound
from kybernate.model.types import WorkloadName
from kybernate.process.cgroups import WorkloadCgroup
from kybernate.process.records import supervisor_path
from kybernate.process.tree import Tree, attach, sweep, terminate

pytestmark = pytest.mark.root


@pytest.fixture(params=[True, False], ids=["isolated", "plain"])
def isolated(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize(
    ("script", "status", "number"),
    [("exit 0", 0, None), ("exit 3", 3, None), ("exit 255", 255, None), ("kill -TERM $$", 143, 15)],
)
def test_exit_status(workloads: Workloads, script: str, status: int, number: int | None, isolated: bool) -> None:
    tree = workloads.shell(script, isolated=isolated)
    assert tree.wait(60) == status
    assert tree.exit_status() == status
    assert ended(tree).signal == number
    assert ended(tree).known
    at = ended(tree).time
    assert at is not None
    assert abs(at - time.time()) < 60
    assert attach(tree.run_directory).exit() == tree.exit()
    record = json.loads((tree.run_directory / "exit.json").read_text())
    assert (record["status"], record["signal"]) == (status, number)


def test_no_status_while_it_runs(workloads: Workloads, isolated: bool) -> None:
    tree = workloads.launch("sleep", "100", isolated=isolated)
    assert tree.exit_status() is None
    with pytest.raises(Busy, match=r"still runs after 0\.05 s"):
        tree.wait(0.05)


def test_signals_reach_the_whole_process_group(
    workloads: Workloads, output: Callable[[Tree], str], eventually: Eventually, isolated: bool
) -> None:
    script = "trap 'echo outer; exit 5' TERM; (trap 'echo inner; exit' TERM; echo up; while :; do sleep 0.01; done) & wait; wait"
    tree = workloads.shell(script, isolated=isolated)
    eventually(lambda: "up" in output(tree))
    tree.signal(signal.SIGTERM)
    assert tree.wait(60) == 5
    assert "outer" in output(tree)


def test_a_signal_right_after_the_launch(workloads: Workloads, isolated: bool) -> None:
    tree = workloads.launch("sleep", "100", isolated=isolated)
    tree.signal(signal.SIGINT)
    assert tree.wait(60) == 130
    tree.signal(signal.SIGINT)  # to what has ended: nothing happens


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGCHLD])
def test_signals_that_can_not_be_sent(workloads: Workloads, number: signal.Signals) -> None:
    tree = workloads.launch("sleep", "100")
    with pytest.raises(BadInput, match=f"can't send {number.name}"):
        tree.signal(number)
    assert tree.exit() is None


def test_what_the_first_process_leaves_behind_ends_with_it(workloads: Workloads, isolated: bool) -> None:
    tree = workloads.shell("setsid sleep 100 & (sleep 100 &) ; (trap '' TERM; sleep 100) & exit 4", isolated=isolated)
    assert tree.wait(60) == 4
    assert tree.pids() == []


def test_terminate_asks_first(
    workloads: Workloads, eventually: Eventually, output: Callable[[Tree], str], isolated: bool
) -> None:
    tree = workloads.shell("trap 'exit 6' TERM; echo up; while :; do sleep 0.01; done", isolated=isolated)
    eventually(lambda: "up" in output(tree))
    tree.freeze()
    assert terminate(tree, grace_s=10) == 6


def test_terminate_does_not_wait_for_ever(
    workloads: Workloads, eventually: Eventually, output: Callable[[Tree], str], isolated: bool
) -> None:
    tree = workloads.shell("trap '' TERM; echo up; while :; do sleep 0.01; done", isolated=isolated)
    eventually(lambda: "up" in output(tree))
    assert terminate(tree, grace_s=0.1) == 137


def test_a_killed_supervisor_takes_the_tree_along(
    workloads: Workloads, leftovers: Leftovers, eventually: Eventually
) -> None:
    tree = workloads.shell("setsid sleep 100 & sleep 100", name="left")
    os.kill(tree.supervisor_pid, signal.SIGKILL)
    assert tree.wait(60) == 137
    assert not ended(tree).known
    eventually(lambda: tree.pids() == [])
    tree.remove()
    assert leftovers.found() == []


def test_a_killed_supervisor_of_a_plain_tree(
    workloads: Workloads, leftovers: Leftovers, eventually: Eventually
) -> None:
    tree = workloads.shell("sleep 100 & sleep 100", name="left", isolated=False)
    eventually(lambda: len(tree.pids()) == 3)
    os.kill(tree.supervisor_pid, signal.SIGKILL)
    assert tree.wait(60) == 137
    assert not ended(tree).known
    tree.remove()
    assert tree.pids() == []
    assert leftovers.found() == []


@pytest.mark.parametrize("state", ["running", "frozen", "killed", "ended"])
def test_removing_leaves_nothing(
    workloads: Workloads, leftovers: Leftovers, state_directory: Path, state: str, isolated: bool
) -> None:
    program = """
import os, socket, time
socket.socket(socket.AF_UNIX).bind(os.environ["KYBERNATE_RUN_DIRECTORY"] + "/control/7.sock")
for _ in range(3): os.fork()
print("up", flush=True)
time.sleep(100)
"""
    if state == "ended":
        tree = workloads.launch("true", name="left", isolated=isolated)
        tree.wait(60)
    else:
        tree = workloads.python(program, name="left", isolated=isolated)
        if state == "frozen":
            tree.freeze()
        if state == "killed":
            tree.kill()
    tree.remove()
    tree.remove()
    assert leftovers.found() == []
    names = {path.name for path in (state_directory / "workloads/left").iterdir()}
    assert names == {"exit.json", "output.log"}
    with pytest.raises(NotFound):
        attach(tree.run_directory)


def test_twenty_launches_leave_nothing(workloads: Workloads, leftovers: Leftovers, state_directory: Path) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        tree = workloads.shell("sleep 100 & sleep 100", name=f"left-{number % 5}")
        if number % 3:
            tree.freeze()
        (tree.remove if number % 2 else tree.kill)()
        if not number % 2:
            tree.wait(60)
            tree.remove()
    assert leftovers.found() == []
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_others_are_left_alone(workloads: Workloads) -> None:
    first, second = workloads.launch("sleep", "100", name="one"), workloads.launch("sleep", "100", name="two")
    first.remove()
    assert second.alive
    assert len(second.pids()) == 1


LAUNCHER = """
import sys
from pathlib import Path
from kybernate.process.launching import launch
from kybernate.process.specs import LaunchSpec
from kybernate.model.types import WorkloadName
launch(LaunchSpec(name="left", argv=["/bin/sleep", "100"], run_directory=Path(sys.argv[1], "workloads/left")))
"""


@pytest.mark.parametrize("after_ms", [0, 10, 20, 30, 40, 60, 80])
def test_killing_the_launching_process_at_any_time(
    state_directory: Path, leftovers: Leftovers, eventually: Eventually, after_ms: int
) -> None:
    run_directory = state_directory / "workloads/left"
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(state_directory)], start_new_session=True)
    eventually(run_directory.exists)
    deadline = time.monotonic() + after_ms / 1000
    while time.monotonic() < deadline:
        pass
    launcher.kill()
    launcher.wait()

    def settled() -> Tree | bool:
        """Either the launch went on to its end by itself, or nothing of it runs."""
        try:
            return attach(run_directory)
        except NotFound:
            groups = WorkloadCgroup.existing(state_directory=state_directory, name=WorkloadName("left"))
            return not any(path.read_text() for group in groups for path in group.path.glob("*/cgroup.procs"))

    if isinstance(found := eventually(settled), Tree):
        found.remove()
    eventually(lambda: swept(run_directory))
    eventually(lambda: leftovers.found() == [], what=str(leftovers.found()))


def swept(run_directory: Path) -> bool:
    sweep(run_directory)
    return True


def test_a_damaged_record_says_so(workloads: Workloads) -> None:
    tree = workloads.launch("sleep", "100")
    path = supervisor_path(tree.run_directory)
    genuine = path.read_text()
    for damage in ("", "[]", "{}", "garbage", '{"name": 3}'):
        path.write_text(damage)
        with pytest.raises(Exception, match="is damaged"):
            attach(tree.run_directory)
    path.write_text(genuine)


@pytest.mark.parametrize("name", ["..", "UPPER", "a b"])
def test_sweeping_what_is_no_workload(state_directory: Path, name: str) -> None:
    with pytest.raises(BadInput, match="bad workload name"):
        sweep(state_directory / "workloads" / name)
