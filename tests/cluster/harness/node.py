"""One node: containerd, kubelet and kube-proxy in namespaces of their own (pid, mount, network, host name).

Whatever happens in there ends with the first process of its pid namespace: pods, mounts, interfaces, packet filter rules. Paths are
the usual ones (/var/lib/kubelet, /run/containerd, /etc/cni ...), since /etc, /opt, /var and /run are the node's own
layers over the host's, so manifests with host paths work as on any node. Kernel settings a kubelet would change are
hidden from it behind plain files.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.cluster.harness import binaries, images, keeper
from tests.cluster.harness.control_plane import ControlPlane
from tests.cluster.harness.errors import ClusterError
from tests.cluster.harness.network import Network

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What a kubelet sets for the whole machine."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node, as seen from the host."""

    name: str
    pid: int
    """Its first process, in the host's numbers."""
    address: str
    directory: Path

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on the node."""
        inside = ["env", f"PATH={self.directory / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin", *argv]
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-u", *inside]

    def run(self, *argv: str) -> str:
        """What `argv` prints when run on the node.

        Raises:
            ClusterError: it failed; with what it said.
        """
        done = subprocess.run(self.command(argv), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"`{shlex.join(argv)}` on {self.name} failed: {done.stderr.strip()}")
        return done.stdout


def prepare(
    index: int, count: int, *, control_plane: ControlPlane, network: Network, cgroup: str, found: Mapping[str, Path]
) -> dict[str, Any]:
    """Write everything node `index` of `count` needs; returns its entry for the cluster's keeper."""
    name = f"node{index}"
    directory = control_plane.directory / name
    for part in ("bin", "containerd", "kubelet", "logs"):
        (directory / part).mkdir(parents=True)
    for program, path in found.items():
        (directory / "bin" / program).symlink_to(path)
    if criu := shutil.which("criu", path=f"{binaries.TOP / '.criu' / 'bin'}:{os.environ.get('PATH', '')}"):
        (directory / "bin" / "criu").symlink_to(criu)  # for runc, which the kubelet's checkpoint call ends at
    snapshotter = "native" if _file_system(directory) == "overlay" else "overlayfs"
    _containerd(directory, snapshotter)
    _cni(directory, network.pods(index))
    _kubelet(directory, name, address=network.node(index), control_plane=control_plane, cgroup=f"/{cgroup}/{name}")
    _kube_proxy(directory, name, network=network, control_plane=control_plane)
    images.write(
        directory / "pause.tar", name=images.PAUSE, program=found["probe"], entrypoint=["/probe"], command=["pause"]
    )
    images.write(
        directory / "probe.tar", name=images.PROBE, program=found["probe"], entrypoint=["/probe"], command=["serve"]
    )
    script = directory / "prepare.sh"
    script.write_text(_preparation(directory))
    specification = directory / "keeper.json"
    eth0 = "/proc/sys/net/ipv4/conf/eth0"
    specification.write_text(
        json.dumps(
            {
                "directory": str(directory),
                "setup": [
                    {"argv": ["hostname", name]},
                    {"argv": ["sh", str(script)]},
                    {"argv": ["touch", str(directory / "prepared")]},
                    *({"argv": argv, "after": [eth0]} for argv in network.inside(index, count)),
                ],
                "programs": _programs(directory, name, network.node(index), snapshotter, control_plane),
            }
        )
    )
    inner = [sys.executable, "-I", str(keeper.__file__), str(specification)]
    return {
        "name": name,
        "argv": [
            *["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"],
            *["env", f"PATH={directory / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin", *inner],
        ],
        "log": str(directory / "keeper.log"),
        "namespace": True,
    }


def _programs(
    directory: Path, name: str, address: str, snapshotter: str, control_plane: ControlPlane
) -> list[dict[str, Any]]:
    def entry(program: str, *arguments: object, after: Sequence[object], once: bool = False) -> dict[str, Any]:
        return {
            "name": program,
            "argv": [str(word) for word in arguments],
            "log": str(directory / f"{program}.log"),
            "after": [str(path) for path in after],
            "once": once,
            "restart": not once,
        }

    ctr = [directory / "bin" / "ctr", "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io", "images", "import"]
    ctr.append("--local")  # containerd itself unpacks for its default snapshotter only
    return [
        entry("containerd", directory / "bin" / "containerd", "--config", directory / "containerd.toml", after=[]),
        *(
            entry(
                f"import-{image}",
                *[*ctr, "--snapshotter", snapshotter, directory / f"{image}.tar"],
                after=[CONTAINERD_SOCKET],
                once=True,
            )
            for image in ("pause", "probe")
        ),
        entry(
            "kubelet",
            directory / "bin" / "kubelet",
            f"--config={directory / 'kubelet.yaml'}",
            f"--kubeconfig={control_plane.directory / f'kubelet-{name}.kubeconfig'}",
            f"--hostname-override={name}",
            f"--node-ip={address}",
            "--v=2",
            after=[CONTAINERD_SOCKET, directory / "import-pause.done", control_plane.ready_file],
        ),
        entry(
            "kube-proxy",
            directory / "bin" / "kube-proxy",
            f"--config={directory / 'kube-proxy.yaml'}",
            f"--hostname-override={name}",
            after=[control_plane.ready_file],
        ),
    ]


def _preparation(directory: Path) -> str:
    """The shell script that gives the node its own file system; /mnt is its scratch space."""
    kernel = "\n".join(
        f"if [ -e /proc/sys/{key} ]; then mkdir -p /mnt/sys/{key}; echo {value} > /mnt/sys/{key}/value; "
        f"mount --bind /mnt/sys/{key}/value /proc/sys/{key}; fi"
        for key, value in KERNEL_SETTINGS.items()
    )
    return f"""set -eu
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/containerd /mnt/kubelet /mnt/logs
mount --bind {directory}/containerd /mnt/containerd
mount --bind {directory}/kubelet /mnt/kubelet
mount --bind {directory}/logs /mnt/logs
for top in etc opt var; do
  mkdir -p /mnt/$top/upper /mnt/$top/work
  mount -t overlay -o lowerdir=/$top,upperdir=/mnt/$top/upper,workdir=/mnt/$top/work overlay /$top
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /var/lib/containerd /var/lib/kubelet /var/log/pods /var/log/containers /var/lib/cni /etc/cni/net.d /opt/cni/bin /run/lock
mount --bind /mnt/containerd /var/lib/containerd
mount --bind /mnt/kubelet /var/lib/kubelet
mount --bind /mnt/logs /var/log/pods
rm -rf /etc/cni/net.d/*
cp {directory}/cni.conflist /etc/cni/net.d/10-kybernate.conflist
for plugin in bridge host-local loopback; do ln -sf {directory}/bin/$plugin /opt/cni/bin/; done
: > /run/resolv.conf
mkdir -p /etc/criu
echo 'network-lock nftables' > /etc/criu/runc.conf
{kernel}
mount --make-rshared /
"""


def _containerd(directory: Path, snapshotter: str) -> None:
    (directory / "containerd.toml").write_text(f"""version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "{snapshotter}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{images.PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
# Machines that withhold CAP_SYS_RESOURCE from root let nobody lower the score.
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
""")


def _cni(directory: Path, pods: str) -> None:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": pods}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    configuration = {"cniVersion": "1.0.0", "name": "kybernate", "plugins": [bridge]}
    (directory / "cni.conflist").write_text(json.dumps(configuration))


def _kubelet(directory: Path, name: str, *, address: str, control_plane: ControlPlane, cgroup: str) -> None:
    control_plane.kubeconfig_for(f"kubelet-{name}", user=f"system:node:{name}", groups=["system:nodes"])
    certificate, key = control_plane.authority.issue(f"kubelet-{name}-server", user=name, addresses=[address])
    configuration = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(control_plane.authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        # Small and full disks are common where tests run, and nothing here lives long.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "failCgroupV1": False,  # version 1 is on its way out of Kubernetes, but still works
        "failSwapOn": False,
        "healthzPort": 0,
        "imageGCHighThresholdPercent": 100,
        "maxPods": 200,
        "oomScoreAdj": 0,
        "resolvConf": "/run/resolv.conf",
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
    }
    (directory / "kubelet.yaml").write_text(yaml.safe_dump(configuration))


def _kube_proxy(directory: Path, name: str, *, network: Network, control_plane: ControlPlane) -> None:
    config = control_plane.kubeconfig_for(f"kube-proxy-{name}", user="system:kube-proxy")
    configuration = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(config)},
        "clusterCIDR": network.all_pods,
        # Limits of connection tracking belong to the whole machine.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "healthzBindAddress": "",
        "metricsBindAddress": "127.0.0.1:10249",
        "mode": "nftables",
        "oomScoreAdj": 0,
    }
    (directory / "kube-proxy.yaml").write_text(yaml.safe_dump(configuration))


def _file_system(path: Path) -> str:
    """The type of the file system `path` is on: overlayfs can't be stacked on itself."""
    return subprocess.run(
        ["findmnt", "-no", "FSTYPE", "-T", str(path)], capture_output=True, text=True, check=True
    ).stdout.strip()
