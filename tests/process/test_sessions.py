"""Workloads of a user who isn't root: what they have to do without, said in a line each, and what works all the same.

Freezing and ending without namespaces are tested beside those with, in test_freezing.py and test_ending.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads, main_of

from kybernate.model.errors import BadInput
from kybernate.model.types import WorkloadName
from kybernate.process.launching import launch
from kybernate.process.specs import LaunchSpec
from kybernate.process.tree import Tree

NOBODY = 65534


def test_what_is_left_out_is_said(workloads: Workloads) -> None:
    tree = workloads.launch("sleep", "100", isolated=False)
    assert len(tree.left_out) == 2
    assert all("isolation is off: no " in line for line in tree.left_out)
    assert (tree.freezes_by, tree.cgroup, tree.isolated) == ("sigstop", None, False)


def test_environment_and_output(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    tree = workloads.shell("echo $KYBERNATE_WORKLOAD in $PWD; ls /proc/self/fd | wc -l", isolated=False)
    assert tree.wait(60) == 0
    assert output(tree) == "work in /\n4\n"


def test_daemons_belong_to_the_tree(workloads: Workloads, eventually: Eventually) -> None:
    tree = workloads.shell("(setsid sh -c 'sleep 100' &) ; exec sleep 100", isolated=False)
    eventually(lambda: len(tree.pids()) >= 2)
    assert tree.main_pid() in tree.pids()
    assert tree.inside_pid(main_of(tree)) == tree.main_pid()
    tree.kill()
    assert tree.wait(60) == 137


AS_NOBODY = """
import json, signal, sys
from pathlib import Path
from kybernate.process.launching import launch
from kybernate.process.specs import LaunchSpec
from kybernate.process.tree import attach, terminate
from kybernate.model.types import WorkloadName
run_directory = Path(sys.argv[1], "workloads/work")
spec = LaunchSpec(name="work", argv=["sh", "-c", "id -u; sleep 100 & sleep 100"], run_directory=run_directory,
                  environment={"PATH": "/usr/bin:/bin"})
tree = launch(spec)
found = {"left_out": tree.left_out, "frozen": []}
while len(tree.pids()) < 3: pass
tree.freeze(); found["frozen"].append(attach(run_directory).frozen)
tree.thaw(); found["frozen"].append(tree.frozen)
found["status"] = terminate(tree, grace_s=5)
tree.remove()
found["output"] = (run_directory / "output.log").read_text()
print(json.dumps(found))
"""


@pytest.mark.root
def test_a_user_who_is_not_root(state_directory: Path) -> None:
    source = Path(__file__).parents[2] / "src"
    # The interpreter in use may lie where only root can read; the system's will do.
    python = next((p for p in (sys.executable, "/usr/bin/python3") if _usable(p, source)), None)
    if python is None:
        pytest.skip("no Python of 3.11 or newer that another user can run")
    os.chown(state_directory, NOBODY, NOBODY)
    done = subprocess.run(
        [python, "-c", AS_NOBODY, str(state_directory)],
        env={"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {
        "left_out": [line for line in found["left_out"] if line.startswith("not root: no ")],
        "frozen": [True, False],
        "status": 143,
        "output": f"{NOBODY}\n",
    }
    assert len(found["left_out"]) == 2


def _usable(python: str, source: Path) -> bool:
    program = f"import sys; sys.path.append({str(source)!r}); import kybernate.process.launching"
    try:
        return (
            subprocess.run([python, "-c", program], user=NOBODY, cwd="/", capture_output=True, check=False).returncode
            == 0
        )
    except PermissionError:
        return False


@pytest.mark.skipif(os.geteuid() == 0, reason="for users who aren't root")
def test_only_root_can_choose_a_user(state_directory: Path) -> None:
    shutil.rmtree(state_directory / "workloads", ignore_errors=True)
    spec = LaunchSpec(name=WorkloadName("work"), argv=["true"], run_directory=state_directory / "workloads/work", uid=1)
    with pytest.raises(BadInput, match="only root can run it as user 1"):
        launch(spec)
