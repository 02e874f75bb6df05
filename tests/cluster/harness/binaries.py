"""Where the cluster's programs are: in KUBEBUILDER_ASSETS, else on PATH, else where `make cluster-binaries` puts them.

Programs from elsewhere are only taken when they fit the pinned ones (see `_fits`): a kubelet of 1.37 does not
work with an API server of 1.33. Looking costs one `--version` for each program found elsewhere.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.cluster.harness.errors import Missing

TOP = Path(__file__).resolve().parents[3]
GO = TOP / "tests" / "cluster" / "go"
BUILT = TOP / ".kube-bin"

CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl")
CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
SCALE = (*CONTROL_PLANE, *CONTROLLERS, "kwok", "kwok-stages.yaml")
NODE = (
    *CONTROL_PLANE,
    *CONTROLLERS,
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "bridge",
    "host-local",
    "loopback",
    "nft",
    "probe",
)
OUR_OWN = ("probe", "kwok", "kwok-stages.yaml")
"""Never taken from PATH: nobody else has them, or they belong together."""
NETWORK_PLUGINS = ("bridge", "host-local", "loopback")
"""On a PATH these are something else (`bridge` is iproute2's): taken from KUBEBUILDER_ASSETS and /opt/cni/bin only."""
SYSTEM = {"ip": "iproute2", "mount": "mount", "nsenter": "util-linux", "unshare": "util-linux"}
"""What a node needs from the system, and the Debian package it is in."""


def pinned(module_directory: str, module: str) -> str:
    """The version of `module` that go.mod of tests/cluster/go/`module_directory` pins, such as v1.37.2."""
    match = re.search(
        rf"^\s*(?:require )?{re.escape(module)} (v\S+)", (GO / module_directory / "go.mod").read_text(), re.MULTILINE
    )
    if match is None:
        raise Missing(f"{GO / module_directory / 'go.mod'} does not name {module}")
    return match[1]


def _kubernetes_minor() -> tuple[int, ...]:
    return _numbers(pinned("kubernetes", "k8s.io/kubernetes"))[:2]


def find(names: Iterable[str]) -> Mapping[str, Path]:
    """Path of each program.

    Raises:
        Missing: some aren't there; one line says which, and what to do.
    """
    names = sorted(names)
    found = {name: path for name in names if (path := locate(name)) is not None}
    if missing := [name for name in names if name not in found]:
        go = "" if shutil.which("go") or Path("/usr/local/go/bin/go").exists() else " (install Go 1.26 or newer first)"
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise Missing(f"left out: {some} of the test cluster not built; `make cluster-binaries` builds them{go}")
    if "kubelet" in names and (absent := {p for tool, p in SYSTEM.items() if shutil.which(tool) is None}):
        raise Missing(f"left out: a node needs the packages {', '.join(sorted(absent))}")
    return found


@functools.cache
def locate(name: str) -> Path | None:
    """Path of one program, or None."""
    return elsewhere(name) or (BUILT / name if (BUILT / name).is_file() else None)


def elsewhere(name: str) -> Path | None:
    """Path of a program that needn't be built because this machine has one that fits, or None."""
    own = name in OUR_OWN or name.endswith(".proto")
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        path = Path(assets).absolute() / name  # nodes and keepers run elsewhere
        if path.is_file() and (own or _fits(name, str(path))):
            return path
    if own:
        return None
    found = shutil.which(name, path="/opt/cni/bin" if name in NETWORK_PLUGINS else None)
    return Path(found).absolute() if found is not None and _fits(name, found) else None


def _fits(name: str, path: str) -> bool:
    if name in NETWORK_PLUGINS:
        return True
    flag = "version" if name == "kubectl" else "-v" if name == "containerd-shim-runc-v2" else "--version"
    arguments = [path, flag, "--client"] if name == "kubectl" else [path, flag]
    try:
        said = subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    version = _numbers(said)
    if name.startswith("kube"):
        return version[:2] == _kubernetes_minor()
    return version >= {"etcd": (3, 5), "runc": (1, 2), "nft": (1, 0, 1)}.get(name, (2, 0))


def _numbers(text: str) -> tuple[int, ...]:
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in match.groups(default="0")) if match else ()
