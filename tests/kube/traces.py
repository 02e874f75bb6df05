"""What test clusters may leave on a machine: processes, mounts, interfaces, network namespaces, cgroups, kernel settings."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.kube.cluster import binaries, cgroups
from tests.kube.cluster.node import KERNEL_SETTINGS

MARK = "kybkube"
"""In the name of every bridge, cable and cgroup of ours."""


def traces(directory: Path) -> list[str]:
    """Everything on this machine that belongs to a cluster in `directory`, or to no cluster we know; one line each."""
    found = [f"file {directory}"] if directory.exists() else []
    found += _processes(directory)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line.split()[4]}" for line in mounts if str(directory) in line or MARK in line]
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
    found += [f"interface {link['ifname']}" for link in links if MARK in link["ifname"]]
    routes = json.loads(subprocess.run(["ip", "-j", "route"], capture_output=True, check=True).stdout or b"[]")
    found += [f"route {route['dst']}" for route in routes if MARK in route.get("dev", "")]
    found += [f"cgroup {path}" for root in cgroups.hierarchies() for path in root.glob(f"{MARK}*")]
    return found


def kernel_settings() -> dict[str, str]:
    """The settings a kubelet changes for the whole machine, as they are now."""
    paths = {key: Path("/proc/sys") / key for key in KERNEL_SETTINGS}
    return {key: path.read_text().strip() for key, path in paths.items() if path.exists()}


def _processes(directory: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            executable = str((process / "exe").readlink())
        except OSError:
            continue  # a kernel thread, or it has just ended
        ours = any(str(directory) in word for word in words) or executable.startswith(str(binaries.BUILT))
        if ours or executable == "/probe":
            found.append(f"process {process.name}: {' '.join(words)[:120]}")
    return found
