"""`make cluster-soak`: up, a pod on each of two nodes, down, many times; then looks for anything left behind."""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.harness import Cluster, Shape, processes, start
from tests.cluster.harness.binaries import TOP
from tests.cluster.harness.images import PROBE
from tests.cluster.traces import kernel_settings, traces

DIRECTORY = TOP / ".cache" / "kube-soak"


def main() -> int:
    """Returns 0 when no round left anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.soak")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=2)
    arguments = parser.parse_args()
    settings = kernel_settings()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    rounds: list[Round] = []
    for number in range(1, arguments.rounds + 1):
        one = _round(arguments.nodes)
        rounds.append(one)
        left = one.left
        if kernel_settings() != settings:
            left.append(f"kernel settings: {settings} became {kernel_settings()}")
        said = f"ready {one.ready_s:.1f} s, pods {one.running_s:.1f} s later, down {one.down_s:.1f} s"
        print(f"round {number}: {said}, {one.namespaces} namespaces; left behind: {len(left)}", flush=True)
        if left:
            print("\n".join(left))
            return 1
    now = len(list(Path("/proc/self/fd").iterdir()))
    ready, running, ended = (_of([getattr(one, name) for one in rounds]) for name in ("ready_s", "running_s", "down_s"))
    print(f"medians: ready {ready}, pods running {running} later, down {ended}")
    print(
        f"{arguments.rounds} rounds left nothing: process, namespace, mount, interface, route, cgroup, file, kernel setting"
    )
    if now > descriptors:
        print(f"but {now - descriptors} descriptors are open here")
        return 1
    return 0


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds until the cluster was ready, from then until a pod on each node ran, and until it was gone."""

    ready_s: float
    running_s: float
    down_s: float
    left: list[str]
    namespaces: int
    """How many there were."""


def _round(nodes: int) -> Round:
    began = time.monotonic()
    cluster = start(DIRECTORY, Shape(nodes=nodes), leash=True)
    ready = time.monotonic()
    names = [f"node{index}" for index in range(1, nodes + 1)]
    for name in names:
        place = f'{{"spec": {{"nodeSelector": {{"kubernetes.io/hostname": "{name}"}}}}}}'
        cluster.kubectl("run", name, f"--image={PROBE}", f"--overrides={place}")
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *(f"pod/{name}" for name in names))
    running = time.monotonic()
    made = set().union(*(processes.namespaces(pid) for pid in _members(cluster))) - processes.namespaces(os.getpid())
    asked = time.monotonic()
    since = processes.now()
    cluster.leave()
    ended = time.monotonic()
    left = traces(cluster) + [f"namespace {name}" for name in processes.in_use(made, since=since)]
    return Round(ready - began, running - ready, ended - asked, left, len(made))


def _members(cluster: Cluster) -> list[int]:
    """All processes of all nodes, those in pods too: they have our cgroup in their name."""
    assert cluster.network is not None
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if cluster.network.bridge in (process / "cgroup").read_text():
                found.append(int(process.name))
    return [*found, *(cluster.node(index).pid for index in range(1, cluster.shape.nodes + 1))]


def _of(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


if __name__ == "__main__":
    sys.exit(main())
