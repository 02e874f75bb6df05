"""`make cluster-scale`: many simulated nodes and pods (KWOK) on a real control plane; how long, and how much memory.

Pods are made by the controller manager (one ReplicaSet for each 500) and placed by the scheduler: only the kubelets are simulated.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from tests.cluster.harness import Cluster, Shape, start

PODS_EACH = 500
AT_ONCE = 16
"""Requests in flight."""
PATIENCE_S = 1800.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds until all simulated nodes were Ready, from then until all pods ran, one list of all pods; bytes and
    seconds of processor time by program."""

    nodes_s: float
    pods_s: float
    list_s: float
    memory: dict[str, int]
    cpu_s: dict[str, float]


async def fill(cluster: Cluster, *, nodes: int, pods: int) -> Measured:
    """Make the nodes and the pods, and wait until all are there.

    Raises:
        TimeoutError: they weren't within half an hour.
    """
    context = ssl.create_default_context(cafile=str(cluster.directory / "pki" / "ca.crt"))
    context.load_cert_chain(cluster.directory / "pki" / "admin.crt", cluster.directory / "pki" / "admin.key")
    async with (
        asyncio.timeout(PATIENCE_S),
        httpx2.AsyncClient(base_url=cluster.url, verify=context, timeout=120) as api,
    ):
        began = time.monotonic()
        await _make(api, "/api/v1/nodes", [_node(number) for number in range(nodes)])
        await _until(lambda: _count(api, "/api/v1/nodes", _is_ready), nodes)
        there = time.monotonic()
        sets = [_replica_set(number, min(PODS_EACH, pods - number)) for number in range(0, pods, PODS_EACH)]
        await _make(api, "/apis/apps/v1/namespaces/default/replicasets", sets)
        await _until(lambda: _running(api), pods)
        running = time.monotonic()
        everything = await api.get("/api/v1/pods")
        listed = time.monotonic()
        assert len(everything.json()["items"]) == pods
    return Measured(there - began, running - there, listed - running, cluster.memory(), cluster.cpu_seconds())


async def _make(api: httpx2.AsyncClient, path: str, objects: list[dict[str, Any]]) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def post(one: dict[str, Any]) -> None:
        async with limit:
            (await api.post(path, json=one)).raise_for_status()

    async with asyncio.TaskGroup() as group:
        for one in objects:
            group.create_task(post(one))


async def _until(count: Callable[[], Awaitable[int]], wanted: int) -> None:
    while await count() < wanted:  # noqa: ASYNC110 - it is another process's work we wait for
        await asyncio.sleep(0.5)


async def _count(api: httpx2.AsyncClient, path: str, counts: Callable[[dict[str, Any]], bool]) -> int:
    items = (await api.get(path, params={"resourceVersion": "0"})).json()["items"]
    return sum(map(counts, items))


async def _running(api: httpx2.AsyncClient) -> int:
    """By the ReplicaSets' own count: a list of 10,000 pods each time would be most of the load."""
    items = (await api.get("/apis/apps/v1/namespaces/default/replicasets")).json()["items"]
    return sum(item["status"].get("readyReplicas", 0) for item in items)


def _is_ready(node: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))


def _node(number: int) -> dict[str, Any]:
    room = {"cpu": "32", "memory": "256Gi", "pods": "110"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": f"simulated-{number:04}",
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"type": "kwok", "kubernetes.io/hostname": f"simulated-{number:04}"},
        },
        "status": {"allocatable": room, "capacity": room},
    }


def _replica_set(number: int, replicas: int) -> dict[str, Any]:
    labels = {"set": f"s{number}"}
    container = {"name": "c", "image": "none", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": f"s{number}"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"nodeSelector": {"type": "kwok"}, "containers": [container]},
            },
        },
    }


def main() -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.scale")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=10000)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="kyb-kube-scale-"))
    cluster = start(directory, Shape(kwok=True), leash=True)
    try:
        empty = sum(cluster.memory().values())
        measured = asyncio.run(fill(cluster, nodes=arguments.nodes, pods=arguments.pods))
    finally:
        cluster.leave()
    print(f"{arguments.nodes} simulated nodes Ready after {measured.nodes_s:.1f} s")
    print(
        f"{arguments.pods} pods running {measured.pods_s:.1f} s later ({arguments.pods / measured.pods_s:.0f} pods/s)"
    )
    print(f"one list of all pods: {measured.list_s:.1f} s")
    for name, size in sorted(measured.memory.items()):
        print(f"{name:28}{size / 1e6:8.0f} MB {measured.cpu_s[name]:8.0f} s of processor time")
    print(f"{'together':28}{sum(measured.memory.values()) / 1e6:8.0f} MB (before: {empty / 1e6:.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
