"""The kernel's own list of a network namespace's sockets, and closing one of them, by its netlink interface (sock_diag).

/proc/net lacks the other end of Unix sockets, and nothing but this closes a connection of a process that stands still.
Closing needs CONFIG_INET_DIAG_DESTROY, which distributions set.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

PROTOCOL = 4
"""NETLINK_SOCK_DIAG: what to make the socket with, inside the network namespace."""

_BY_FAMILY, _DESTROY = 20, 21
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ALL_STATES = 0xFFFFFFFF
_SHOW_NAME, _SHOW_PEER = 1, 4
_ATTRIBUTE_NAME, _ATTRIBUTE_PEER = 0, 2
_ATTRIBUTE_INFO = 2
_SHOW_INFO = 1 << (_ATTRIBUTE_INFO - 1)
_UNSENT_OFFSET = 144
"""Of tcpi_notsent_bytes in struct tcp_info."""
_HEADER = struct.Struct("=IHHII")
_INET_MESSAGE = struct.Struct("=BBBB48sIIIII")
_UNIX_MESSAGE = struct.Struct("=BBBBI8s")

Address = tuple[str, int]


class State(enum.IntEnum):
    """Of a TCP socket, as the kernel numbers them."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECEIVED = 3
    FIN_WAIT_1 = 4
    FIN_WAIT_2 = 5
    TIME_WAIT = 6
    CLOSED = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTENING = 10
    CLOSING = 11
    NEW_SYN_RECEIVED = 12


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """A TCP socket. `inode` is 0 where no process has it open any more, or not yet."""

    family: int
    state: State
    local: Address
    remote: Address
    inode: int
    identity: bytes
    """The kernel's own name of it."""
    unsent: int = 0
    """Bytes that wait for room at the other end (SIOCOUTQNSD)."""


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A Unix socket and the one it is connected to (0: none)."""

    kind: socket.SocketKind
    inode: int
    peer: int
    name: str = ""
    """The path it was bound to; of one that was accepted, its listener's."""


def tcp_sockets(connection: socket.socket) -> Iterator[TcpSocket]:
    """All of a network namespace, of both families. Raises OSError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        request = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, _SHOW_INFO, 0, _ALL_STATES)
        for message in _ask(connection, _BY_FAMILY, _REQUEST | _DUMP, request):
            _, state, _, _, identity, _, _, _, _, inode = _INET_MESSAGE.unpack_from(message)
            info = dict(_attributes(message[_INET_MESSAGE.size :])).get(_ATTRIBUTE_INFO, b"")
            local_port, remote_port, local, remote = struct.unpack_from("!HH16s16s", identity)
            yield TcpSocket(
                family=family,
                state=State(state),
                local=(_address(family, local), local_port),
                remote=(_address(family, remote), remote_port),
                inode=inode,
                identity=identity,
                unsent=int.from_bytes(info[_UNSENT_OFFSET : _UNSENT_OFFSET + 4], sys.byteorder),
            )


def unix_sockets(connection: socket.socket) -> Iterator[UnixSocket]:
    """All of a network namespace. Raises OSError."""
    request = struct.pack("=BBHIII8x", socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_NAME | _SHOW_PEER)
    for message in _ask(connection, _BY_FAMILY, _REQUEST | _DUMP, request):
        _, kind, _, _, inode, _ = _UNIX_MESSAGE.unpack_from(message)
        attributes = dict(_attributes(message[_UNIX_MESSAGE.size :]))
        peer = int.from_bytes(attributes.get(_ATTRIBUTE_PEER, b"")[:4], "little")
        name = attributes.get(_ATTRIBUTE_NAME, b"").rstrip(b"\0").decode(errors="replace")
        yield UnixSocket(kind=socket.SocketKind(kind), inode=inode, peer=peer, name=name)


def destroy(connection: socket.socket, victim: TcpSocket) -> None:
    """Close it: both ends learn of it, the process by ECONNABORTED. Does nothing when it is gone.

    Raises:
        OSError: the kernel can't (EOPNOTSUPP), or no right to (EPERM).
    """
    request = struct.pack("=BBBBI", victim.family, socket.IPPROTO_TCP, 0, 0, 1 << victim.state) + victim.identity
    try:
        for _ in _ask(connection, _DESTROY, _REQUEST | _ACK, request):
            pass
    except FileNotFoundError:
        return


def _ask(connection: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    connection.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
    while True:
        data = connection.recv(1 << 18)
        while len(data) >= _HEADER.size:
            length, answer, _, _, _ = _HEADER.unpack_from(data)
            message, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
            if answer == _DONE:
                return
            if answer == _ERROR:
                number = -struct.unpack_from("=i", message)[0]
                if number == 0:
                    return
                raise OSError(number, os.strerror(number))
            yield message


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:length]
        data = data[(length + 3) & ~3 :] if length >= 4 else b""


def _address(family: int, raw: bytes) -> str:
    """Both ends of a connection may be of different families: an IPv4 address in IPv6 is given as IPv4."""
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(raw[:4]))
    found = ipaddress.IPv6Address(raw)
    return str(found.ipv4_mapped or found)
