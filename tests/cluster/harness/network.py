"""The network of a cluster with nodes: a bridge on the host, a network namespace for each node, plain routes.

Everything here hangs on the bridge or on a node's namespace and goes with them. The host's packet filter, its forwarding and its
other interfaces stay as they are; the host reaches pods and Services through routes over the bridge.

Limit: a host that filters bridged packets (bridge-nf-call-iptables with a FORWARD policy of DROP, as Docker sets up) keeps
the nodes from each other.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Container, Sequence
from dataclasses import dataclass

from tests.cluster.harness.errors import ClusterError

FIRST, LAST = 190, 229
"""Clusters take 10.FIRST.0.0/16 to 10.LAST.0.0/16, each the first that is free."""
MOST_NODES = 60
"""So many pod networks and node addresses there are."""


@dataclass(frozen=True, slots=True)
class Network:
    """Addresses of one cluster, all in 10.`number`.0.0/16."""

    number: int

    @property
    def bridge(self) -> str:
        return f"kybkube{self.number}"

    @property
    def all(self) -> str:
        return f"10.{self.number}.0.0/16"

    @property
    def host(self) -> str:
        """The host's own address; the API server listens there."""
        return f"10.{self.number}.0.1"

    @property
    def services(self) -> str:
        return f"10.{self.number}.128.0/20"

    @property
    def first_service(self) -> str:
        """The address of the API server as pods see it."""
        return f"10.{self.number}.128.1"

    def node(self, index: int) -> str:
        """Address of node `index` (from 1)."""
        return f"10.{self.number}.0.{10 + index}"

    @property
    def all_pods(self) -> str:
        """The pods of all nodes, and nothing else: kube-proxy hides the source of traffic that comes from outside of this."""
        return f"10.{self.number}.64.0/18"

    def pods(self, index: int) -> str:
        return f"10.{self.number}.{64 + index}.0/24"

    def host_end(self, index: int) -> str:
        """Name of the host's end of the node's cable; interface names have 15 characters at most."""
        return f"{self.bridge}n{index}"

    def inside(self, index: int, nodes: int) -> list[list[str]]:
        """Commands for the node's own namespace, once its eth0 is there."""
        commands = [
            ["ip", "link", "set", "lo", "up"],
            ["ip", "address", "add", f"{self.node(index)}/24", "dev", "eth0"],
            ["ip", "link", "set", "eth0", "up"],
            ["ip", "route", "add", "default", "via", self.host],
            ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"],
        ]
        for other in range(1, nodes + 1):
            if other != index:
                commands.append(["ip", "route", "add", self.pods(other), "via", self.node(other)])
        return commands

    def removal(self, nodes: int) -> list[list[str]]:
        """Commands that take everything on the host away."""
        return [["ip", "link", "delete", name] for name in (*map(self.host_end, range(1, nodes + 1)), self.bridge)]

    def relabel(self, label: str) -> None:
        """Write another label on the bridge."""
        _ip("link", "set", "dev", self.bridge, "alias", label)

    def connect(self, index: int, pid: int) -> None:
        """Lay a cable to the node whose first process is `pid`."""
        _ip("link", "add", self.host_end(index), "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _ip("link", "set", self.host_end(index), "master", self.bridge, "up")
        _ip("route", "add", self.pods(index), "via", self.node(index))
        if index == 1:
            _ip("route", "add", self.services, "via", self.node(1))


def make(label: str, *, avoid: Container[str] = ()) -> Network:
    """A bridge with this label and the first free number: making it is what claims the number, so clusters can start side by side.

    `avoid`: names of bridges that aren't to be made.

    Raises:
        ClusterError: no number is free, or `ip` refused.
    """
    taken = _taken()
    for number in range(FIRST, LAST + 1):
        network = Network(number)
        if network.bridge in avoid or any(ipaddress.ip_network(network.all).overlaps(other) for other in taken):
            continue
        # All in one process: a kill of ours can't leave a bridge without a label.
        commands = (
            f"link add {network.bridge} type bridge",
            f"link set dev {network.bridge} alias {label}",
            f"address add {network.host}/24 dev {network.bridge}",
            f"link set {network.bridge} up",
        )
        made = subprocess.run(
            ["ip", "-batch", "-"], input="\n".join(commands), capture_output=True, text=True, check=False
        )
        if made.returncode == 0:
            return network
        if "exists" not in made.stderr:
            remove(network)
            raise ClusterError(f"bridge {network.bridge} could not be made: {made.stderr.strip()}")
    raise ClusterError(
        f"no free network among 10.{FIRST}.0.0/16 to 10.{LAST}.0.0/16: `make cluster-down` frees those of test clusters"
    )


def remove(network: Network) -> None:
    """Take the host's part away, the bridge last; nothing happens where it is gone already."""
    listed = subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout
    names = {link.get("ifname", "") for link in json.loads(listed or b"[]")}
    cables = sorted(name for name in names if name.startswith(f"{network.bridge}n"))
    for name in (*cables, network.bridge):
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)


def _taken() -> Sequence[ipaddress.IPv4Network]:
    routes = json.loads(subprocess.run(["ip", "-j", "-4", "route"], capture_output=True, check=True).stdout or b"[]")
    return [ipaddress.IPv4Network(r["dst"], strict=False) for r in routes if r["dst"] != "default"]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
