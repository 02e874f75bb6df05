"""`make cluster-soak`: up, a pod on each of two nodes, down, many times; then looks for anything left behind."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from tests.kube.cluster import Shape, start
from tests.kube.cluster.binaries import TOP
from tests.kube.cluster.images import PROBE
from tests.kube.traces import kernel_settings, traces

DIRECTORY = TOP / ".cache" / "kube-soak"


def main() -> int:
    """Returns 0 when no round left anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.kube.soak")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=2)
    arguments = parser.parse_args()
    settings = kernel_settings()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    ready: list[float] = []
    running: list[float] = []
    ended: list[float] = []
    left: list[str] = []
    for number in range(1, arguments.rounds + 1):
        times = _round(arguments.nodes)
        for measured, seconds in zip((ready, running, ended), times, strict=True):
            measured.append(seconds)
        left = traces(DIRECTORY)
        if kernel_settings() != settings:
            left.append(f"kernel settings: {settings} became {kernel_settings()}")
        said = f"ready {times[0]:.1f} s, pods {times[1]:.1f} s later, down {times[2]:.1f} s"
        print(f"round {number}: {said}, left behind: {len(left)}", flush=True)
        if left:
            print("\n".join(left))
            return 1
    now = len(list(Path("/proc/self/fd").iterdir()))
    print(f"medians: ready {_of(ready)}, pods running {_of(running)} later, down {_of(ended)}")
    print(f"{arguments.rounds} rounds left nothing: no process, mount, interface, route, cgroup, file, kernel setting")
    if now > descriptors:
        print(f"but {now - descriptors} descriptors are open here")
        return 1
    return 0


def _round(nodes: int) -> tuple[float, float, float]:
    """Seconds until the cluster is ready, from then until a pod on each node runs, and until it is gone."""
    began = time.monotonic()
    cluster = start(DIRECTORY, Shape(nodes=nodes), leash=True)
    ready = time.monotonic()
    names = [f"node{index}" for index in range(1, nodes + 1)]
    for name in names:
        place = f'{{"spec": {{"nodeSelector": {{"kubernetes.io/hostname": "{name}"}}}}}}'
        cluster.kubectl("run", name, f"--image={PROBE}", f"--overrides={place}")
    cluster.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *(f"pod/{name}" for name in names))
    running = time.monotonic()
    cluster.leave()
    return ready - began, running - ready, time.monotonic() - running


def _of(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


if __name__ == "__main__":
    sys.exit(main())
