"""What a workload can see of the agent's files and of other workloads: its own run directory, and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.process import namespaces
from kybernate.process.tree import Tree

pytestmark = pytest.mark.root


def test_only_its_own_run_directory_is_left(
    workloads: Workloads, state_directory: Path, output: Callable[[Tree], str]
) -> None:
    (state_directory / "token").write_text("secret")
    other = workloads.launch("sleep", "100", name="other")
    tree = workloads.shell(f"find {state_directory} -mindepth 1 | sort")
    assert tree.wait(60) == 0
    assert output(tree).splitlines() == [
        str(state_directory / path)
        for path in (
            "workloads",
            "workloads/work",
            "workloads/work/control",
            "workloads/work/identity.env",
            "workloads/work/launch.json",
            "workloads/work/output.log",
        )
    ]
    assert (state_directory / "token").read_text() == "secret"
    assert other.alive


def test_files_cross_in_both_directions(
    workloads: Workloads, state_directory: Path, eventually: Eventually, output: Callable[[Tree], str]
) -> None:
    run_directory = state_directory / "workloads/work"
    run_directory.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(str(run_directory / "agent.sock"))
        door.listen()
        program = """
import os, socket
base = os.environ["KYBERNATE_RUN_DIRECTORY"]
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.bind(base + "/control/1000.sock")
server.listen()
agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
agent.connect(base + "/agent.sock")
agent.send(b"hello")
server.accept()[0].send(b"state")
"""
        tree = workloads.python(program)
        door.settimeout(60)
        connection, _ = door.accept()
        with connection:
            assert connection.recv(10) == b"hello"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.connect(str(run_directory / "control/1000.sock"))
            assert control.recv(10) == b"state"
    assert tree.wait(60) == 0, output(tree)


def test_root_can_not_uncover_it(workloads: Workloads, state_directory: Path, output: Callable[[Tree], str]) -> None:
    (state_directory / "token").write_text("secret")
    tree = workloads.shell(
        f"umount {state_directory} {state_directory}/workloads/work; ls {state_directory}; touch {state_directory}/x"
    )
    tree.wait(60)
    assert "token" not in output(tree)
    assert "Read-only file system" in output(tree)


def test_mounts_below_are_not_kept_alive(
    workloads: Workloads, state_directory: Path, output: Callable[[Tree], str]
) -> None:
    pool = state_directory / "pool"
    pool.mkdir()
    namespaces.mount("pool", str(pool), "tmpfs", 0, "size=1m")
    try:
        tree = workloads.shell("cat /proc/self/mountinfo; exec sleep 100")
        theirs = Path(f"/proc/{tree.supervisor_pid}/mountinfo").read_text()
    finally:
        namespaces.detach_mount(str(pool))
    assert str(pool) not in theirs
    assert f" {state_directory} " in theirs
    assert tree.alive


def test_cgroups_can_be_read_but_not_changed(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    tree = workloads.launch("sleep", "100")
    other = workloads.shell(
        f"cat {tree.cgroup}/cgroup.procs >/dev/null && echo seen; echo 1 >{tree.cgroup}/cgroup.freeze", name="other"
    )
    other.wait(60)
    assert "seen" in output(other)
    assert "Read-only file system" in output(other)
    assert not tree.frozen


def test_processes_of_others_are_not_seen(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    tree = workloads.shell("ls -d /proc/[0-9]*; kill -0 1; exec sleep 0")
    tree.wait(60)
    assert "/proc/1\n" in output(tree)
    assert f"/proc/{os.getpid()}\n" not in output(tree)


def test_shared_memory_is_its_own(workloads: Workloads, output: Callable[[Tree], str]) -> None:
    mark = Path("/dev/shm/kyb-test-hiding")
    mark.touch()
    try:
        tree = workloads.shell("ls /dev/shm; touch /dev/shm/mine && stat -c %a /dev/shm", uid=65534, gid=65534)
        assert tree.wait(60) == 0
    finally:
        mark.unlink()
    assert output(tree) == "1777\n"
    assert not Path("/dev/shm/mine").exists()


def test_a_state_directory_reached_through_a_link(
    workloads: Workloads, state_directory: Path, output: Callable[[Tree], str]
) -> None:
    (state_directory / "token").write_text("secret")
    link = state_directory.with_name(state_directory.name + "-l")
    link.symlink_to(state_directory)
    try:
        run_directory = link / "workloads/work"
        tree = workloads.shell(f"ls {link} {state_directory}", run_directory=run_directory)
        assert tree.wait(60) == 0
        assert sorted(output(tree).split()) == [
            f"{state_directory}-l:",
            f"{state_directory}:",
            "workloads",
            "workloads",
        ]
        tree.remove()
    finally:
        link.unlink()
