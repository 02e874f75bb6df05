"""etcd and an API server, as most tests use them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from tests.cluster.harness import Cluster, Shape, binaries, start

pytestmark = pytest.mark.timeout(180)
Namespace = Callable[[Cluster], str]

WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.test.kybernate.invalid"},
    "spec": {
        "group": "test.kybernate.invalid",
        "names": {"kind": "Widget", "plural": "widgets", "singular": "widget"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"size": {"type": "integer"}},
                                "x-kubernetes-validations": [{"rule": "self.size > 0", "message": "too small"}],
                            }
                        },
                    }
                },
            }
        ],
    },
}


def test_is_ready_within_15_seconds(control_plane_programs: None, directory: Path) -> None:
    began = time.monotonic()
    cluster = start(directory, Shape(), leash=True)
    took = time.monotonic() - began
    try:
        assert cluster.kubectl("get", "--raw", "/readyz") == "ok"
        worked = sum(cluster.cpu_seconds().values())
    finally:
        cluster.leave()
    assert not cluster.directory.exists()
    # Other work on the machine may delay it; then what counts is how long it kept a processor busy.
    assert min(took, worked) < 15, f"ready after {took:.1f} s, {worked:.1f} s of processor time"


def test_serves_the_pinned_version(control_plane: Cluster) -> None:
    minor = ".".join(binaries.pinned("kubernetes", "k8s.io/kubernetes").split(".")[:2])
    with control_plane.client() as client:
        assert client.get("/version").json()["gitVersion"].startswith(f"{minor}.")


def test_resources_of_our_own_are_validated(
    control_plane: Cluster, namespace: Namespace, eventually: Callable[..., object]
) -> None:
    space = namespace(control_plane)
    with control_plane.client() as client:
        made = client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=WIDGETS)
        assert made.status_code in (201, 409), made.text
        widgets = f"/apis/test.kybernate.invalid/v1/namespaces/{space}/widgets"
        eventually(lambda: client.get(widgets).status_code == 200, timeout_s=15)

        def post(size: int) -> tuple[int, str]:
            widget = {
                "apiVersion": "test.kybernate.invalid/v1",
                "kind": "Widget",
                "metadata": {"generateName": "w-"},
                "spec": {"size": size},
            }
            answer = client.post(widgets, json=widget)
            return answer.status_code, answer.text

        assert post(1)[0] == 201
        status, text = post(0)
        assert status == 422
        assert "too small" in text


def test_pods_can_be_made(control_plane: Cluster, namespace: Namespace) -> None:
    space = namespace(control_plane)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "none"}]},
    }
    with control_plane.client() as client:
        made = client.post(f"/api/v1/namespaces/{space}/pods", json=pod)
        assert made.status_code == 201, made.text
        assert made.json()["status"]["phase"] == "Pending"


def test_nobody_else_gets_its_port(control_plane: Cluster) -> None:
    port = httpx2.URL(control_plane.url).port
    assert port is not None
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


def test_strangers_are_refused(control_plane: Cluster) -> None:
    with control_plane.client() as client:
        headers = {"Impersonate-User": "nobody"}
        assert client.get("/api/v1/namespaces", headers=headers).status_code == 403
