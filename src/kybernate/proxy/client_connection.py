"""A client's connection: heads are read from it one after the other, bodies and answers pass through.

    open ──▶ last ──▶ lingering ──▶ gone

Slow or silent clients are found by a sweep once a second (`patience.py`).
"""

from __future__ import annotations

import asyncio
import time

from kybernate.proxy import answers
from kybernate.proxy.client_transport import ClientTransport
from kybernate.proxy.dispatcher import Dispatcher
from kybernate.proxy.head_reader import HeadReader
from kybernate.proxy.patience import LINGER_S, UNREAD_S, body_is_late, head_is_late, unread_max_s
from kybernate.proxy.phases import ConnectionPhase, Phase
from kybernate.proxy.refusals import Refusal
from kybernate.proxy.request import Request
from kybernate.proxy.services import WorkerServices


class ClientConnection(ClientTransport):
    """One of them."""

    __slots__ = (
        "_active",
        "_dispatcher",
        "_left",
        "_linger_until",
        "_reader",
        "_services",
        "_since",
        "_unread_since",
        "phase",
        "request",
    )

    def __init__(self, services: WorkerServices) -> None:
        super().__init__()
        self.phase = ConnectionPhase.OPEN
        self.request: Request | None = None
        """The one under way."""
        self._services = services
        self._reader = HeadReader()
        self._dispatcher = Dispatcher(self, services)
        self._active = False
        """Something came, or an answer was done, since the last sweep."""
        self._since = 0.0
        """When that was, by the sweep."""
        self._linger_until = 0.0
        self._unread_since = 0.0
        self._left = 0
        """Bytes of an answer that lay here at the last sweep."""

    # -- for the request -------------------------------------------------------------------------------------------------

    def begun(self, request: Request) -> None:
        self.request = request

    def close_after_answer(self) -> None:
        """Nothing more is read behind what is under way."""
        if self.request is None:
            self._end()
        elif self.phase is ConnectionPhase.OPEN:
            self.phase = ConnectionPhase.LAST

    def begin_tunnel(self) -> None:
        """The protocol was changed."""
        self.close_after_answer()
        data = self._reader.clear()
        self.resume_reading()
        if data and self.request is not None:
            self.request.client_data(data)  # which pauses reading where the model doesn't read

    def answered(self, *, keep: bool) -> None:
        """The answer is out."""
        self.request = None
        if not keep or self.phase is not ConnectionPhase.OPEN or self._services.clients.ending:
            self._end()
            return
        self._active = True
        if self.write_paused:
            return  # the next request's answer would only be heaped up behind this one
        if self._reading_paused:
            self.resume_reading()
        if self._reader.data:
            asyncio.get_running_loop().call_soon(self._next)

    def cut(self) -> None:
        """End it now, and what is under way for it: the client is to see that its answer isn't whole."""
        self._leave()
        self.abort()

    # -- asyncio ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._since = time.monotonic()
        clients = self._services.clients
        clients.add(self)
        if clients.is_full:
            # At once, without lingering: that would take the descriptors that are to be left.
            self.phase = ConnectionPhase.GONE
            full = Refusal(503, "too_many_connections", "too many clients are connected here", 1.0)
            self._services.outcomes.failed("", full)
            self.write(answers.error(full, extra=b"", close=True))
            self.close()

    def data_received(self, data: bytes) -> None:
        self._active = True
        request = self.request
        if request is None and not self.write_paused:
            self._next(data)
            return
        if request is not None and (not request.body.done or request.phase is Phase.TUNNEL):
            used = request.client_data(data)
            if used == len(data):
                return
            data = data[used:]
        self._keep(data)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._unread_since = time.monotonic()
        if self.request is not None:
            self.request.client_paused(True)

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.request is not None:
            self.request.client_paused(False)
        elif self.phase is ConnectionPhase.OPEN:
            self._active = True
            self._reader.restart_clock()
            self.resume_reading()
            if self._reader.data:
                asyncio.get_running_loop().call_soon(self._next)

    def eof_received(self) -> bool:
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)
        self._services.clients.discard(self)
        self._services.directory.forget_client(self)

    # -- for the worker --------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Once a second."""
        if self._active:
            self._active = False
            self._since = now
        request, unsent = self.request, self.unsent
        if request is not None:
            request.look(now, left=unsent)
            if self.request is not request:
                return  # it was cut off
        elif unsent:
            self._sweep_unsent(now, unsent)
            return
        else:
            self._left = 0
        if self.write_paused and now - self._unread_since > unread_max_s(request):
            self.cut()
        elif request is not None:
            self._sweep_request(request, now)
        elif self.phase is ConnectionPhase.LINGERING:
            if now > self._linger_until:
                if self.secure:
                    self.close()
                else:
                    self.cut()
        elif self._reader.data:
            if (late := head_is_late(now, self._reader.since)) is not None:
                self._refuse_head(late)
        elif now - self._since > self._services.directory.rules.idle_s:
            self._end()

    # -- inside ----------------------------------------------------------------------------------------------------------

    def _sweep_unsent(self, now: float, unsent: int) -> None:
        """Part of an answer that is out still lies here, and the client takes it: only what the kernel has is sure to be sent."""
        if unsent != self._left:
            self._left, self._unread_since = unsent, now
        if now - self._unread_since > UNREAD_S:
            self.cut()
        self._since = now
        self._linger_until = now + LINGER_S

    def _sweep_request(self, request: Request, now: float) -> None:
        if self._reading_paused:
            if self.client_has_closed:
                self.cut()
        elif (late := body_is_late(request, now, since=self._since)) is not None:
            if request.phase is Phase.READING:
                request.refuse(late)
            else:
                request.cut(late)

    def _leave(self) -> None:
        """The client is gone, or is to go."""
        request, self.request = self.request, None
        self.phase = ConnectionPhase.GONE
        if request is not None:
            request.client_gone()

    def _end(self) -> None:
        """Close behind what was written. What the client sent meanwhile must not turn that into a reset which eats it."""
        if self.phase >= ConnectionPhase.LINGERING:
            return
        self.phase = ConnectionPhase.LAST
        self._reader.clear()
        if self.end_writing():
            self.phase = ConnectionPhase.LINGERING
            self._linger_until = time.monotonic() + LINGER_S
            self.resume_reading()

    def _keep(self, data: bytes) -> None:
        """It is a request behind the one under way, or behind one that was answered at once."""
        if self.request is None and self.phase is not ConnectionPhase.OPEN:
            return
        if not self._reader.keep(data):
            self.pause_reading()
        if self.request is None:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self, data: bytes = b"") -> None:
        """Begin the next request, if none is under way. `data` came behind what is kept."""
        if self.request is not None or self.write_paused or self.phase is not ConnectionPhase.OPEN:
            return
        kept = self._reader.data
        found = self._reader.next(kept + data if kept else data)
        if found is None:
            return
        if isinstance(found, Refusal):
            self._refuse_head(found)
            return
        head, rest = found
        used = self._dispatcher.take(head, rest)
        if used < len(rest):
            self._keep(rest[used:])

    def _refuse_head(self, refusal: Refusal) -> None:
        self._reader.clear()
        self._services.outcomes.failed("", refusal)
        self.write(answers.error(refusal, extra=b"", close=True))
        self.answered(keep=False)
