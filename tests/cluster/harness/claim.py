"""Whose a network's number is, so that nothing of a cluster outlives everybody who could have removed it.

The bridge is the claim, its alias names the process that holds it: first whoever starts the cluster, then its keeper. Normally the
keeper gives it back. Where that was killed, `down` does, or else the next cluster that starts on this machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.harness import cgroups, keeper, network, processes
from tests.cluster.harness.network import Network


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a claim; its start time (in clock ticks since boot) tells it from a later one of the same number."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return processes.start_time(self.pid) == self.started

    def __str__(self) -> str:
        return f"{Path('/proc/self/ns/pid').readlink()}/{self.pid}/{self.started}"


def ourselves() -> Holder:
    """This process."""
    return Holder(os.getpid(), processes.start_time(os.getpid()) or 0)


def take() -> Network:
    """A network with a free number, held by this process. Takes away first what dead holders left.

    Raises:
        ClusterError: as `network.make`.
    """
    with _alone():
        _sweep()
        return network.make(str(ourselves()), avoid=cgroups.names())


def sweep() -> None:
    """Take away what dead holders left."""
    with _alone():
        _sweep()


def hand_over(claimed: Network, holder: Holder) -> None:
    """From now on `holder` holds it."""
    claimed.relabel(str(holder))


def is_others(claimed: Network, holder: Holder) -> bool:
    """Whether the number, once of the cluster that `holder` kept, is meanwhile somebody else's."""
    with _alone():
        said = _holders().get(claimed.number)
        return said is not None and said not in (str(holder), str(ourselves())) and not _is_dead(said)


def give_back(claimed: Network, holder: Holder) -> None:
    """Remove its interfaces and cgroups, if `holder` or nobody alive holds it: by now the number may be another cluster's."""
    with _alone():
        said = _holders().get(claimed.number)
        if said is not None and (said == str(holder) or _is_dead(said)):
            _take_away(claimed)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One process at a time: the lock is on the directory that stands for this network namespace."""
    descriptor = os.open("/sys/class/net", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _holders() -> dict[int, str]:
    """The claimed numbers and who holds each, as said by its bridge's alias."""
    listed = subprocess.run(["ip", "-j", "link", "show", "type", "bridge"], capture_output=True, check=True).stdout
    found = {link.get("ifname"): link.get("ifalias", "") for link in json.loads(listed or b"[]")}
    candidates = (Network(number) for number in range(network.FIRST, network.LAST + 1))
    return {one.number: found[one.bridge] for one in candidates if one.bridge in found}


def _is_dead(said: str) -> bool:
    """Whether the holder is known to be gone. One in another pid namespace can't be seen from here."""
    match said.split("/"):
        case [namespace, pid, started] if namespace == str(Path("/proc/self/ns/pid").readlink()):
            return not Holder(int(pid), int(started)).alive
    return False


def _sweep() -> None:
    for number, said in _holders().items():
        if _is_dead(said):
            _take_away(Network(number))


def _take_away(claimed: Network) -> None:
    """The bridge last, since it is what keeps others from using its name."""
    keeper.remove_cgroups([str(root / claimed.bridge) for root in cgroups.hierarchies()])
    network.remove(claimed)
