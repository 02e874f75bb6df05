"""A cluster leaves nothing behind: not when it is ended, not when whoever used it is killed, not when its keeper is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.harness import Cluster, ClusterError, Shape, binaries, claim, processes, start
from tests.cluster.harness.binaries import TOP
from tests.cluster.traces import kernel_settings, traces

pytestmark = pytest.mark.timeout(240)
Eventually = Callable[..., Any]

USER = """
import sys
from pathlib import Path
from tests.cluster.harness import Shape, join
join(Path(sys.argv[1]), Shape())
print("joined", flush=True)
sys.stdin.read()
"""


@pytest.mark.root
def test_down(programs: None, directory: Path) -> None:
    before = kernel_settings()
    cluster = start(directory, Shape(nodes=1), leash=True)
    during = {line.split()[0] for line in traces(cluster)}
    assert during == {"file", "process", "interface", "route", "cgroup"}  # its mounts are in its own namespace
    made = processes.namespaces(cluster.node().pid) - processes.namespaces(os.getpid())
    assert len(made) == 4
    since = processes.now()
    cluster.leave()
    assert traces(cluster) == []
    assert processes.in_use(made, since=since) == set()
    assert kernel_settings() == before


def test_the_last_user_ends_it_even_when_killed(
    control_plane_programs: None, directory: Path, eventually: Eventually
) -> None:
    users = [
        subprocess.Popen(
            [sys.executable, "-c", USER, directory], cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for user in users:
            assert user.stdout is not None
            assert user.stdout.readline() == "joined\n"
        users[0].kill()
        users[0].wait()
        cluster = Cluster.load(directory)
        assert cluster is not None
        assert cluster.alive
    finally:
        for user in users:
            user.kill()
            user.communicate()
    eventually(lambda: not traces(cluster), timeout_s=20, what="nothing left of the cluster")
    Path(f"{directory}.lock").unlink(missing_ok=True)


def test_a_start_that_fails_shows_logs_and_leaves_nothing(
    control_plane_programs: None, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = directory / "broken"
    broken.mkdir()
    server = broken / "kube-apiserver"
    server.write_text("#!/bin/sh\n[ $# = 1 ] && echo Kubernetes v1.37.0 && exit\necho no luck today; exit 1\n")
    server.chmod(0o755)
    found = {**binaries.find(Shape().programs), "kube-apiserver": server}
    monkeypatch.setattr(binaries, "find", lambda _names: found)
    with pytest.raises(ClusterError, match=r"the API server ended before it was ready[^$]*no luck today"):
        start(directory / "c", Shape(), leash=True)
    assert not (directory / "c").exists()


@pytest.mark.root
def test_down_after_the_keeper_was_killed(programs: None, directory: Path, eventually: Eventually) -> None:
    cluster = start(directory, Shape(nodes=1), leash=False)
    os.kill(cluster.keeper.pid, signal.SIGKILL)
    os.waitpid(cluster.keeper.pid, 0)
    cluster.down()
    eventually(lambda: not traces(cluster), timeout_s=10, what="nothing left of the cluster")


STARTER = """
import sys
from pathlib import Path
from tests.cluster.harness import Shape, start
start(Path(sys.argv[1]), Shape(nodes=1), leash=False)
"""


@pytest.mark.root
@pytest.mark.parametrize("stage", ["cluster.json", "pki", "node1", "keeper.log", "etcd.pid"])
def test_whoever_starts_it_may_be_killed_at_any_time(
    programs: None, directory: Path, eventually: Eventually, stage: str
) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, directory], cwd=TOP)
    try:
        eventually((directory / stage).exists, timeout_s=60)
    finally:
        starter.kill()
        starter.wait()
    cluster = Cluster.load(directory)
    assert cluster is not None
    cluster.down()
    eventually(lambda: not traces(cluster), timeout_s=10, what="nothing left of the cluster")


@pytest.mark.root
def test_the_next_cluster_removes_what_nobody_removed(programs: None, directory: Path, eventually: Eventually) -> None:
    lost = start(directory / "lost", Shape(nodes=1), leash=False)
    assert lost.network is not None
    cable = Path("/sys/class/net") / lost.network.host_end(1) / "ifindex"
    before = cable.read_text()
    os.kill(lost.keeper.pid, signal.SIGKILL)
    os.waitpid(lost.keeper.pid, 0)
    shutil.rmtree(lost.directory, ignore_errors=True)
    claimed = claim.take()
    try:
        assert not cable.exists() or cable.read_text() != before  # or it is one of a cluster beside this test
        lost.down()  # late, and not to harm whoever has the number now
        assert (Path("/sys/class/net") / claimed.bridge).exists()
    finally:
        claim.give_back(claimed, claim.ourselves())
    assert not (Path("/sys/class/net") / claimed.bridge).exists()


def test_down_ends_a_cluster_whose_directory_was_removed(control_plane_programs: None, directory: Path) -> None:
    lost = start(directory / "lost", Shape(), leash=False)
    shutil.rmtree(lost.directory)
    assert lost.alive
    argv = [sys.executable, "-m", "tests.cluster.harness", "down", f"--directory={lost.directory}"]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not lost.alive
    assert traces(lost) == []


@pytest.mark.parametrize("nodes", ["abc", "-1", "1000", "", "1.5", "1 --kwok"])
def test_a_wrong_number_of_nodes_is_one_line(tmp_path: Path, nodes: str) -> None:
    argv = [sys.executable, "-m", "tests.cluster.harness", "up", f"--directory={tmp_path / 'c'}", f"--nodes={nodes}"]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ClusterError, match="isn't empty"):
        start(tmp_path, Shape(), leash=True)
    assert (tmp_path / "precious").exists()
