"""`python -m tests.cluster.harness up|down|status|kubectl`: a cluster by hand; the Makefile's cluster words call this."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from tests.cluster.harness import binaries, build, claim
from tests.cluster.harness.cluster import Cluster, Shape, alone, check, end_lost, start
from tests.cluster.harness.errors import ClusterError

DIRECTORY = binaries.TOP / ".cache" / "kube"


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.harness")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster that stays")
    up.add_argument("--nodes", default="1", help="real nodes; 0: control plane only (needs no root)")
    up.add_argument("--kwok", action="store_true", help="with simulated nodes")
    up.add_argument("--build", action="store_true", help="build first what is missing")
    commands.add_parser("down", help="end it")
    commands.add_parser("status", help="what is there and how much memory it takes")
    kubectl = commands.add_parser("kubectl", help="kubectl for this cluster")
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
    for command in (up, *(commands.choices[name] for name in ("down", "status", "kubectl"))):
        command.add_argument("--directory", type=Path, default=DIRECTORY)
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "up":
                shape = Shape(_number(arguments.nodes), arguments.kwok)
                with alone(arguments.directory):
                    _up(arguments.directory, shape, first_build=arguments.build)
            case "down":
                with alone(arguments.directory):
                    _down(arguments.directory)
            case "status":
                _status(arguments.directory)
            case "kubectl":
                cluster = _running(arguments.directory)
                program = str(binaries.find(["kubectl"])["kubectl"])
                os.execv(program, [program, f"--kubeconfig={cluster.kubeconfig}", *arguments.arguments])
    except (ClusterError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ClusterError(f"the number of nodes must be 0 or more, not {text!r}")
    return int(text)


def _up(directory: Path, shape: Shape, *, first_build: bool) -> None:
    old = Cluster.load(directory)
    if old is not None and old.alive:
        raise ClusterError(f"there is one already: export KUBECONFIG={old.kubeconfig}, or `make cluster-down`")
    if old is not None:
        old.down()
    check(directory, shape)  # before ten minutes of building
    if first_build:
        build.build(build.say)
    began = time.monotonic()
    cluster = start(directory, shape, leash=False)
    print(f"ready after {time.monotonic() - began:.1f} s; now:\nexport KUBECONFIG={cluster.kubeconfig}")
    print(f"{binaries.find(['kubectl'])['kubectl']} get {'nodes' if shape.nodes else 'namespaces'}")


def _down(directory: Path) -> None:
    cluster = Cluster.load(directory)
    if cluster is not None:
        cluster.down()
    end_lost(directory)
    if os.geteuid() == 0 and shutil.which("ip"):
        claim.sweep()  # of killed test runs, too


def _status(directory: Path) -> None:
    cluster = _running(directory)
    memory = cluster.memory()
    for name, size in sorted(memory.items()):
        print(f"{name:36}{size / 1e6:8.0f} MB")
    print(f"{'together':36}{sum(memory.values()) / 1e6:8.0f} MB")


def _running(directory: Path) -> Cluster:
    cluster = Cluster.load(directory)
    if cluster is None or not cluster.alive:
        raise ClusterError("no cluster is running: `make cluster-up` starts one")
    return cluster


if __name__ == "__main__":
    sys.exit(main())
