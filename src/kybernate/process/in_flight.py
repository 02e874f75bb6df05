"""Data on its way that a dump drops, found while the workload stands still: named in the report, and nobody waits for it in vain.

CRIU keeps what lies in pipes, terminals, Unix sockets and TCP connections. It drops what datagram sockets of other kinds have
received, events of inotify, and clients that a listener has not accepted yet. Such a client's own end is reset in the life after
(`waiting_clients`): it would else wait for an answer from nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kybernate.model.types import HostPid
from kybernate.process import procfs
from kybernate.process.descriptor_copies import copies
from kybernate.process.open_files import OpenFile

_TCP_INFO, _INFO_BYTES = 11, 104
_ESTABLISHED, _LISTEN = 1, 10
"""First byte of TCP_INFO."""
_WAITING_AT = 24
"""Of a listener, `tcpi_unacked` is how many clients wait to be accepted."""
_IPV4_MAPPED = "::ffff:"


@dataclass(slots=True)
class _Found:
    notes: list[str] = field(default_factory=list)
    listening: set[int] = field(default_factory=set)
    """Ports at which somebody waits to be accepted."""
    ends: dict[tuple[object, object], tuple[HostPid, int]] = field(default_factory=dict)
    """Established connections by their own and the other address, and where a descriptor is."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """What a dump drops."""

    notes: tuple[str, ...]
    waiting_clients: tuple[tuple[HostPid, int], ...]
    """Processes and descriptors of connections whose other end nobody has accepted."""


def look(held: Mapping[HostPid, Sequence[OpenFile]]) -> InFlight:
    """Of what processes hold that stand still."""
    found = _Found()
    seen: set[str] = set()
    for pid, all_files in held.items():
        files = {file.number: file for file in all_files if _may_hold(file) and file.target not in seen}
        for number, copy in copies(pid, files):
            file = files[number]
            if file.socket_inode is not None:
                seen.add(file.target)
            with contextlib.suppress(OSError, struct.error):
                found.notes += [f"{_who(pid)} {line}" for line in _of_file(file, copy, found)]
    waiting = tuple(
        where
        for (own, other), where in found.ends.items()
        if (other, own) not in found.ends and _port(other) in found.listening
    )
    return InFlight(tuple(found.notes), waiting)


def _may_hold(file: OpenFile) -> bool:
    return file.socket_inode is not None or file.target == "anon_inode:inotify"


def _of_file(file: OpenFile, copy: int, found: _Found) -> Iterator[str]:
    if file.socket_inode is None:
        if size := _readable_bytes(copy):
            yield f"has {size} bytes of inotify events that it has not read: a snapshot does not keep them"
        return
    with socket.socket(fileno=os.dup(copy)) as sock:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
            yield from _of_tcp(sock, file, found)
        elif sock.family == socket.AF_UNIX:
            yield from _of_unix(sock)
        elif sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_PACKET):
            events = _events(sock)
            if events & select.POLLIN:
                yield f"has datagrams that it has not read ({_name(sock)}): a snapshot does not keep them"
            if events & select.POLLERR:
                yield f"has an error of a socket that it has not seen ({_name(sock)}): a snapshot does not keep it"


def _of_tcp(sock: socket.socket, file: OpenFile, found: _Found) -> Iterator[str]:
    info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_BYTES)
    events = _events(sock)
    if events & select.POLLERR:
        yield f"has an error of a connection that it has not seen ({_name(sock)}): a snapshot does not keep it"
    match info[0]:
        case state if state == _LISTEN:
            waiting = struct.unpack_from("=I", info, _WAITING_AT)[0]
            if waiting:
                found.listening.add(sock.getsockname()[1])
                clients = "1 client" if waiting == 1 else f"{waiting} clients"
                yield f"has {clients} waiting to be accepted ({_name(sock)}): a snapshot resets their connections"
        case state if state == _ESTABLISHED:
            found.ends[_address(sock.getsockname()), _address(sock.getpeername())] = file.pid, file.number
            if events & select.POLLPRI:
                yield f"has an urgent byte that it has not read ({_name(sock)}): a snapshot does not keep it"


def _of_unix(sock: socket.socket) -> Iterator[str]:
    if sock.type == socket.SOCK_DGRAM and sock.getsockname() and _events(sock) & select.POLLIN:
        # None of its bytes: SO_PEEK_OFF would go on by them.
        sender = sock.recvmsg(0, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)[3]
        if sender:
            yield "has datagrams of a Unix socket that it has not read: they come back without their sender's address"


def _events(sock: socket.socket) -> int:
    poller = select.poll()
    poller.register(sock, select.POLLIN | select.POLLPRI)
    return sum(events for _, events in poller.poll(0))


def _readable_bytes(copy: int) -> int:
    return int.from_bytes(fcntl.ioctl(copy, termios.FIONREAD, bytes(4)), "little")


def _address(name: tuple[object, ...]) -> tuple[str, object]:
    """Without IPv6's scope, and the same for both families: one end of a connection may call the other by either."""
    return str(name[0]).removeprefix(_IPV4_MAPPED), name[1]


def _port(address: object) -> object:
    return address[1] if isinstance(address, tuple) else None


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_PACKET:
        return str(name[0])
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def _who(pid: HostPid) -> str:
    numbers, found = procfs.namespace_pids(pid), procfs.stat(pid)
    return f"process {numbers[-1] if numbers else pid} ({found.name if found else 'ended'})"
