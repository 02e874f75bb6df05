"""A client's connection: heads are read from it one after the other, bodies and answers pass through.

Slow or silent clients are found by a sweep once a second, so that no request pays for a timer.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from typing import TYPE_CHECKING, Any, Final, cast

from kybernate.model.serving import Endpoint, Key
from kybernate.proxy import answers
from kybernate.proxy.exchange import Exchange, Phase
from kybernate.proxy.heads import HEAD_MAX, BadHead, RequestHead, parse_request
from kybernate.proxy.keys import Keys, allows, token_of
from kybernate.proxy.queueing import Refusal
from kybernate.proxy.routing import BY_BODY, OneModel, Page
from kybernate.proxy.served import ServedModel

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
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TCP_GONE = frozenset((7, 8))
"""States in which the client's side is closed: CLOSE, CLOSE_WAIT."""


class Front(asyncio.Protocol):
    """One connection of a client."""

    __slots__ = (
        "_buffer",
        "_head_since",
        "_key",
        "_key_seen",
        "_keys",
        "_left",
        "_linger_until",
        "_reading_paused",
        "_since",
        "_stirred",
        "_transport",
        "_unread_since",
        "closing",
        "exchange",
        "keeps",
        "peer",
        "secure",
        "worker",
        "write_paused",
    )

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.exchange: Exchange | None = None
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
        self._keys: Keys | None = None
        self._key: Key | None = None
        self._key_seen = b""

    # -- for the exchange ------------------------------------------------------------------------------------------------

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
        extra = b""
        keep = complete and not self.closing
        if exchange is not None:
            extra = b"x-request-id: %b\r\n" % exchange.request_id
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
        if not exchange.body_complete or exchange.phase is Phase.TUNNEL:
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
        elif exchange.phase is Phase.SENT and not exchange.body_complete and now - self._since > STALL_S:
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
        used = self._route(head, rest)
        if used < len(rest):
            self._keep(rest[used:])
            if self.exchange is None and not self.closing:
                self.worker.loop.call_soon(self._more)

    def _refuse_head(self, refusal: Refusal) -> None:
        self._buffer = b""
        self.answer_error(refusal, complete=False, head_only=False, exchange=None)

    def _route(self, head: RequestHead, rest: bytes) -> int:
        """How much of `rest` belonged to this request."""
        worker = self.worker
        named = head.named
        request_id = named.get(b"x-request-id")
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = worker.next_request_id()
        path = head.path
        host = named.get(b"host", b"")
        if not worker.hosts.answers(host):
            text = f"this is not {host[:100].decode('latin-1')!r}: name it in activator.hosts"
            return self._refusal(head, Refusal(421, "misdirected", text), request_id, rest)
        route = worker.routes.of(head.method, path, host)
        if route is Page.ALIVE or route is Page.READY:
            ready = worker.ready or route is Page.ALIVE
            return self._page(head, 200 if ready else 503, {"status": "ok" if ready else "not ready"}, request_id, rest)
        key: Key | None = None
        if worker.keys.needed:
            key = self._key_of(named)
        model = worker.models.get(route.model) if isinstance(route, Endpoint) else None
        if (
            model is not None
            and path == model.health
            and (not model.queue.is_open or (key is None and worker.keys.needed))
        ):
            return self._health(head, model, request_id, rest)
        if worker.keys.needed and key is None:
            return self._refusal(head, Refusal(401, "invalid_api_key", "a valid API key is needed"), request_id, rest)
        if route is Page.MODELS:
            endpoints = [endpoint for endpoint in worker.routes.endpoints if allows(key, endpoint)]
            return self._page(head, 200, answers.models(endpoints, worker.statuses()), request_id, rest)
        if route is BY_BODY and not worker.keys.needed and _is_of_a_foreign_page(named):
            refusal = Refusal(403, "foreign_page", "a page of another site may not ask here without a key")
            return self._refusal(head, refusal, request_id, rest)
        if isinstance(route, OneModel):
            return self._one_model(head, route.name, key, request_id, rest)
        if route is not BY_BODY and (model is None or not allows(key, model.endpoint)):
            where = f"{head.method.decode()} {path[:200].decode('latin-1')}"
            return self._refusal(head, Refusal(404, "not_found", f"nothing answers {where} here"), request_id, rest)
        exchange = self.exchange = Exchange(self, head, key=key, request_id=request_id)
        return exchange.begin(model, rest)

    def _key_of(self, named: dict[bytes, bytes]) -> Key | None:
        token = token_of(named)
        if token is None:
            return None
        keys = self.worker.keys
        if keys is not self._keys or token != self._key_seen:
            self._key = keys.find(token)
            self._keys, self._key_seen = keys, token
        return self._key

    def _one_model(self, head: RequestHead, name: str, key: Key | None, request_id: bytes, rest: bytes) -> int:
        model = self.worker.model_named(name)
        if model is None or not allows(key, model.endpoint):
            refusal = Refusal(404, "model_not_found", f"the model {name[:200]!r} does not exist here")
            return self._refusal(head, refusal, request_id, rest)
        return self._page(head, 200, answers.model(name, model.endpoint, model.queue.status), request_id, rest)

    def _health(self, head: RequestHead, model: ServedModel, request_id: bytes, rest: bytes) -> int:
        """Of a model, without asking it: it is parked, or the probe has no key."""
        if (refused := model.queue.refused) is not None:
            return self._refusal(head, refused, request_id, rest)
        return self._page(head, 200, {"status": "ok", "parked": not model.queue.is_open}, request_id, rest)

    def _page(self, head: RequestHead, status: int, content: dict[str, Any], request_id: bytes, rest: bytes) -> int:
        used = _skippable(head, rest)
        keep = head.keep_alive and used is not None
        extra = b"x-request-id: %b\r\n" % request_id
        if keep and not head.minor:
            extra += b"connection: keep-alive\r\n"
        self.write(answers.page(status, content, extra=extra, close=not keep, head_only=head.method == b"HEAD"))
        self.answered(keep=keep)
        return used or 0

    def _refusal(self, head: RequestHead, refusal: Refusal, request_id: bytes, rest: bytes) -> int:
        self.worker.failed(refusal, None)
        used = _skippable(head, rest)
        keep = head.keep_alive and used is not None
        extra = b"x-request-id: %b\r\n" % request_id
        self.write(answers.error(refusal, extra=extra, close=not keep, head_only=head.method == b"HEAD"))
        self.answered(keep=keep)
        return used or 0

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


def _is_of_a_foreign_page(named: dict[bytes, bytes]) -> bool:
    """What a browser on this machine sends for any page, unasked: whoever may reach us could else be made to ask. JSON that
    says it is JSON isn't: before that a browser asks by OPTIONS, and is told no."""
    origin = named.get(b"origin")
    if origin is None or named.get(b"content-type", b"").partition(b";")[0].strip().lower() == b"application/json":
        return False
    return origin.partition(b"://")[2].lower() != named.get(b"host", b"").lower()


def _skippable(head: RequestHead, rest: bytes) -> int | None:
    """Bytes of a body that nobody needs, if all of it is in `rest`. None: it isn't, so no request can follow."""
    length = head.length or 0
    return None if head.chunked or len(rest) < length else length
