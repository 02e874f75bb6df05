"""TCP connections and Unix sockets that lead out of a workload: found, named, and closed where that is wanted.

A connection within the workload is dumped with both its ends. One to the outside is half a thing: whoever is at the other
end won't wait. A workload's port may be asked from outside through its loopback (`networks.open_socket`), so an
address says nothing: a connection is the workload's own if the sockets of both ends are.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from kybernate.model.errors import Unsupported
from kybernate.process import sock_diag
from kybernate.process.networks import open_socket
from kybernate.process.open_files import open_files
from kybernate.process.sock_diag import State, TcpSocket, UnixSocket
from kybernate.process.tree import Tree

_CONNECTED = frozenset(State) - {State.LISTENING, State.CLOSED, State.TIME_WAIT}


@dataclass(frozen=True, slots=True)
class Sockets:
    """The sockets of a workload's network namespace."""

    tcp: tuple[TcpSocket, ...]
    unix: tuple[UnixSocket, ...]


def sockets_of(tree: Tree) -> Sockets:
    """What the kernel has right now. Raises WorkloadLost: the workload has ended."""
    with _diagnosis(tree) as connection:
        return Sockets(tuple(sock_diag.tcp_sockets(connection)), tuple(sock_diag.unix_sockets(connection)))


def listens(tree: Tree, port: int) -> bool:
    """Whether one of its own processes listens at that TCP port: in a network that others share, somebody else may."""
    ports = {entry.inode for entry in sockets_of(tree).tcp if entry.state is State.LISTENING and entry.local[1] == port}
    return any(file.socket_inode in ports for pid in tree.pids() for file in open_files(pid))


def half_connections(tree: Tree) -> int:
    """How many Unix sockets its processes hold that were accepted from somebody outside of its network namespace.

    Such a socket belongs to the namespace it was asked from; CRIU doesn't find it, and can't dump its holder.
    """
    known = {entry.inode for entry in sockets_of(tree).unix}
    return sum(
        file.socket_inode not in known
        for pid in tree.pids()
        for file in open_files(pid)
        if file.socket_inode is not None and file.socket_protocol.startswith("UNIX")
    )


def leading_out(tcp: Iterable[TcpSocket], own: set[int]) -> list[TcpSocket]:
    """Connections of the sockets `own` (by inode) whose other end is none of them. Pure.

    An other end without an inode is nobody's: closed by its process, or waiting to be accepted.
    """
    ends: dict[tuple[sock_diag.Address, sock_diag.Address], int] = {}
    connected = [entry for entry in tcp if entry.state in _CONNECTED]
    for entry in connected:
        ends[entry.local, entry.remote] = entry.inode
    return [
        entry
        for entry in connected
        if entry.inode in own and (other := ends.get((entry.remote, entry.local), -1)) not in own and other != 0
    ]


def unix_leading_out(unix: Iterable[UnixSocket], own: set[int], *, but: str | None = None) -> list[UnixSocket]:
    """Unix sockets that are connected to somebody else's; `but` to one whose path ends with this name. Pure.

    Datagram sockets are left out: they hold no connection, and are pointed to the same path again. So are those that
    nobody has accepted yet: whose they are isn't known.
    """
    unix = list(unix)
    left_out = {entry.inode for entry in unix if but is not None and entry.name.endswith(f"/{but}")}
    return [
        entry
        for entry in unix
        if entry.inode in own and entry.peer and entry.peer not in own | left_out and entry.kind != socket.SOCK_DGRAM
    ]


def close(tree: Tree, victims: Iterable[TcpSocket]) -> None:
    """Close these connections; the workload's processes find them aborted.

    Raises:
        Unsupported: the kernel can't.
    """
    with _diagnosis(tree) as connection:
        for victim in victims:
            try:
                sock_diag.destroy(connection, victim)
            except OSError as e:
                if e.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                    raise
                raise Unsupported(
                    f"the connections of workload {tree.name} can't be closed: {e.strerror}",
                    hint="the kernel needs CONFIG_INET_DIAG_DESTROY; or end them in the workload",
                ) from e


def describe(entry: TcpSocket) -> str:
    """`127.0.0.1:80 - 10.0.0.7:4711`, the workload's own end first."""
    return " - ".join(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in (entry.local, entry.remote)
    )


def _diagnosis(tree: Tree) -> socket.socket:
    return open_socket(tree, family=socket.AF_NETLINK, kind=socket.SOCK_RAW, protocol=sock_diag.PROTOCOL)
