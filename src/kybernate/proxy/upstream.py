"""One connection to a model's server, and who uses it.

Whether a request may be sent again is decided by what the kernel knows: if the other side's TCP has acknowledged none of its
bytes, no program there can have read any. That closes the race of a server that ends an idle connection while we take it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Final, Protocol, cast

_CLOSE_S: Final = 2.0
"""How long the other side gets to close its end; then the connection is reset."""
_HIGH_WATER: Final = 256 << 10
_TCP_INFO_BYTES_ACKED: Final = 120


class User(Protocol):
    """Who uses a connection: one request."""

    @property
    def client(self) -> object:
        """Whose it is: the same for all requests of one connection."""

    def connected(self, upstream: Upstream) -> None: ...

    def unreachable(self, why: str) -> None: ...

    def answer_data(self, data: bytes) -> None: ...

    def answer_end(self, error: Exception | None) -> None:
        """The connection is gone, by their side."""

    def request_paused(self, paused: bool) -> None:
        """The other side doesn't read."""


class Owner(Protocol):
    """Who has made the connection and keeps it while nobody uses it."""

    def released(self, upstream: Upstream, *, reusable: bool) -> None:
        """Its user needs it no more."""

    def vanished(self, upstream: Upstream) -> None:
        """It can't be used any more."""

    def closed(self, upstream: Upstream) -> None:
        """It is gone."""


class Upstream(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_acked",
        "_ending",
        "_owner",
        "_reading_paused",
        "_socket",
        "idle_since",
        "kept_for",
        "sent",
        "sent_before",
        "transport",
        "used",
        "user",
        "write_paused",
    )

    def __init__(self, owner: Owner, connection: socket.socket) -> None:
        self._owner = owner
        self._socket = connection
        self._acked = _bytes_acked(connection)
        self._ending = False
        self._reading_paused = False
        self.write_paused = False
        """The other side doesn't read; what is written is heaped up here."""
        self.transport: asyncio.Transport | None = None
        self.user: User | None = None
        self.used = 0
        """Requests that were sent on it."""
        self.sent = 0
        self.sent_before = 0
        self.idle_since = 0.0
        self.kept_for: object | None = None
        """The only client whose requests it may carry."""

    # -- for its owner ---------------------------------------------------------------------------------------------------

    def serve(self, user: User) -> None:
        """It is this request's from now on."""
        self.user = user
        self.sent_before = self.sent
        self.used += 1
        user.connected(self)

    # -- for its user ----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self.sent += len(data)
        if self.transport is not None:
            self.transport.write(data)

    def pause_reading(self) -> None:
        if not self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    @property
    def nothing_accepted(self) -> bool:
        """Whether the other side's TCP took no byte of what the present user sent."""
        acked = _bytes_acked(self._socket)
        return acked is not None and self._acked is not None and acked - self._acked <= self.sent_before

    @property
    def all_accepted(self) -> bool:
        """Whether the other side's TCP has all that was sent: if not, no program there has read it all."""
        if self.transport is None or self.transport.get_write_buffer_size():
            return False
        acked = _bytes_acked(self._socket)
        return acked is None or self._acked is None or acked - self._acked >= self.sent

    @property
    def looks_alive(self) -> bool:
        """And says nothing, since nobody asked. Costs a system call."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def release(self, *, reusable: bool, only_for: object | None = None) -> None:
        """Its user needs it no more. `only_for`: nobody but that client may have it from now on."""
        self.user = None
        if only_for is not None:
            self.kept_for = only_for
        self.idle_since = time.monotonic()
        if self._reading_paused:
            self.resume_reading()  # a client that didn't read the end of its answer must not stop the next one's
        self._owner.released(self, reusable=reusable and not self.write_paused)

    def abort(self) -> None:
        """Its user needs it no more, and what it asked for neither."""
        self.user = None
        if self.transport is not None:
            self.transport.abort()

    def close_gracefully(self) -> None:
        """Close, so that the other side has closed too before the connection counts as gone."""
        transport = self.transport
        if self._ending or transport is None:
            return
        self._ending = True
        if transport.is_closing():
            return
        try:
            transport.write_eof()
            self.resume_reading()
        except (OSError, RuntimeError):
            transport.abort()
        else:
            asyncio.get_running_loop().call_later(_CLOSE_S, transport.abort)

    # -- asyncio ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self.transport = transport
        self.idle_since = time.monotonic()
        transport.set_write_buffer_limits(high=_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        if self.user is not None:
            self.user.answer_data(data)
        elif self.transport is not None:
            self.transport.abort()  # nobody asked: whatever it says must not be taken for the next answer

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.user is not None:
            self.user.request_paused(True)

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.user is not None:
            self.user.request_paused(False)

    def eof_received(self) -> bool:
        self._owner.vanished(self)
        user, self.user = self.user, None
        if user is not None:
            user.answer_end(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.vanished(self)
        user, self.user = self.user, None
        if user is not None:
            user.answer_end(exc)
        self.transport = None
        self._owner.closed(self)


def _bytes_acked(connection: socket.socket) -> int | None:
    """Of what was sent, and its SYN. None: this kernel doesn't say."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_ACKED + 8)
    except OSError:
        return None
    if len(info) < _TCP_INFO_BYTES_ACKED + 8:
        return None
    return int.from_bytes(info[_TCP_INFO_BYTES_ACKED:], sys.byteorder)
