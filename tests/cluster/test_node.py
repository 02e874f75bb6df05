"""Real nodes: pods run, their logs and commands work, Services reach them, from one node to the other too."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.cluster.harness import Cluster, Shape, start
from tests.cluster.harness.cgroups import hierarchies
from tests.cluster.pods import RUNNING_S, container, pod, run, service

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
Namespace = Callable[[Cluster], str]
Eventually = Callable[..., Any]


def test_logs_and_commands(cluster: Cluster, namespace: Namespace, eventually: Eventually) -> None:
    space = namespace(cluster)
    run(cluster, space, pod("counting", "count", "0.01"))
    eventually(lambda: cluster.kubectl("logs", "-n", space, "counting").startswith("1\n2\n3\n"))
    assert cluster.kubectl("exec", "-n", space, "counting", "--", "/probe", "echo", "two", "words") == "two words\n"
    assert "probe" in cluster.kubectl("exec", "-n", space, "counting", "--", "/probe", "list", "/")


def test_a_service_is_reached_from_both_nodes_and_the_host(
    cluster: Cluster, namespace: Namespace, eventually: Eventually
) -> None:
    space = namespace(cluster)
    run(cluster, space, pod("web", node="node2"), pod("near", node="node2"), pod("far", node="node1"))
    cluster.kubectl("apply", "-n", space, "-f", "-", stdin=service("web"))
    address = cluster.kubectl("get", "-n", space, "service", "web", "-o", "jsonpath={.spec.clusterIP}")

    def answer() -> str | None:
        try:
            return httpx2.get(f"http://{address}/", timeout=1, trust_env=False).text
        except httpx2.TransportError:
            return None

    assert eventually(answer, timeout_s=20, what="the Service answers the host") == "web\n"
    for name in ("near", "far"):
        assert cluster.kubectl("exec", "-n", space, name, "--", "/probe", "fetch", f"http://{address}/") == "web\n"


def test_pods_reach_the_api(cluster: Cluster, namespace: Namespace) -> None:
    space = namespace(cluster)
    run(cluster, space, pod("client"))
    # Only those who are known may read this path: network, certificate and token have to be right.
    answer = cluster.kubectl("exec", "-n", space, "client", "--", "/probe", "api", "/api")
    assert json.loads(answer)["kind"] == "APIVersions"


def test_a_pod_with_limits_is_in_a_cgroup_of_the_cluster(cluster: Cluster, namespace: Namespace) -> None:
    space = namespace(cluster)
    limits = {"resources": {"limits": {"memory": "64Mi", "cpu": "100m"}}}
    run(cluster, space, pod("small", container=limits))
    assert cluster.network is not None
    inside = container(cluster, space, "small")
    lines = inside.node.run("cat", f"/proc/{inside.pid}/cgroup").splitlines()
    controllers = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    path = controllers.get("memory") or controllers[""]
    assert path.startswith(f"/{cluster.network.bridge}/{inside.node.name}/")
    files = [root / path[1:] / name for root in hierarchies() for name in ("memory.limit_in_bytes", "memory.max")]
    assert {file.read_text().strip() for file in files if file.exists()} == {str(64 << 20)}


@pytest.fixture
def overlay(directory: Path) -> Iterator[Path]:
    """A directory on overlayfs, as in most containers."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", directory], check=True)
    try:
        lower, upper, work, merged = (directory / name for name in ("l", "u", "w", "m"))
        for part in (lower, upper, work, merged):
            part.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
        try:
            yield merged
        finally:
            subprocess.run(["umount", merged], check=True)
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_cluster_on_an_overlay_runs_pods(programs: None, overlay: Path) -> None:
    cluster = start(overlay / "c", Shape(nodes=1), leash=True)
    try:
        run(cluster, "default", pod("plain"))
        assert cluster.kubectl("exec", "plain", "--", "/probe", "echo", "here") == "here\n"
    finally:
        cluster.leave()


def test_the_default_seccomp_profile_works(cluster: Cluster, namespace: Namespace) -> None:
    space = namespace(cluster)
    run(cluster, space, pod("strict", securityContext={"seccompProfile": {"type": "RuntimeDefault"}}))
    status = cluster.kubectl("exec", "-n", space, "strict", "--", "/probe", "show", "/proc/1/status")
    assert "Seccomp:\t2" in status


def test_a_pod_can_move_to_the_other_node(cluster: Cluster, namespace: Namespace) -> None:
    space = namespace(cluster)
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "mover"},
        "spec": {
            "selector": {"matchLabels": {"app": "mover"}},
            "template": {
                "metadata": {"labels": {"app": "mover"}},
                "spec": {**pod("mover")["spec"], "nodeSelector": {"kubernetes.io/hostname": "node1"}},
            },
        },
    }
    for target in ("node1", "node2"):
        deployment["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": target}  # type: ignore[index]
        cluster.kubectl("apply", "-n", space, "-f", "-", stdin=json.dumps(deployment))
        cluster.kubectl("rollout", "status", "-n", space, "deployment/mover", f"--timeout={RUNNING_S}s")
        where = cluster.kubectl(
            "get", "-n", space, "pods", "-l", "app=mover", "-o", "jsonpath={.items[*].spec.nodeName}"
        )
        assert target in where.split()
