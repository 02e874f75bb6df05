"""Builds the cluster's programs into .kube-bin from the Go modules pinned in tests/cluster/go.

What this machine already has (see binaries.py) isn't built. Each program is built only when its module's go.mod or go.sum or
its sources changed since. `nft` and the library runc needs come from Debian's packages, unpacked beside the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.harness import binaries
from tests.cluster.harness.errors import ClusterError

DEBIAN = binaries.BUILT / "debian"
DEBIAN_SCRIPT = binaries.TOP / "tests" / "cluster" / "debian.sh"


@dataclass(frozen=True, slots=True)
class Program:
    """One program: the directory of its module under tests/cluster/go and what `go build` needs to know."""

    name: str
    module: str
    package: str
    stamp: Sequence[str] = ()
    """Linker flags that tell it its version."""
    tags: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def programs() -> list[Program]:
    """All of them, in the order of their use; kubectl last of the first seven, since it shares most with them."""
    kubernetes = binaries.pinned("kubernetes", "k8s.io/kubernetes")
    major, minor = kubernetes.removeprefix("v").split(".")[:2]
    version = "k8s.io/component-base/version"
    stamp = [
        f"-X {version}.gitVersion={kubernetes}",
        f"-X {version}.gitMajor={major}",
        f"-X {version}.gitMinor={minor}",
        f"-X {version}.gitTreeState=clean",
    ]
    containerd = "github.com/containerd/containerd/v2"
    containerd_stamp = [f"-X {containerd}/version.Version={binaries.pinned('containerd', containerd)}"]
    runc = "github.com/opencontainers/runc"
    cni = "github.com/containernetworking/plugins/plugins"
    seccomp = DEBIAN / "pkg-config"
    return [
        Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
        *(
            Program(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", stamp)
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
                "kubectl",
            )
        ),
        *(
            Program(name, "containerd", f"{containerd}/cmd/{name}", containerd_stamp)
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        ),
        Program(
            "runc",
            "runc",
            runc,
            [f"-X main.version={binaries.pinned('runc', runc).removeprefix('v')}"],
            ["seccomp"] if seccomp.exists() else [],
            {"CGO_ENABLED": "1", "PKG_CONFIG": str(seccomp)} if seccomp.exists() else {"CGO_ENABLED": "1"},
        ),
        Program("bridge", "cni", f"{cni}/main/bridge"),
        Program("loopback", "cni", f"{cni}/main/loopback"),
        Program("host-local", "cni", f"{cni}/ipam/host-local"),
        Program("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok"),
        Program("probe", "probe", "."),
    ]


@dataclass(frozen=True, slots=True)
class Text:
    """A text file of .kube-bin, put together from files of a pinned module."""

    name: str
    module_directory: str
    module: str
    sources: Sequence[str]


def texts() -> list[Text]:
    """What comes from the modules' sources as it is: KWOK's stages, and the kubelet's gRPC interfaces for plugins."""
    stages = ("node/fast/node-initialize", "pod/fast/pod-ready", "pod/fast/pod-complete", "pod/fast/pod-delete")
    interfaces = {
        "deviceplugin": "deviceplugin/v1beta1",
        "dra": "dra/v1",
        "pluginregistration": "pluginregistration/v1",
        "podresources": "podresources/v1",
    }
    return [
        Text("kwok-stages.yaml", "kwok", "sigs.k8s.io/kwok", [f"kustomize/stage/{stage}.yaml" for stage in stages]),
        *(
            Text(f"{name}.proto", "kubernetes", "k8s.io/kubelet", [f"pkg/apis/{path}/api.proto"])
            for name, path in interfaces.items()
        ),
    ]


def build(say: Callable[[str], None]) -> None:
    """Build what is missing or changed. From nothing this takes some ten minutes on two cores and 1.5 GB of downloads.

    Raises:
        ClusterError: no Go here, or a build failed.
    """
    binaries.BUILT.mkdir(exist_ok=True)
    with (binaries.BUILT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if any(binaries.locate(program.name) is None for program in programs()):
            _go()  # before anything is downloaded
        fetch_debian(say)
        wanted = [program for program in programs() if binaries.elsewhere(program.name) is None]
        stale = [program for program in wanted if not _is_fresh(program)]
        if stale:
            say(
                f"building {len(stale)} programs; all of them from nothing: ten minutes on two cores, 7 GB of Go's caches"
            )
        for program in stale:
            _build_one(_go(), program, say)
        for text in texts():
            if binaries.elsewhere(text.name) is None and not _is_fresh(text):
                _copy(_go(), text)


def fetch_debian(say: Callable[[str], None]) -> None:
    """Unpack Debian's `nft` and libseccomp into .kube-bin if needed; without them no nodes, and runc without seccomp."""
    seccomp = (DEBIAN / "pkg-config").exists() or binaries.elsewhere("runc") is not None
    if seccomp and binaries.locate("nft") is not None:
        return
    subprocess.run([DEBIAN_SCRIPT, binaries.BUILT], check=False)
    binaries.locate.cache_clear()
    if binaries.locate("nft") is None:
        say(
            "nft is neither here nor to be had from a Debian mirror: install the package nftables for clusters with nodes"
        )


def _is_fresh(program: Program | Text) -> bool:
    stamp = binaries.BUILT / ".stamps" / program.name
    return (binaries.BUILT / program.name).exists() and stamp.exists() and stamp.read_text() == _fingerprint(program)


def _fingerprint(program: Program | Text) -> str:
    if isinstance(program, Text):
        directory, what = program.module_directory, [program.module, program.sources]
    else:
        directory, what = program.module, [program.package, program.stamp, program.tags]
    digest = hashlib.sha256(json.dumps(what).encode())
    for path in sorted((binaries.GO / directory).iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def be_patient() -> None:
    """In the child: leave the machine to others."""
    os.nice(10)


def _go() -> str:
    path = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if path is None:
        raise ClusterError("no Go toolchain: install Go 1.26 or newer (go.dev/dl, or /usr/local/go) and call again")
    return path


def _build_one(go: str, program: Program, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    target = binaries.BUILT / program.name
    argv = [go, "build", "-trimpath", "-ldflags", " ".join(["-s", "-w", *program.stamp]), "-o", f"{target}.new"]
    if program.tags:
        argv += ["-tags", ",".join(program.tags)]
    environment = {"CGO_ENABLED": "0", **os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    environment |= {"CGO_ENABLED": "0", **program.environment}
    done = subprocess.run(
        [*argv, program.package],
        cwd=binaries.GO / program.module,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=be_patient,
    )
    if done.returncode:
        raise ClusterError(f"{program.name} could not be built:\n{done.stderr[-2000:]}")
    Path(f"{target}.new").replace(target)
    _remember(program)
    size = target.stat().st_size / 1e6
    say(f"built {program.name}: {size:.0f} MB, {time.monotonic() - started:.0f} s")


def _copy(go: str, text: Text) -> None:
    """`text` from the module cache; the module is downloaded where only the programs built from it were needed so far."""
    place = binaries.GO / text.module_directory
    subprocess.run([go, "mod", "download", text.module], cwd=place, check=True)
    listed = subprocess.run(
        [go, "list", "-m", "-f", "{{.Dir}}", text.module], cwd=place, capture_output=True, text=True, check=True
    )
    parts = [(Path(listed.stdout.strip()) / source).read_text() for source in text.sources]
    (binaries.BUILT / text.name).write_text("---\n".join(parts))
    _remember(text)


def _remember(program: Program | Text) -> None:
    stamps = binaries.BUILT / ".stamps"
    stamps.mkdir(exist_ok=True)
    (stamps / program.name).write_text(_fingerprint(program))


def say(line: str) -> None:
    """Tell whoever called us."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Build all; the exit status tells whether that worked."""
    started = time.monotonic()
    try:
        build(say)
    except ClusterError as e:
        say(f"error: {e}")
        return 1
    say(f"the cluster's programs are in {binaries.BUILT} ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
