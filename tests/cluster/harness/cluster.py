"""Starting, finding and ending a cluster.

One keeper process (keeper.py) on the host holds all of it. Started with a leash, the cluster ends when the last process
that uses it has left or died; without, it stays until `down`. The leash is a named pipe: every user holds its writing
end and a shared lock on it, the keeper reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx2
from tests.cluster.harness import binaries, cgroups, claim, keeper, network, node, processes
from tests.cluster.harness.control_plane import ControlPlane, Endpoint
from tests.cluster.harness.errors import ClusterError

LEASH = "leash"
READY_S = 90.0
GONE_S = 20.0
LONGEST_LINE = 300
"""Characters of a log's line in a message; etcd's stack traces are one line."""
SCARCE_BYTES = 150_000_000
"""So much a cluster with one node takes; with less left the file system may well be why a start failed."""
POLL_S = 0.05
LONGEST_DIRECTORY = 80
"""Characters; the name of a Unix socket has at most 107."""
RECORD = "cluster.json"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster consists of, beside etcd and the API server."""

    nodes: int = 0
    kwok: bool = False
    """Simulated nodes: those annotated with kwok.x-k8s.io/node=fake."""

    @property
    def controllers(self) -> bool:
        return bool(self.nodes) or self.kwok

    @property
    def programs(self) -> tuple[str, ...]:
        names = set(binaries.CONTROL_PLANE)
        if self.nodes:
            names |= set(binaries.NODE)
        if self.kwok:
            names |= set(binaries.SCALE)
        return tuple(sorted(names))


@dataclass(slots=True)
class Cluster:
    """A running cluster."""

    directory: Path
    shape: Shape
    url: str
    keeper: claim.Holder
    """Before the keeper is there: the process that starts the cluster."""
    network: network.Network | None = None
    leash: int | None = None
    """Our end of the pipe; the kernel closes it when we die."""

    @property
    def kubeconfig(self) -> Path:
        """Of a user who may do everything."""
        return self.directory / "admin.kubeconfig"

    @property
    def alive(self) -> bool:
        return self.keeper.alive

    def client(self, user: str = "admin") -> httpx2.Client:
        """An HTTP client for the API, with the certificate of NAME.kubeconfig."""
        pki = self.directory / "pki"
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / f"{user}.crt", pki / f"{user}.key")
        return httpx2.Client(base_url=self.url, verify=context, timeout=30)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints.

        Raises:
            ClusterError: kubectl failed; with what it said.
        """
        argv = [str(binaries.find(["kubectl"])["kubectl"]), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def node(self, index: int = 1) -> node.Node:
        """Node `index`, counted from 1."""
        if self.network is None or not 1 <= index <= self.shape.nodes:
            raise ClusterError(f"the cluster in {self.directory} has no node {index}")
        directory = self.directory / f"node{index}"
        pid = processes.only_child(int((self.directory / f"node{index}.pid").read_text()))
        return node.Node(f"node{index}", pid, self.network.node(index), directory)

    def memory(self) -> dict[str, int]:
        """Resident bytes of every program of the cluster, pods left out; shared pages counted once for each."""
        found: dict[str, int] = {}
        pids = [path for path in self.directory.glob("*.pid") if not path.name.startswith("node")]
        for path in pids:
            found[path.stem] = processes.resident_bytes(int(path.read_text()))
        for index in range(1, self.shape.nodes + 1):
            for pid, name in processes.of_namespace(self.node(index).pid).items():
                if name in ("containerd", "kubelet", "kube-proxy") or name.startswith("containerd-shim"):
                    key = f"node{index}/{name}"
                    found[key] = found.get(key, 0) + processes.resident_bytes(pid)
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time of the control plane's programs so far."""
        pids = [path for path in self.directory.glob("*.pid") if not path.name.startswith("node")]
        return {path.stem: processes.cpu_seconds(int(path.read_text())) for path in pids}

    def leave(self) -> None:
        """Use it no longer; whoever leaves last ends it and returns when nothing is left."""
        if self.leash is None:
            return
        try:
            fcntl.flock(self.leash, fcntl.LOCK_UN)
            fcntl.flock(self.leash, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.leash)
            self.leash = None
        else:
            self.down()

    def down(self) -> None:
        """End it and remove all it left. May be called again."""
        if self.leash is not None:
            os.close(self.leash)
            self.leash = None
        try:
            if self.alive and self.keeper != claim.ourselves():
                processes.end(self.keeper.pid)
        finally:
            if self.network is not None:  # a keeper that was killed itself leaves this to us
                claim.give_back(self.network, self.keeper)
        deadline = time.monotonic() + GONE_S
        while self.directory.exists():
            # What a killed keeper takes along may write until it is gone.
            shutil.rmtree(self.directory, ignore_errors=True)
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.directory} can't be removed")
            time.sleep(POLL_S)

    def save(self) -> None:
        """Write what `load` needs."""
        content = {
            "url": self.url,
            "keeper_pid": self.keeper.pid,
            "keeper_started": self.keeper.started,
            "network": self.network and self.network.number,
            "nodes": self.shape.nodes,
            "kwok": self.shape.kwok,
        }
        new = self.directory / f"{RECORD}.new"
        new.write_text(json.dumps(content))
        new.replace(self.directory / RECORD)

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """The cluster in `directory`, or None if none was started there."""
        path = directory / RECORD
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            number = content["network"]
            return cls(
                directory,
                Shape(content["nodes"], content["kwok"]),
                content["url"],
                claim.Holder(content["keeper_pid"], content["keeper_started"]),
                None if number is None else network.Network(number),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise ClusterError(
                f"{path} can't be read as the record of a cluster: remove {directory}, then `make cluster-down`"
            ) from None


def keeper_specification(directory: Path) -> Path:
    """What the keeper of the cluster in `directory` is given: its command line names it."""
    return directory / "keeper.json"


def end_lost(directory: Path) -> None:
    """End keepers whose cluster was in `directory` until somebody removed that by hand; no record leads to them."""
    wanted = os.fsencode(keeper_specification(directory.absolute()))
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if wanted in words and os.fsencode(keeper.__file__) in words:
                processes.end(int(process.name))


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """One process at a time starts or ends a cluster in `directory`. The lock file beside it goes when the directory has gone."""
    path = Path(f"{directory}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is(path, lock.fileno()):
                continue  # whoever had it removed it
            try:
                yield
            finally:
                if not directory.exists():
                    path.unlink()
            return


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def join(directory: Path, shape: Shape) -> Cluster:
    """Use the leashed cluster in `directory` together with others; whoever comes first starts it.

    Raises:
        Missing, ClusterError: as `start`.
    """
    with alone(directory):
        cluster = Cluster.load(directory)
        if cluster is not None and cluster.alive:
            try:
                cluster.leash = os.open(directory / LEASH, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                fcntl.flock(cluster.leash, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:  # the last user has just left
                while cluster.alive:
                    time.sleep(POLL_S)
            else:
                return cluster
        if cluster is not None:
            cluster.down()
        return start(directory, shape, leash=True)


def start(directory: Path, shape: Shape, *, leash: bool) -> Cluster:
    """Start a cluster in `directory`, which must not exist or be empty, and wait until it is ready.

    With nodes that means: all nodes are Ready and the default service account is there.
    `leash`: end it when all its users are gone.

    Raises:
        Missing: programs aren't there.
        ClusterError: it didn't become ready; what there was of it is gone again, but for the logs' last lines in the message.
    """
    directory = directory.absolute()
    check(directory, shape)
    found = binaries.find(shape.programs)
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)  # logs and settings of an API server are nobody else's business
    cluster = Cluster(directory, shape, "", claim.ourselves())
    try:
        _launch(cluster, found, leash=leash)
        _wait(cluster, "the API server", lambda: _answers(cluster))
        (directory / "ready").touch()
        if cluster.network is not None:
            for index in range(1, shape.nodes + 1):
                cluster.network.connect(index, cluster.node(index).pid)
        if shape.nodes:
            with cluster.client() as client:
                _wait(cluster, "all nodes", lambda: _ready_nodes(client) == shape.nodes)
        if shape.controllers:
            with cluster.client() as client:
                path = "/api/v1/namespaces/default/serviceaccounts/default"
                _wait(cluster, "the controller manager", lambda: client.get(path).status_code == 200)
    except BaseException as e:
        said = ""
        with contextlib.suppress(OSError):  # the keeper may remove it at the same time
            said = _last_words(directory) + _scarce(directory)
        cluster.down()
        if isinstance(e, ClusterError | OSError):
            raise ClusterError(f"{e}\n{said}".strip()) from None
        raise
    return cluster


def check(directory: Path, shape: Shape) -> None:
    """Whether such a cluster could be in such a directory.

    Raises:
        ClusterError: it could not.
    """
    if not 0 <= shape.nodes <= network.MOST_NODES:
        raise ClusterError(f"{shape.nodes} nodes can't be had: 0 to {network.MOST_NODES}")
    if shape.nodes and os.geteuid() != 0:
        raise ClusterError("a cluster with nodes needs root; one without (NODES=0) does not")
    if len(str(directory.absolute())) > LONGEST_DIRECTORY:
        raise ClusterError(f"{directory} is too long a path for Unix sockets: {LONGEST_DIRECTORY} characters at most")
    if directory.exists() and {path.name for path in directory.iterdir()} - {f"{RECORD}.new"}:
        raise ClusterError(f"{directory} isn't empty, and would be removed with the cluster: name another directory")


def _launch(cluster: Cluster, found: Mapping[str, Path], *, leash: bool) -> None:
    """Start the keeper. Whenever we are killed, the record in the directory tells `down` what there is to remove."""
    directory, shape = cluster.directory, cluster.shape
    cluster.save()
    cluster.network = net = claim.take() if shape.nodes else None
    cluster.save()
    groups = cgroups.make(net.bridge, [f"node{i}" for i in range(1, shape.nodes + 1)]) if net else []
    with _port(net.host if net else "127.0.0.1") as port:
        address, number = port.getsockname()
        endpoint = Endpoint(
            address,
            number,
            net.services if net else "10.0.0.0/24",
            net.first_service if net else "10.0.0.1",
        )
        cluster.url = endpoint.url
        control_plane = ControlPlane(directory, endpoint)
        programs = control_plane.programs(
            found, controllers=shape.controllers, nodes=bool(shape.nodes), kwok=shape.kwok
        )
        if net:
            programs += [
                node.prepare(i, shape.nodes, control_plane=control_plane, network=net, cgroup=net.bridge, found=found)
                for i in range(1, shape.nodes + 1)
            ]
        cluster.leash = _leash(directory / LEASH) if leash else None
        specification = {
            "directory": str(directory),
            "on_word": True,
            "leash": str(directory / LEASH) if leash else None,
            "programs": programs,
            "finally": net.removal(shape.nodes) if net else [],
            "remove": leash,
            "cgroups": groups,
        }
        _start_keeper(cluster, specification, port)


def _start_keeper(cluster: Cluster, specification: Mapping[str, Any], port: socket.socket) -> None:
    path = keeper_specification(cluster.directory)
    path.write_text(json.dumps(specification))
    with (cluster.directory / "keeper.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", keeper.__file__, str(path)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[port.fileno()],
        )
    process.returncode = 0  # it is nobody's child to wait for: `down` may be called by another process
    assert process.stdin is not None
    with process.stdin as word:  # closed without a word, whatever fails here, the keeper ends
        cluster.keeper = claim.Holder(process.pid, processes.start_time(process.pid) or 0)
        cluster.save()
        if cluster.network is not None:
            claim.hand_over(cluster.network, cluster.keeper)
        word.write(b"go\n")


@contextlib.contextmanager
def _port(address: str) -> Iterator[socket.socket]:
    """A free port, held for as long as this socket or the keeper's copy of it is open: only the API server, which asks to
    share it, gets it. It starts seconds later, and by then another program might have been given the port."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((address, 0))
        yield held


def _leash(path: Path) -> int:
    """A new leash and our hold on it. For both reading and writing, else opening would wait for the keeper."""
    os.mkfifo(path, mode=0o600)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _answers(cluster: Cluster) -> bool:
    with cluster.client() as client:
        return client.get("/readyz").status_code == 200


def _ready_nodes(client: httpx2.Client) -> int:
    nodes = client.get("/api/v1/nodes").json().get("items", [])
    return sum(
        any(c["type"] == "Ready" and c["status"] == "True" for c in item["status"].get("conditions", ()))
        for item in nodes
    )


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except httpx2.TransportError:  # not yet, or no more: the caller looks which
        return False


def _wait(cluster: Cluster, what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_S
    while not _holds(condition):
        if not cluster.alive:
            raise ClusterError(f"{what} ended before it was ready")
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not become ready within {READY_S:.0f} s")
        time.sleep(POLL_S)


def _scarce(directory: Path) -> str:
    free = shutil.disk_usage(directory).free
    return f"\nonly {free / 1e6:.0f} MB are free in {directory}" if free < SCARCE_BYTES else ""


def _last_words(directory: Path, lines: int = 5) -> str:
    logs = sorted(directory.rglob("*.log"))
    return "\n".join(
        f"{log.relative_to(directory)}: {line[:LONGEST_LINE]}"
        for log in logs
        for line in log.read_text(errors="replace").splitlines()[-lines:]
    )
