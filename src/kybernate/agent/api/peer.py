"""Who is on the other end of a Unix socket, by SO_PEERCRED (unix(7))."""

from __future__ import annotations

import socket
import struct

from kybernate.model.caller import Caller

_UCRED = struct.Struct("3i")


def caller_of(connection: socket.socket) -> Caller:
    """The process that connected."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Caller(*_UCRED.unpack(raw))
