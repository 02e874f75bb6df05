"""Pods and Services for tests, and ways into a pod's container from its node."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.cluster.harness import Cluster
from tests.cluster.harness.images import PROBE
from tests.cluster.harness.node import Node

RUNNING_S = 40
"""Generous: the machine may be busy with other tests. On two idle cores a pod runs after 1 s."""
NAMESPACES = ("-m", "-n", "-p", "-i", "-u")
JOIN = """
while IFS=: read -r _ names path; do
  case $names in
    "") root=/sys/fs/cgroup; [ -d $root/unified ] && root=$root/unified ;;
    name=*) root=/sys/fs/cgroup/${names#name=} ;;
    *) root=/sys/fs/cgroup/$names ;;
  esac
  echo $$ > $root$path/cgroup.procs
done < /proc/$0/cgroup
exec nsenter -t $0 "$@"
"""
"""Joins the cgroups of process $0 first, then its namespaces: what is started there shall count there."""


def pod(name: str, *arguments: str, node: str | None = None, **more: Any) -> dict[str, Any]:
    """A pod of the probe image; `more` goes into its specification."""
    container: dict[str, Any] = {"name": "main", "image": PROBE, **more.pop("container", {})}
    if arguments:
        container["args"] = list(arguments)
    selector = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container], **selector, **more},
    }


def run(cluster: Cluster, space: str, *pods: dict[str, Any]) -> None:
    """Make the pods and wait until they are ready."""
    for one in pods:
        cluster.kubectl("apply", "-n", space, "-f", "-", stdin=json.dumps(one))
    names = [f"pod/{one['metadata']['name']}" for one in pods]
    cluster.kubectl("wait", "-n", space, "--for=condition=Ready", f"--timeout={RUNNING_S}s", *names)


def service(name: str, **more: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}], **more},
        }
    )


@dataclass(frozen=True, slots=True)
class Container:
    """The running container of a pod, as its node sees it."""

    node: Node
    pid: int
    """Its first process, in the node's numbers."""

    def run(self, *argv: str) -> str:
        """Run a program of the container in its namespaces and cgroups, with the node's privileges; what it prints.

        Raises:
            ClusterError: it failed.
        """
        return self.node.run("sh", "-c", JOIN, str(self.pid), *NAMESPACES, *argv)

    def cgroup(self, pid: int, controller: str = "memory") -> str:
        """The cgroup of a process, given in the container's numbers."""
        seen = self.node.run("nsenter", "-t", str(self.pid), "-m", "-p", "/probe", "show", f"/proc/{pid}/cgroup")
        lines = dict(line.split(":", 2)[1:] for line in seen.splitlines())
        return str(lines.get(controller, lines.get("", "")))


def container(cluster: Cluster, space: str, name: str) -> Container:
    """The first container of a running pod."""
    seen = json.loads(cluster.kubectl("get", "-n", space, "pod", name, "-o", "json"))
    node = cluster.node(int(seen["spec"]["nodeName"].removeprefix("node")))
    identity = seen["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    pid = node.run("cat", f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{identity}/init.pid")
    return Container(node, int(pid))


def address(cluster: Cluster, space: str, name: str) -> str:
    """The IP address of a pod."""
    return cluster.kubectl("get", "-n", space, "pod", name, "-o", "jsonpath={.status.podIP}")
