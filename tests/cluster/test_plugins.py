"""A device plugin and a DRA driver in Python: they register with the real kubelet and pods get their devices."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.harness import Cluster, Shape, start
from tests.cluster.harness.binaries import TOP
from tests.cluster.pods import RUNNING_S, pod, run

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

RESOURCE = "test.kybernate.invalid/slot"
Eventually = Callable[..., Any]
DRIVER = "dra.kybernate.invalid"


@pytest.fixture(scope="module")
def single(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of our own: these tests start its kubelet again."""
    cluster = start(tmp_path_factory.mktemp("k"), Shape(nodes=1), leash=True)
    yield cluster
    cluster.leave()


class Plugin:
    """A plugin's process on the first node, and what it said so far."""

    def __init__(self, cluster: Cluster, log: Path, module: str, *arguments: str) -> None:
        self._log = log
        argv = ["env", f"PYTHONPATH={TOP}", sys.executable, "-m", f"tests.cluster.plugins.{module}", *arguments]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                cluster.node().command(argv), stdin=subprocess.PIPE, stdout=file, stderr=file, text=True, cwd=TOP
            )

    def said(self, event: str) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in events if one["event"] == event]

    def tell(self, **what: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        # nsenter itself waits for the plugin, which is its child.
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.kill()
        self.process.communicate()
        print(self._log.read_text())


def slots(cluster: Cluster) -> tuple[str, str]:
    """Capacity and allocatable devices of the node, as it says."""
    node = json.loads(cluster.kubectl("get", "node", "node1", "-o", "json"))["status"]
    return node["capacity"].get(RESOURCE, "0"), node["allocatable"].get(RESOURCE, "0")


def test_a_device_plugin_gives_pods_their_devices(
    single: Cluster, namespace: Callable[[Cluster], str], tmp_path: Path, eventually: Eventually
) -> None:
    plugin = Plugin(single, tmp_path / "plugin.log", "device_plugin", RESOURCE, "2")
    try:
        eventually(lambda: slots(single) == ("2", "2"), timeout_s=40, what="the node has two slots")
        space = namespace(single)
        wants = {"resources": {"limits": {RESOURCE: "1"}}}
        run(single, space, pod("first", container=wants), pod("second", container=wants))
        given = [
            line
            for name in ("first", "second")
            for line in single.kubectl("exec", "-n", space, name, "--", "/probe", "show", "/proc/1/environ").split("\0")
            if line.startswith("SLOT=")
        ]
        assert sorted(given) == ["SLOT=slot-0", "SLOT=slot-1"]
        assert "slot" in single.kubectl("exec", "-n", space, "first", "--", "/probe", "list", "/dev").split()

        # The third waits until the first is gone.
        single.kubectl("apply", "-n", space, "-f", "-", stdin=json.dumps(pod("third", container=wants)))
        single.kubectl("wait", "-n", space, "--for=condition=PodScheduled=false", "--timeout=20s", "pod/third")
        single.kubectl("delete", "-n", space, "pod", "first")
        single.kubectl("wait", "-n", space, "--for=condition=Ready", f"--timeout={RUNNING_S}s", "pod/third")

        # A sick device can't be had, but still counts.
        sick = "/var/lib/kubelet/device-plugins/slot-0.sick"
        single.node().run("touch", sick)
        eventually(lambda: slots(single) == ("2", "1"), timeout_s=40, what="one slot is sick")
        single.node().run("rm", sick)
        eventually(lambda: slots(single) == ("2", "2"), timeout_s=40, what="no slot is sick")
    finally:
        plugin.end()


def test_a_device_plugin_outlives_its_kubelet(single: Cluster, tmp_path: Path, eventually: Eventually) -> None:
    plugin = Plugin(single, tmp_path / "plugin.log", "device_plugin", RESOURCE, "2")
    try:
        eventually(lambda: len(plugin.said("registered")) == 1, timeout_s=20)
        eventually(lambda: slots(single) == ("2", "2"), timeout_s=40, what="the node has two slots")
        kubelet = (single.node().directory / "kubelet.pid").read_text().strip()
        single.node().run("kill", "-KILL", kubelet)
        eventually(lambda: len(plugin.said("registered")) == 2, timeout_s=40, what="registered again")
        eventually(lambda: slots(single) == ("2", "2"), timeout_s=40, what="the node has two slots again")
    finally:
        plugin.end()


def test_a_dra_driver_gives_pods_their_devices(
    single: Cluster, namespace: Callable[[Cluster], str], tmp_path: Path, eventually: Eventually
) -> None:
    driver = Plugin(single, tmp_path / "driver.log", "dra_driver", DRIVER)
    slices = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": "node1-slots"},
        "spec": {
            "driver": DRIVER,
            "nodeName": "node1",
            "pool": {"name": "node1", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "gpu-0", "attributes": {"memory": {"string": "80Gi"}}}],
        },
    }
    of_driver = [{"cel": {"expression": f'device.driver == "{DRIVER}"'}}]
    kind = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": DRIVER},
        "spec": {"selectors": of_driver},
    }
    claim = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "one"},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": DRIVER}}]}},
    }
    try:
        eventually(lambda: driver.said("registered"), timeout_s=30, what="the driver is registered")
        assert driver.said("registered")[0]["registered"], driver.said("registered")
        space = namespace(single)
        for one in (kind, slices):
            single.kubectl("apply", "-f", "-", stdin=json.dumps(one))
        single.kubectl("apply", "-n", space, "-f", "-", stdin=json.dumps(claim))
        user = pod(
            "user",
            resourceClaims=[{"name": "device", "resourceClaimName": "one"}],
            container={"resources": {"claims": [{"name": "device"}]}},
        )
        single.kubectl("apply", "-n", space, "-f", "-", stdin=json.dumps(user))

        def allocated() -> Any:
            said = json.loads(single.kubectl("get", "-n", space, "resourceclaim", "one", "-o", "json"))
            return "allocation" in said.get("status", {}) and said

        given = eventually(allocated, timeout_s=20, what="the claim is allocated")
        results = given["status"]["allocation"]["devices"]["results"]
        assert [(r["pool"], r["device"]) for r in results] == [("node1", "gpu-0")]
        devices = [{key: r[key] for key in ("request", "pool", "device")} for r in results]
        driver.tell(uid=given["metadata"]["uid"], devices=devices)
        single.kubectl("wait", "-n", space, "--for=condition=Ready", f"--timeout={RUNNING_S}s", "pod/user")
        environment = single.kubectl("exec", "-n", space, "user", "--", "/probe", "show", "/proc/1/environ")
        assert f"CLAIM={given['metadata']['uid']}" in environment.split("\0")
        assert "claimed" in single.kubectl("exec", "-n", space, "user", "--", "/probe", "list", "/dev").split()
        single.kubectl("delete", "-n", space, "pod", "user")
        eventually(lambda: driver.said("unprepare"), timeout_s=30, what="the claim is given back")
    finally:
        driver.end()
