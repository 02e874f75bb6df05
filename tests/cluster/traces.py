"""What test clusters may leave on a machine: processes, mounts, interfaces, network namespaces, cgroups, kernel settings."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.cluster.harness import Cluster, cgroups, claim
from tests.cluster.harness.node import KERNEL_SETTINGS


def traces(cluster: Cluster) -> list[str]:
    """Everything on this machine that belongs to the cluster, running or not; one line each. Others may run beside it."""
    directory = str(cluster.directory)
    found = [f"file {directory}"] if cluster.directory.exists() else []
    found += _processes(directory)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line.split()[4]}" for line in mounts if directory in line]
    if cluster.network is None or claim.is_others(cluster.network, cluster.keeper):
        return found
    mark = cluster.network.bridge
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    found += [f"interface {link['ifname']}" for link in links if link["ifname"].startswith(mark)]
    routes = json.loads(subprocess.run(["ip", "-j", "route"], capture_output=True, check=True).stdout or b"[]")
    found += [f"route {route['dst']}" for route in routes if route.get("dev") == mark]
    found += [
        f"cgroup {path}" for root in cgroups.hierarchies() for path, _, _ in os.walk(root) if Path(path).name == mark
    ]
    return found


def kernel_settings() -> dict[str, str]:
    """The settings a kubelet changes for the whole machine, as they are now."""
    paths = {key: Path("/proc/sys") / key for key in KERNEL_SETTINGS}
    return {key: path.read_text().strip() for key, path in paths.items() if path.exists()}


def _processes(directory: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has just ended
        if any(directory in word for word in words):
            found.append(f"process {process.name}: {' '.join(words)[:120]}")
    return found
