"""A client's connection: heads are read from it one after the other, bodies and answers pass through.

Slow or silent clients are found by a sweep once a second, so that no request pays for a timer.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Final, cast

from kybernate.proxy import answers
from kybernate.proxy.desk import Desk
from kybernate.proxy.heads import HEAD_MAX, BadHead, parse_request
from kybernate.proxy.phases import Phase
from kybernate.proxy.queueing import Refusal
from kybernate.proxy.request import Exchange

if TYPE_CHECKING:
    from kybernate.proxy.worker import Worker

HEAD_S: Final = 10.0
"""A head that isn't whole after so long comes from somebody who wants to keep the connection busy."""
BODY_S: Final = 30.0
BODY_RATE: Final = 1000
"""A body that is read whole may take BODY_S, and a second more for each so many bytes."""
STALL_S: Final = 120.0
"""A body passing through that stands still for so long."""
UNREAD_S: Final = 300.0
"""An answer that the client doesn't read for so long."""
UNREAD_LEAVING_S: Final = 30.0
"""The same while the model shall leave the GPU: others wait for it."""
LINGER_S: Final = 2.0
"""What a client gets to read an error before a connection with unread data on it is reset."""
_PIPELINE_MAX: Final = 64 << 10
_HIGH_WATER: Final = 256 << 10
_TCP_GONE = frozenset((7, 8))
"""States in which the client's side is closed: CLOSE, CLOSE_WAIT."""


class Front(asyncio.Protocol):
    """One connection of a client."""

    __slots__ = (
        "_buffer",
        "_desk",
        "_head_since",
        "_left",
        "_linger_until",
        "_reading_paused",
        "_since",
        "_stirred",
        "_transport",
        "_unread_since",
        "closing",
        "cors",
        "exchange",
        "keeps",
        "page_allowed",
        "peer",
        "secure",
        "worker",
        "write_paused",
    )

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.exchange: Exchange | None = None
        self.cors = b""
        """Lines for the head of each answer to the present request: what they say to the browser it came from."""
        self.page_allowed = False
        """It came from a page of another site that may ask."""
        self.peer = b"unknown"
        self.secure = False
        self.write_paused = False
        self.closing = False
        """No further request is read from it."""
        self.keeps = False
        """A model's connection may be kept for it."""
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._stirred = False
        self._since = 0.0
        self._head_since = 0.0
        self._linger_until = 0.0
        self._unread_since = 0.0
        self._left = 0
        """Bytes of an answer that lay here at the last look."""
        self._reading_paused = False
        self._desk = Desk(self)

    # -- for the exchange ------------------------------------------------------------------------------------------------

    def hear_from(self, origin: bytes) -> None:
        """The present request says that it comes from there; empty: it doesn't say."""
        origins = self.worker.origins
        if origins is not None:
            self.page_allowed = origins.allow(origin)
            self.cors = origins.fields(origin)
        elif self.cors:
            self.page_allowed, self.cors = False, b""

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

    def close_after_answer(self) -> None:
        self.closing = True

    def begin_tunnel(self) -> None:
        """The protocol was changed."""
        self.closing = True
        data, self._buffer = self._buffer, b""
        self.resume_reading()
        if data and self.exchange is not None:
            self.exchange.client_data(data)  # which pauses reading where the model doesn't read

    def answered(self, *, keep: bool) -> None:
        """The answer is out."""
        self.exchange = None
        if not keep or self.closing or self.worker.ending:
            self._end()
            return
        self._stirred = True
        if self.write_paused:
            return  # the next request's answer would only be heaped up behind this one
        if self._reading_paused:
            self.resume_reading()
        if self._buffer:
            self.worker.loop.call_soon(self._more)

    def answer_error(self, refusal: Refusal, *, complete: bool, head_only: bool, exchange: Exchange | None) -> None:
        """`complete`: the request was read to its end."""
        self.worker.failed(refusal, exchange)
        extra = self.cors
        keep = complete and not self.closing
        if exchange is not None:
            extra += b"x-request-id: %b\r\n" % exchange.request_id
            if exchange.waited:
                extra += b"x-kybernate-wait-ms: %d\r\n" % ((time.monotonic() - exchange.arrived) * 1000)
            keep = keep and not exchange.answer.close
        self.write(answers.error(refusal, extra=extra, close=not keep, head_only=head_only))
        self.answered(keep=keep)

    def cut(self) -> None:
        """The client is to see that its answer isn't whole."""
        self.exchange = None
        self.closing = True
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio ---------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self._transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        address = transport.get_extra_info("peername")
        if address:
            self.peer = str(address[0]).encode()
        self.secure = transport.get_extra_info("sslcontext") is not None
        self._since = time.monotonic()
        self.worker.fronts.add(self)
        if self.worker.is_full:
            # At once, without lingering: that would take the descriptors that are to be left.
            self.closing = True
            full = Refusal(503, "too_many_connections", "too many clients are connected here", 1.0)
            self.worker.failed(full, None)
            self.write(answers.error(full, extra=b"", close=True))
            transport.close()

    def data_received(self, data: bytes) -> None:
        self._stirred = True
        exchange = self.exchange
        if exchange is None:
            if self.closing:
                return
            if self.write_paused:
                self._keep(data)
            else:
                self._next(self._buffer + data if self._buffer else data)
            return
        if not exchange.body.done or exchange.phase is Phase.TUNNEL:
            used = exchange.client_data(data)
            if used == len(data):
                return
            data = data[used:]
        self._keep(data)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._unread_since = time.monotonic()
        if self.exchange is not None:
            self.exchange.client_paused(True)

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.client_paused(False)
        elif not self.closing:
            self._stirred = True
            self._head_since = time.monotonic()
            self.resume_reading()
            if self._buffer:
                self.worker.loop.call_soon(self._more)

    def eof_received(self) -> bool:
        self._gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        if self.keeps:
            self.worker.forget(self)
        self._transport = None
        self.worker.fronts.discard(self)

    # -- once a second ---------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        if self._stirred:
            self._stirred = False
            self._since = now
        exchange = self.exchange
        if exchange is None and self._is_being_read(now):
            return
        if exchange is not None:
            left = self._transport.get_write_buffer_size() if self._transport is not None else 0
            exchange.look(now, left=left)
            if self.exchange is not exchange:
                return  # it was cut off
        if self.write_paused and now - self._unread_since > self._patience(exchange):
            self.abandon()
        elif self._linger_until:
            if now > self._linger_until:
                self._hang_up()
        elif exchange is None:
            if self._buffer and now - self._head_since > HEAD_S:
                self._refuse_head(Refusal(408, "timeout", f"the request's head was not there after {HEAD_S:g} s"))
            elif not self._buffer and now - self._since > self.worker.idle_s:
                self._end()
        elif self._reading_paused:
            if self._client_has_closed():
                self.abandon()
        elif exchange.phase is Phase.READING:
            if now - exchange.arrived > BODY_S + exchange.bytes_in / BODY_RATE:
                exchange.refuse(Refusal(408, "timeout", "the request's body came too slowly"))
        elif exchange.phase is Phase.SENT and not exchange.body.done and now - self._since > STALL_S:
            exchange.cut(Refusal(408, "timeout", f"no byte of the request's body came for {STALL_S:g} s"))

    def abandon(self) -> None:
        """End it now, and what is under way for it."""
        self._gone()
        self.cut()

    def finish(self) -> None:
        """The worker ends: nothing more is read behind what is under way."""
        if self.exchange is None:
            self._end()
        else:
            self.closing = True

    # -- inside ----------------------------------------------------------------------------------------------------------

    @staticmethod
    def _patience(exchange: Exchange | None) -> float:
        return UNREAD_LEAVING_S if exchange is not None and exchange.is_in_the_way else UNREAD_S

    def _is_being_read(self, now: float) -> bool:
        """Part of an answer that is out still lies here, and the client takes it: only what the kernel has is sure to be sent."""
        left = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if not left:
            self._left = 0
            return False
        if left != self._left:
            self._left, self._unread_since = left, now
        if now - self._unread_since > UNREAD_S:
            self.abandon()
        self._since = now
        if self._linger_until:
            self._linger_until = now + LINGER_S
        return True

    def _hang_up(self) -> None:
        if self.secure and self._transport is not None:
            self._transport.close()
        else:
            self.cut()

    def _gone(self) -> None:
        exchange, self.exchange = self.exchange, None
        self.closing = True
        if exchange is not None:
            exchange.client_gone()

    def _end(self) -> None:
        """Close behind what was written. What the client sent meanwhile must not turn that into a reset which eats it."""
        self.closing = True
        transport = self._transport
        if transport is None or transport.is_closing() or self._linger_until:
            return
        self._buffer = b""
        if not self.secure and transport.can_write_eof():
            transport.write_eof()
        elif not transport.get_write_buffer_size():
            transport.close()
            return
        self._linger_until = time.monotonic() + LINGER_S
        self.resume_reading()

    def _keep(self, data: bytes) -> None:
        """It is a request behind the one under way."""
        if self.closing and self.exchange is None:
            return
        self._buffer = self._buffer + data if self._buffer else data
        self._head_since = time.monotonic()
        if len(self._buffer) > _PIPELINE_MAX:
            self.pause_reading()

    def _more(self) -> None:
        if self.exchange is None and self._buffer and not self.closing and not self.write_paused:
            self._next(self._buffer)

    def _next(self, data: bytes) -> None:
        if data[:1] in (b"\r", b"\n"):
            data = data[2:] if data[:2] == b"\r\n" else data  # one empty line before a request is customary
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > HEAD_MAX:
            if not self._buffer:
                self._head_since = time.monotonic()
            self._buffer = data
            if len(data) > HEAD_MAX:
                self._refuse_head(Refusal(431, "head_too_large", f"a head may have {HEAD_MAX} bytes"))
            elif data.count(b"\n") != data.count(b"\r\n"):
                self._refuse_head(Refusal(400, "bad_request", "a head with a bare line feed"))
            return
        self._buffer = b""
        try:
            head = parse_request(data if end + 4 == len(data) else data[: end + 4])
        except BadHead as e:
            self._refuse_head(Refusal(e.status, "bad_request", e.message))
            return
        rest = data[end + 4 :]
        used = self._desk.take(head, rest)
        if used < len(rest):
            self._keep(rest[used:])
            if self.exchange is None and not self.closing:
                self.worker.loop.call_soon(self._more)

    def _refuse_head(self, refusal: Refusal) -> None:
        self._buffer = self.cors = b""
        self.answer_error(refusal, complete=False, head_only=False, exchange=None)

    def _client_has_closed(self) -> bool:
        """Asked of the kernel where reading is paused: behind unread data, the end isn't seen."""
        connection = self._transport.get_extra_info("socket") if self._transport is not None else None
        if connection is None:
            return True
        try:
            state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except OSError:
            return True
        return state[0] in _TCP_GONE
