"""Options of sockets that CRIU (4.2) does not look at, and the kernel gives and takes: read in one life, set in the next.

Only what differs in the new life is set, so a default stays the kernel's, and what the kernel refuses is said.
Left out is what reads as something else than was set (TCP_MAXSEG and TCP_WINDOW_CLAMP of a connection, SO_INCOMING_CPU,
TCP_QUICKACK), and what belongs to a group of sockets (SO_REUSEPORT's programs, memberships of multicast groups).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SOCKET, _IP, _TCP, _UDP, _IPV6 = 1, 0, 6, 17, 41
_LISTEN = 10
"""TCP_LISTEN, first byte of TCP_INFO."""
_TCP_INFO = 11
_NAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class Option:
    """One option, as getsockopt(2) and setsockopt(2) take it."""

    name: str
    level: int
    number: int
    text: bool = False
    """A name instead of a number."""
    listening: bool = False
    """Means something else once there is a connection."""


_OF_ALL = (
    Option("SO_TIMESTAMP", _SOCKET, 29),
    Option("SO_TIMESTAMPNS", _SOCKET, 35),
    Option("SO_TIMESTAMPING", _SOCKET, 37),
    Option("SO_TIMESTAMP_NEW", _SOCKET, 63),
    Option("SO_TIMESTAMPNS_NEW", _SOCKET, 64),
    Option("SO_TIMESTAMPING_NEW", _SOCKET, 65),
    Option("SO_BUSY_POLL", _SOCKET, 46),
    Option("SO_PREFER_BUSY_POLL", _SOCKET, 69),
    Option("SO_MAX_PACING_RATE", _SOCKET, 47),
    Option("SO_ZEROCOPY", _SOCKET, 60),
    Option("SO_RXQ_OVFL", _SOCKET, 40),
    Option("SO_TXREHASH", _SOCKET, 74),
    Option("SO_RCVMARK", _SOCKET, 75),
)
_OF_IP = (
    Option("IP_MTU_DISCOVER", _IP, 10),
    Option("IP_RECVERR", _IP, 11),
    Option("IP_RECVTTL", _IP, 12),
    Option("IP_RECVTOS", _IP, 13),
    Option("IP_RECVOPTS", _IP, 6),
    Option("IP_RECVORIGDSTADDR", _IP, 20),
    Option("IP_MINTTL", _IP, 21),
    Option("IP_TRANSPARENT", _IP, 19),
    Option("IP_BIND_ADDRESS_NO_PORT", _IP, 24),
    Option("IP_RECVFRAGSIZE", _IP, 25),
    Option("IP_LOCAL_PORT_RANGE", _IP, 51),
)
_OF_IPV6 = (
    Option("IPV6_UNICAST_HOPS", _IPV6, 16),
    Option("IPV6_MTU_DISCOVER", _IPV6, 23),
    Option("IPV6_RECVERR", _IPV6, 25),
    Option("IPV6_RECVHOPLIMIT", _IPV6, 51),
    Option("IPV6_DONTFRAG", _IPV6, 62),
    Option("IPV6_RECVTCLASS", _IPV6, 66),
    Option("IPV6_TCLASS", _IPV6, 67),
)
_OF_TCP = (
    Option("TCP_MAXSEG", _TCP, 2, listening=True),
    Option("TCP_SYNCNT", _TCP, 7),
    Option("TCP_LINGER2", _TCP, 8),
    Option("TCP_DEFER_ACCEPT", _TCP, 9),
    Option("TCP_CONGESTION", _TCP, 13, text=True),
    Option("TCP_THIN_LINEAR_TIMEOUTS", _TCP, 16),
    Option("TCP_USER_TIMEOUT", _TCP, 18),
    Option("TCP_FASTOPEN", _TCP, 23, listening=True),
    Option("TCP_NOTSENT_LOWAT", _TCP, 25),
    Option("TCP_SAVE_SYN", _TCP, 27, listening=True),
    Option("TCP_FASTOPEN_CONNECT", _TCP, 30),
    Option("TCP_FASTOPEN_NO_COOKIE", _TCP, 34, listening=True),
    Option("TCP_INQ", _TCP, 36),
    Option("TCP_TX_DELAY", _TCP, 37),
)
_OF_UDP = (
    Option("SO_PEEK_OFF", _SOCKET, 42),
    Option("UDP_NO_CHECK6_TX", _UDP, 101),
    Option("UDP_NO_CHECK6_RX", _UDP, 102),
    Option("UDP_SEGMENT", _UDP, 103),
    Option("UDP_GRO", _UDP, 104),
)
_OF_MULTICAST = (
    Option("IP_MULTICAST_TTL", _IP, 33),
    Option("IP_MULTICAST_LOOP", _IP, 34),
    Option("IP_MULTICAST_ALL", _IP, 49),
)
_OF_MULTICAST_IPV6 = (
    Option("IPV6_MULTICAST_HOPS", _IPV6, 18),
    Option("IPV6_MULTICAST_LOOP", _IPV6, 19),
)
_OF_UNIX = (Option("SO_PEEK_OFF", _SOCKET, 42),)


def options_of(sock: socket.socket) -> Sequence[Option]:
    """Those that mean something for a socket of its kind, as it is now."""
    if sock.family == socket.AF_UNIX:
        return (*_OF_ALL, *_OF_UNIX)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return ()
    found = (*_OF_ALL, *_OF_IP, *(_OF_IPV6 if sock.family == socket.AF_INET6 else ()))
    if sock.type == socket.SOCK_STREAM and sock.proto == socket.IPPROTO_TCP:
        listening = sock.getsockopt(_TCP, _TCP_INFO, 1)[0] == _LISTEN
        return (*found, *(option for option in _OF_TCP if listening or not option.listening))
    if sock.type != socket.SOCK_DGRAM:
        return found
    return (*found, *_OF_UDP, *_OF_MULTICAST, *(_OF_MULTICAST_IPV6 if sock.family == socket.AF_INET6 else ()))


def values(sock: socket.socket) -> dict[str, int | str]:
    """By name; what this kernel doesn't know is left out."""
    found: dict[str, int | str] = {}
    for option in options_of(sock):
        with contextlib.suppress(OSError):
            found[option.name] = _value(sock, option)
    return found


def apply(sock: socket.socket, wanted: Mapping[str, int | str]) -> list[str]:
    """Set what differs. Returns the names of those that could not be set."""
    failed = []
    for option in options_of(sock):
        if option.name not in wanted:
            continue
        try:
            _change(sock, option, wanted[option.name])
        except OSError:
            failed.append(option.name)
    return failed


def _change(sock: socket.socket, option: Option, value: int | str) -> None:
    if _value(sock, option) == value:
        return
    if isinstance(value, str):
        sock.setsockopt(option.level, option.number, value.encode())
    else:
        sock.setsockopt(option.level, option.number, value)


def _value(sock: socket.socket, option: Option) -> int | str:
    if option.text:
        return sock.getsockopt(option.level, option.number, _NAME_BYTES).rstrip(b"\0").decode("ascii", "replace")
    return sock.getsockopt(option.level, option.number)
