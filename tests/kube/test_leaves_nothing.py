"""A cluster leaves nothing behind: not when it is ended, not when whoever used it is killed, not when its keeper is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.kube.cluster import Cluster, Shape, start
from tests.kube.cluster.binaries import TOP
from tests.kube.traces import kernel_settings, traces

pytestmark = pytest.mark.timeout(240)
Eventually = Callable[..., Any]

USER = """
import sys
from pathlib import Path
from tests.kube.cluster import Shape, join
join(Path(sys.argv[1]), Shape())
print("joined", flush=True)
sys.stdin.read()
"""


def of_this(directory: Path, found: list[str]) -> list[str]:
    """Other clusters of this run may be there as well."""
    return [line for line in found if str(directory) in line]


@pytest.mark.root
def test_down(programs: None, directory: Path) -> None:
    before = kernel_settings()
    cluster = start(directory, Shape(nodes=1), leash=True)
    bridge = cluster.network.bridge if cluster.network else "none"
    during = traces(directory)
    assert any(line.startswith("process") for line in during)
    assert f"interface {bridge}" in during
    cluster.leave()
    after = [line for line in traces(directory) if str(directory) in line or bridge in line]
    assert after == []
    assert kernel_settings() == before


def test_the_last_user_ends_it_even_when_killed(programs: None, directory: Path, eventually: Eventually) -> None:
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
    eventually(lambda: not of_this(directory, traces(directory)), timeout_s=20, what="nothing left of the cluster")
    Path(f"{directory}.lock").unlink(missing_ok=True)


@pytest.mark.root
def test_down_after_the_keeper_was_killed(programs: None, directory: Path, eventually: Eventually) -> None:
    cluster = start(directory, Shape(nodes=1), leash=False)
    bridge = cluster.network.bridge if cluster.network else "none"
    os.kill(cluster.keeper_pid, signal.SIGKILL)
    os.waitpid(cluster.keeper_pid, 0)
    cluster.down()

    def left() -> list[str]:
        return [line for line in traces(directory) if str(directory) in line or bridge in line]

    eventually(lambda: not left(), timeout_s=10, what="nothing left of the cluster")
