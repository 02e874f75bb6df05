"""Connections to the API over TCP: how many there may be, and for how long one may say nothing.

aiohttp takes whatever comes. Here a connection above the limit gets one answer, 503, and ends; one that hasn't been let in after
some seconds, since it says nothing, a little at a time, or shows no token, ends too: else a few hundred of them would be all
there are.

Limits: somebody who opens new ones all the time still keeps others out, until a firewall keeps them out. The Unix socket isn't
concerned: whoever may open it is trusted.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from aiohttp import web

from kybernate.model.api import ErrorView

log = logging.getLogger(__name__)

_HANDSHAKE_S: Final = 10.0
ADMISSION_S: Final = 30.0
"""Until a connection must have made a request that was let in."""
_FAREWELL_S: Final = 1.0
"""What one above the limit gets to read why."""
_FAREWELLS_MAX: Final = 16
"""Of these at once; others above the limit are closed without a word."""
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_S: Final = 1.0
_SWEEP_S: Final = 1.0


class Keep(Protocol):
    """See `Tasks.keep`."""

    def __call__(self, work: Callable[[], Coroutine[Any, Any, Any]], *, name: str) -> asyncio.Task[None]: ...


class ConnectionLimits:
    """Hands connections to `server`, `maximum` at once. Its own is the listener."""

    def __init__(
        self,
        listener: socket.socket,
        server: web.Server,
        *,
        tls: ssl.SSLContext | None,
        maximum: int,
        admission_s: float = ADMISSION_S,
    ) -> None:
        self._listener = listener
        self._server = server
        self._tls = tls
        self._maximum = maximum
        self._admission_s = admission_s
        self._coming: set[asyncio.Task[None]] = set()
        self._handlers: set[Any] = set()
        """Of those that come. Some are the server's already: it has them as soon as their handshake is over."""
        self._unknown: dict[asyncio.BaseTransport, float] = {}
        """Those that nobody has let in yet, and since when."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._work: list[asyncio.Task[None]] = []

    def start(self, keep: Keep) -> None:
        """`keep` runs a task and starts it again where it fails (see `Tasks.keep`)."""
        self._work = [
            keep(self._accept, name="connections to the API"),
            keep(self._sweep, name="connections that nobody was let in on"),
        ]

    async def stop(self) -> None:
        """No more come; those that were handed over go on."""
        tasks = [*self._work, *self._coming, *self._leaving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    def admit(self, transport: asyncio.BaseTransport | None) -> None:
        """A request on it was let in."""
        if transport is not None:
            self._unknown.pop(transport, None)

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError as e:
                if e.errno in _NO_DESCRIPTORS:
                    log.warning("can't take a connection to the API: %s", e.strerror)
                    await asyncio.sleep(_PAUSE_S)
                continue
            self._take(connection)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            late = time.monotonic() - self._admission_s
            for transport, since in list(self._unknown.items()):
                if transport.is_closing() or since < late:
                    del self._unknown[transport]
                    if isinstance(transport, asyncio.WriteTransport):
                        transport.abort()

    def _take(self, connection: socket.socket) -> None:
        if len(self._handlers.union(self._server.connections)) < self._maximum:
            handler = self._server()
            self._handlers.add(handler)  # now: the next one may be here before this one's task begins
            self._start(self._coming, self._hand_over(connection, handler))
        elif len(self._leaving) < _FAREWELLS_MAX:
            self._start(self._leaving, self._turn_away(connection))
        else:
            connection.close()

    @staticmethod
    def _start(tasks: set[asyncio.Task[None]], work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _hand_over(self, connection: socket.socket, handler: Any) -> None:
        try:
            transport = await self._connect(connection, lambda: handler)
        finally:
            self._handlers.discard(handler)
        if transport is not None:
            self._unknown[transport] = time.monotonic()

    async def _turn_away(self, connection: socket.socket) -> None:
        transport = await self._connect(connection, lambda: _Full(self._maximum))
        if transport is not None:
            try:
                await asyncio.sleep(_FAREWELL_S)
            finally:
                transport.abort()

    async def _connect(self, connection: socket.socket, factory: Any) -> asyncio.Transport | None:
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                factory, connection, ssl=self._tls, ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE_S
            )
        except (OSError, TimeoutError):  # it speaks no TLS, or left
            connection.close()
            return None
        return transport


class _Full(asyncio.Protocol):
    """Says why, whatever is asked."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        view = ErrorView(
            code="too_many_connections",
            message=f"{self._maximum} connections to the API over TCP are open already",
            hint="close some, or raise agent.api.connections; the Unix socket has no such limit",
            exit_status=1,
        )
        body = view.model_dump_json().encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        transport.write(head.encode() + body)
