"""CRIU in pods: a process below a container's first one is dumped and restored while the pod runs on.

docs/kubernetes-notes.md tells what doesn't work and why.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.cluster.harness import Cluster, ClusterError
from tests.cluster.harness.binaries import TOP
from tests.cluster.pods import Container, address, container, pod, run

from kybernate.model.errors import Unsupported
from kybernate.process.criu import find_criu

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
Namespace = Callable[[Cluster], str]
Eventually = Callable[..., Any]

INSIDE = ("/criu/lib/ld.so", "--library-path", "/criu/lib", "/criu/lib/criu")
"""The CRIU of `make setup` with its own libraries: a container of one static program has none."""
FIRST_PID = 10_000
OPTIONS = ("-D", "/images", "-v4", "--manage-cgroups=ignore")


@pytest.fixture
def unpacked() -> Path:
    """The directory of a CRIU that can be mounted into a container."""
    try:
        find_criu()
    except Unsupported as e:
        pytest.skip(f"left out: {e}")
    directory = TOP / ".criu"
    if not (directory / "lib" / "ld.so").exists():
        pytest.skip("left out: needs a CRIU with its libraries in .criu (scripts/criu.sh --always)")
    return directory


def supervised(name: str, criu: Path, *words: str, node: str) -> dict[str, Any]:
    """A pod whose first process only supervises; CRIU is at /criu, room for images at /images."""
    mounts = [{"name": "criu", "mountPath": "/criu", "readOnly": True}, {"name": "images", "mountPath": "/images"}]
    volumes = [{"name": "criu", "hostPath": {"path": str(criu)}}, {"name": "images", "emptyDir": {}}]
    arguments = ("supervise", "/images/log", *words) if words else ("pause",)
    return pod(name, *arguments, node=node, container={"volumeMounts": mounts}, volumes=volumes)


def count(where: str) -> int | None:
    """What the program in the pod counts, or None when it doesn't answer."""
    try:
        return int(httpx2.get(f"http://{where}:8080/count", timeout=2, trust_env=False).text)
    except httpx2.TransportError:
        return None


def criu(inside: Container, action: str, *arguments: str) -> None:
    """Run CRIU in the container; a failure shows what its log says of it."""
    try:
        inside.run(*INSIDE, action, *arguments, *OPTIONS, "-o", f"{action}.log")
    except ClusterError:
        log = (images(inside) / f"{action}.log").read_text().splitlines()
        pytest.fail("\n".join([line for line in log if "Error" in line] + log[-10:]), pytrace=False)


def begin(inside: Container) -> None:
    """Let the supervisor start its program, with a number no thread of a first process elsewhere has."""
    last = f"echo {FIRST_PID - 1} > /proc/sys/kernel/ns_last_pid"
    inside.node.run("nsenter", "-t", str(inside.pid), "-p", "sh", "-c", last)
    (images(inside) / "log").touch()


def workload(inside: Container) -> int:
    """The number, inside, of the process below the first one."""
    threads = inside.run("/probe", "list", "/proc/1/task").split()  # any of them may have made it
    children = [inside.run("/probe", "show", f"/proc/1/task/{thread}/children").split() for thread in threads]
    (only,) = {int(child) for some in children for child in some}
    return only


def test_a_process_is_dumped_and_restored_in_its_pod(
    cluster: Cluster, namespace: Namespace, unpacked: Path, eventually: Eventually
) -> None:
    space = namespace(cluster)
    run(cluster, space, supervised("counter", unpacked, "serve", node="node1"))
    inside, where = container(cluster, space, "counter"), address(cluster, space, "counter")
    begin(inside)
    eventually(lambda: count(where) == 1)
    assert count(where) == 2
    pid = workload(inside)
    criu(inside, "dump", "-t", str(pid))
    assert count(where) is None
    criu(inside, "restore", "-d")
    assert count(where) == 3
    assert workload(inside) == pid >= FIRST_PID
    assert inside.cgroup(pid) == inside.cgroup(1)
    restarts = "jsonpath={.status.containerStatuses[0].restartCount}"
    assert cluster.kubectl("get", "-n", space, "pod", "counter", "-o", restarts) == "0"


def test_the_kubelet_checkpoints_a_container(cluster: Cluster, namespace: Namespace, unpacked: Path) -> None:
    space = namespace(cluster)
    run(cluster, space, pod("plain", node="node1"))
    assert count(address(cluster, space, "plain")) == 1
    with cluster.client() as client:
        answer = client.post(f"https://{cluster.node(1).address}:10250/checkpoint/{space}/plain/main", timeout=60)
    assert answer.status_code == 200, answer.text
    archive = cluster.node(1).directory / "kubelet" / "checkpoints" / Path(answer.json()["items"][0]).name
    assert archive.stat().st_size > 0
    assert count(address(cluster, space, "plain")) == 2


def test_a_process_moves_to_a_pod_on_the_other_node(
    cluster: Cluster, namespace: Namespace, unpacked: Path, eventually: Eventually
) -> None:
    space = namespace(cluster)
    run(
        cluster,
        space,
        supervised("origin", unpacked, "serve", node="node1"),
        supervised("target", unpacked, node="node2"),
    )
    origin, target = container(cluster, space, "origin"), container(cluster, space, "target")
    begin(origin)
    eventually(lambda: count(address(cluster, space, "origin")) == 1)
    criu(origin, "dump", "-t", str(workload(origin)))
    for image in images(origin).iterdir():
        shutil.copy(image, images(target))
    criu(target, "restore", "-d")
    assert count(address(cluster, space, "target")) == 2


def images(of: Container) -> Path:
    """The container's /images, from the host."""
    return Path(f"/proc/{of.node.pid}/root/proc/{of.pid}/root/images")
