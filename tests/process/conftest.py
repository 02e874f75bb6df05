"""Real workloads for tests: launched below a state directory of the test's own, removed whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kybernate.model.types import HostPid, WorkloadName
from kybernate.process import cgroups, procfs
from kybernate.process.launching import launch
from kybernate.process.records import ExitRecord
from kybernate.process.specs import LaunchSpec
from kybernate.process.tree import OUTPUT, Tree

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def state_directory() -> Iterator[Path]:
    """A short path, since sockets lie below it (pytest's tmp_path is too long for that)."""
    directory = Path(tempfile.mkdtemp(prefix="kyb-process-")).resolve()
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


class Workloads:
    """Launches workloads and remembers them."""

    def __init__(self, state_directory: Path) -> None:
        self.state_directory = state_directory
        self.trees: list[Tree] = []

    def spec(self, *argv: str, name: str = "work", **fields: Any) -> LaunchSpec:
        fields.setdefault("environment", ENVIRONMENT)
        fields.setdefault("run_directory", self.state_directory / "workloads" / name)
        return LaunchSpec(name=WorkloadName(name), argv=argv, **fields)

    def launch(self, *argv: str, name: str = "work", **fields: Any) -> Tree:
        tree = launch(self.spec(*argv, name=name, **fields))
        self.trees.append(tree)
        return tree

    def shell(self, script: str, **fields: Any) -> Tree:
        return self.launch("/bin/sh", "-c", script, **fields)

    def python(self, program: str, *arguments: str, **fields: Any) -> Tree:
        return self.launch(sys.executable, "-I", "-S", "-c", program, *arguments, **fields)


@pytest.fixture
def workloads(state_directory: Path) -> Iterator[Workloads]:
    made = Workloads(state_directory)
    yield made
    for tree in made.trees:
        tree.remove()


@pytest.fixture
def elsewhere() -> Iterator[Workloads]:
    """Another state directory, for what is restored there."""
    directory = Path(tempfile.mkdtemp(prefix="kyb-other-")).resolve()
    directory.chmod(0o755)
    made = Workloads(directory)
    yield made
    for tree in made.trees:
        tree.remove()
    shutil.rmtree(directory)


@pytest.fixture
def output() -> Callable[[Tree], str]:
    """What a workload has written so far."""

    def read(tree: Tree) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (tree.run_directory / OUTPUT).read_text()
        return ""

    return read


class Leftovers:
    """What one state directory's workloads have in the kernel."""

    def __init__(self, state_directory: Path) -> None:
        self._state_directory = state_directory

    def found(self) -> list[str]:
        """One line for each thing still there. Empty is good.

        Namespaces are known by the mounts of the processes in them: their numbers are used again at once, by
        other tests too.
        """
        lines = []
        for _, root in cgroups._candidates():
            group = root / cgroups.group_name(self._state_directory)
            lines += [f"cgroup: {path}" for path in (group, *group.rglob("*")) if path.is_dir()]
        lines += [f"socket: {path}" for path in self._state_directory.rglob("*.sock")]
        for pid in procfs.all_pids():
            lines += self._of_process(pid)
        return lines

    def _of_process(self, pid: int) -> list[str]:
        mine = os.fsencode(self._state_directory)
        found = procfs.stat(pid)
        # An ended orphan is init's to reap, and some take a second for that.
        if found is None or (found.parent == 1 and not found.alive):
            return []
        with contextlib.suppress(OSError):
            if mine in Path(f"/proc/{pid}/cmdline").read_bytes():
                return [f"process: {pid} {found}"]
            if mine in Path(f"/proc/{pid}/mountinfo").read_bytes():
                return [f"mount namespace of process {pid} {found}"]
        return []


def ended(tree: Tree) -> ExitRecord:
    """How it ended; it has."""
    found = tree.exit()
    assert found is not None
    return found


def main_of(tree: Tree) -> HostPid:
    """Its main process, which lives."""
    found = tree.main_pid()
    assert found is not None
    return found


def group_of(tree: Tree) -> Path:
    """Its cgroup; it has one."""
    assert tree.cgroup is not None
    return tree.cgroup


@pytest.fixture
def leftovers(state_directory: Path) -> Leftovers:
    return Leftovers(state_directory)
