"""Packets of protocol.h over a SOCK_SEQPACKET socket, with the descriptors that travel beside them.

Whoever receives owns the descriptors; whoever sends keeps its own. Limits: no waiting policy of its own, the socket's
timeout counts.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

from kybernate.cuda import wire
from kybernate.model.errors import BadInput

_FDS_MAX = 253
"""SCM_MAX_FD of Linux."""
_INT = array.array("i").itemsize


def send(connection: socket.socket, message: wire.Message, fds: Sequence[int] = ()) -> None:
    """One packet. Raises OSError as the socket does; SIGPIPE never comes."""
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([wire.pack(message)], control, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[wire.Message, list[int]] | None:
    """One packet and its descriptors (close-on-exec), or None when the peer has hung up.

    Raises:
        BadInput: what came is no packet of ours; its descriptors are closed.
        OSError: as the socket says, timeouts included.
    """
    # One byte more than the longest packet, so that a longer one shows itself.
    packet, ancillary, flags, _ = connection.recvmsg(
        wire.PACKET_MAX + 1, socket.CMSG_SPACE(_FDS_MAX * _INT), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            rights = array.array("i")
            rights.frombytes(data[: len(data) // _INT * _INT])
            fds.extend(rights)
    try:
        if not packet and not fds:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise BadInput("packet is longer than any of this protocol, or its descriptors didn't fit")
        return wire.unpack(packet), fds
    except BadInput:
        close_all(fds)
        raise


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
