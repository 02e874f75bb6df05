"""The bytes of a client's connection: written, not read faster than they are needed, and ended so that the client sees the last of
them.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, cast

_HIGH_WATER: Final = 256 << 10
_TCP_GONE = frozenset((7, 8))
"""States in which the client's side is closed: CLOSE, CLOSE_WAIT."""


class ClientTransport(asyncio.Protocol):
    """What becomes of the bytes is for those who inherit from it."""

    __slots__ = ("_reading_paused", "_transport", "peer", "secure", "write_paused")

    def __init__(self) -> None:
        self.peer = b"unknown"
        """The client's address."""
        self.secure = False
        """It came by TLS."""
        self.write_paused = False
        """The client doesn't read; what is written is heaped up here."""
        self._transport: asyncio.Transport | None = None
        self._reading_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self._transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        address = transport.get_extra_info("peername")
        if address:
            self.peer = str(address[0]).encode()
        self.secure = transport.get_extra_info("sslcontext") is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()

    @property
    def unsent(self) -> int:
        """Bytes that lie here, since the kernel has no room for them."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """At once; what lies here is lost."""
        if self._transport is not None:
            self._transport.abort()

    def end_writing(self) -> bool:
        """That was all. True: the client closes its side, once it has read it; False: the connection is closing or closed."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if not self.secure and transport.can_write_eof():
            transport.write_eof()
        elif not transport.get_write_buffer_size():
            transport.close()
            return False
        return True

    @property
    def client_has_closed(self) -> bool:
        """Asked of the kernel where reading is paused: behind unread data, the end isn't seen."""
        connection = self._transport.get_extra_info("socket") if self._transport is not None else None
        if connection is None:
            return True
        try:
            state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except OSError:
            return True
        return state[0] in _TCP_GONE
