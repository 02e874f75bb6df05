"""One request and its answer: from the head that was read to the last byte that was passed on.

    reading ──▶ held ──▶ connecting ──▶ sent ──▶ (tunnel) ──▶ over

A request whose body must name the model is read whole first; any other body passes through as it comes. The client's connection
and the model's call in here; what is decided about waiting is the queue's. Once a byte of it may have reached the model, a
request isn't sent again.
"""

from __future__ import annotations

import enum
import re
import time
from math import inf
from typing import TYPE_CHECKING, Final

from kybernate.model.serving import Endpoint, Key
from kybernate.proxy import naming
from kybernate.proxy.answering import AnswerReader, BadAnswer
from kybernate.proxy.framing import BadBody, ChunkedBody, Framing, LengthBody
from kybernate.proxy.heads import RequestHead, request_for_upstream
from kybernate.proxy.keys import allows, fields_with_keys
from kybernate.proxy.movement import Movement
from kybernate.proxy.queueing import Refusal
from kybernate.proxy.served import ServedModel
from kybernate.proxy.upstream import Upstream

if TYPE_CHECKING:
    from kybernate.proxy.front import Front

_AHEAD_MAX: Final = 64 << 10
"""Bytes of a body that are taken before its turn has come; the rest waits at the client's."""
_SECONDS = re.compile(rb"\d{1,9}(?:\.\d{1,6})?")
_SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_RETRIES_MAX: Final = 3


class Phase(enum.IntEnum):
    READING = 0
    HELD = 1
    CONNECTING = 2
    SENT = 3
    TUNNEL = 4
    OVER = 5


class Exchange:
    """Made by the front for each request that isn't answered by a page."""

    __slots__ = (
        "_ahead",
        "_at_once",
        "_body",
        "_body_size",
        "_booked",
        "_can_repeat",
        "_has_body",
        "_head",
        "_is_websocket",
        "_key",
        "_movement",
        "_payload",
        "_retries",
        "_safe",
        "_swap_s",
        "_tier",
        "answer",
        "answered",
        "arrived",
        "bytes_in",
        "bytes_out",
        "forwarded",
        "front",
        "held_size",
        "model",
        "own_s",
        "phase",
        "request_id",
        "span",
        "upstream",
        "waited",
    )

    def __init__(self, front: Front, head: RequestHead, *, key: Key | None, request_id: bytes) -> None:
        self.front = front
        self.arrived = time.monotonic()
        self.request_id = request_id
        self.phase = Phase.READING
        self.model: ServedModel | None = None
        self.upstream: Upstream | None = None
        self.held_size = 0
        self.forwarded = 0.0
        """When it was sent."""
        self.answered = 0.0
        """When the first byte of the answer came."""
        self.waited = False
        self.own_s = 0.0
        """What it spent here without waiting for anybody: the client's body, its turn, the model."""
        self.bytes_in = self.bytes_out = 0
        self.span: object | None = None
        self.answer = AnswerReader(
            head_only=head.method == b"HEAD",
            minor=head.minor,
            keep_alive=head.keep_alive,
            upgrade=head.upgrade is not None,
        )
        self._head: RequestHead | None = head
        self._key = key
        self._body: Framing | None = None
        if head.chunked:
            self._body = ChunkedBody()
        elif head.length:
            self._body = LengthBody(head.length)
        self._body_size = 0
        self._payload: list[bytes] | None = None
        """Content of a body that is read whole."""
        self._booked = 0
        """Bytes of the body that are kept here, by the worker's account."""
        self._ahead: list[bytes] = []
        """What is to be sent as soon as there is a connection; kept until the answer begins, if it can be sent again."""
        self._at_once = False
        """Nothing had to be waited for to know where it goes."""
        self._can_repeat = True
        self._safe = head.method in _SAFE
        self._has_body = head.has_body
        self._is_websocket = head.upgrade == b"websocket"
        self._retries = 0
        self._tier: str | None = None
        self._swap_s = 0.0
        self._movement: Movement | None = None
        """From the first look behind the answer's head on."""

    @property
    def client(self) -> Front:
        return self.front

    @property
    def tier(self) -> str:
        return self._tier or "warm"

    @property
    def swap_s(self) -> float:
        return self._swap_s

    @property
    def body_complete(self) -> bool:
        return self._body is None or self._body.done

    @property
    def is_in_the_way(self) -> bool:
        """Its model shall leave and can't before this is over."""
        return self.upstream is not None and self.model is not None and not self.model.queue.is_open

    @property
    def still(self) -> bool:
        return self._movement is not None and self._movement.still

    def look(self, now: float, *, left: int) -> None:
        """Once a second. `left`: bytes of the answer that the client hasn't taken."""
        model = self.model
        if model is None or self.upstream is None or not self.answer.status:
            return
        if self._movement is None:
            self._movement = Movement()
        patience = model.endpoint.limits.stream_idle_s
        moved = self.bytes_in + self.bytes_out - left
        if self._movement.look(now, moved=moved, unread=left > 0, patience_s=inf if patience is None else patience):
            model.stilled(self)

    def may_ask(self, endpoint: Endpoint) -> bool:
        """By the keys that are valid now: who has waited may have been shut out meanwhile."""
        keys = self.front.worker.keys
        if not keys.needed:
            return True
        key = keys.present(self._key)
        return key is not None and allows(key, endpoint)

    # -- the client's side -----------------------------------------------------------------------------------------------

    def begin(self, model: ServedModel | None, data: bytes) -> int:
        """`model` None: the body names it. `data` is what came behind the head; how much of it was used."""
        head = self._head
        assert head is not None
        if head.length is not None and head.length > self.front.worker.body_max:
            self._too_large()
            return 0
        self._at_once = model is not None or (head.length is not None and len(data) >= head.length)
        if model is None:
            self._payload = []
            used = self.client_data(data)
            if self.phase is Phase.READING and not self.body_complete and b"expect" in head.named:
                self.front.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return used
        used = self._take(data) if data else 0
        if self.phase is Phase.OVER:
            return used
        self._arrive(model, length=None)
        return used

    def client_data(self, data: bytes) -> int:
        """More of the body; how much of `data` belongs to it. A tunnel takes all."""
        if self.phase is Phase.TUNNEL:
            self.bytes_in += len(data)
            if self._movement is not None:
                self._movement.came(data)
            if self.upstream is not None:
                self.upstream.write(data)
            return len(data)
        used = self._take(data)
        if self.phase is Phase.READING and self._payload is not None and self.body_complete:
            self._read_whole()
        elif self.phase in (Phase.HELD, Phase.CONNECTING) and self._ahead_size() > _AHEAD_MAX:
            self.front.pause_reading()
        return used

    def client_gone(self) -> None:
        """It hung up: whatever is under way for it ends."""
        if self.phase is Phase.OVER:
            return
        phase, self.phase = self.phase, Phase.OVER
        self._let_go()
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        if self.model is not None and phase is not Phase.READING:
            self.model.hung_up(self)
        self._count(499)

    def client_paused(self, paused: bool) -> None:
        """It doesn't read fast enough."""
        if self.upstream is not None:
            if paused:
                self.upstream.pause_reading()
            else:
                self.upstream.resume_reading()

    def _take(self, data: bytes) -> int:
        body = self._body
        if body is None or body.done:
            return 0
        try:
            used = body.take(data, self._payload)
        except BadBody as e:
            self._spoiled(Refusal(400, "bad_body", str(e)))
            return len(data)
        self.bytes_in += used
        self._body_size += used
        if self._body_size > self.front.worker.body_max:
            self._too_large()
        elif self._payload is not None:
            if self.front.worker.budget.take_bytes(used):
                self._booked += used
            else:
                full = Refusal(429, "held_full", "too many bodies wait here", 1.0)
                if self.body_complete:
                    self.refuse(full)
                else:
                    self._spoiled(full)
        elif used:
            piece = data if used == len(data) else data[:used]
            if self.phase is Phase.SENT and self.upstream is not None:
                self._can_repeat = False
                self.upstream.write(piece)
            else:
                self._ahead.append(piece)
                self._book(used)
        return used

    def _book(self, size: int) -> None:
        self.front.worker.budget.book_bytes(size)
        self._booked += size

    def _let_go(self) -> None:
        """Nothing of the body is kept any more."""
        self.front.worker.budget.give_bytes(self._booked)
        self._booked = 0
        self._payload = None
        self._ahead.clear()

    def _spoiled(self, refusal: Refusal) -> None:
        """The body is not to be passed on; what was, was only a beginning, which no server takes for the whole."""
        self.front.close_after_answer()
        if self.phase in (Phase.SENT, Phase.TUNNEL):
            self.cut(refusal)
            return
        if self.phase is not Phase.READING and self.model is not None:
            self.model.hung_up(self)
        self.refuse(refusal)

    def _too_large(self) -> None:
        limit = self.front.worker.body_max
        self._spoiled(Refusal(413, "body_too_large", f"a body may have {limit} bytes here"))

    def _ahead_size(self) -> int:
        return sum(map(len, self._ahead))

    # -- to the model ----------------------------------------------------------------------------------------------------

    def _read_whole(self) -> None:
        """The body is complete: it says where to."""
        head = self._head
        assert head is not None
        payload = self._payload or []
        body = payload[0] if len(payload) == 1 else b"".join(payload)
        self._payload = None
        content_type = head.named.get(b"content-type", b"")
        try:
            name = naming.model_in(body, content_type)
        except naming.BadName as e:
            self.refuse(Refusal(400, "invalid_body", str(e)))
            return
        model = self.front.worker.model_named(name)
        if model is None or not self.may_ask(model.endpoint):
            self.refuse(Refusal(404, "model_not_found", f"the model {name[:200]!r} does not exist here"))
            return
        wanted = model.endpoint.rewrite_model
        if wanted is not None and wanted != name:
            body = naming.with_model(body, wanted)
        self._ahead.append(body)
        self._arrive(model, length=len(body))

    def _arrive(self, model: ServedModel, *, length: int | None) -> None:
        head = self._head
        assert head is not None
        self.model = model
        worker, front = self.front.worker, self.front
        drop = fields_with_keys(head.named) if worker.keys.needed else frozenset()
        traceparent = worker.tracing.begin(self, head) if worker.tracing is not None else None
        text = request_for_upstream(
            head,
            client=front.peer,
            secure=front.secure,
            request_id=self.request_id,
            drop=drop,
            length=length,
            traceparent=traceparent,
        )
        self._ahead.insert(0, text)
        self.held_size = len(text)  # the body is booked by itself, since it is kept until the answer begins
        wait = head.named.get(b"x-kybernate-max-wait")
        if wait is not None and not _SECONDS.fullmatch(wait):
            self.refuse(Refusal(400, "bad_header", "x-kybernate-max-wait is no number of seconds"))
            return
        self._head = None  # 2 KiB less while it is held
        self.phase = Phase.HELD
        max_wait = None if wait is None else float(wait)
        now = time.monotonic()
        if self._at_once:
            self.own_s = now - self.arrived
        model.arrive(self, now=now, max_wait=max_wait)
        if self.phase is Phase.HELD:
            self.waited = True
            if self._ahead_size() > _AHEAD_MAX and not self.body_complete:
                front.pause_reading()

    def forward(self) -> None:
        """Its turn has come."""
        model = self.model
        assert model is not None
        now = time.monotonic()
        opened = model.queue.opened
        if opened is not None and opened.waited_for is not None and self.arrived < model.opened_at:
            self._tier, self._swap_s = opened.waited_for, opened.seconds
        self.phase = Phase.CONNECTING
        self.forwarded = now
        model.connect(self, fresh=not self.body_complete)

    def connected(self, upstream: Upstream) -> None:
        self.phase = Phase.SENT
        self.upstream = upstream
        self.own_s += time.monotonic() - self.forwarded
        ahead = self._ahead
        data = ahead[0] if len(ahead) == 1 else b"".join(ahead)
        self._ahead = [data]
        front = self.front
        if front.write_paused:
            upstream.pause_reading()
        self.answer.extra = (
            b"x-request-id: %b\r\nx-kybernate-wait-ms: %d\r\nx-kybernate-swap-ms: %d\r\nx-kybernate-tier: %b\r\n"
            % (
                self.request_id,
                (self.forwarded - self.arrived) * 1000 if self.waited else 0,
                self._swap_s * 1000,
                self.tier.encode(),
            )
        )
        upstream.write(data)
        if not self.body_complete and not upstream.write_paused:
            front.resume_reading()

    def request_paused(self, paused: bool) -> None:
        if paused:
            self.front.pause_reading()
        else:
            self.front.resume_reading()

    def unreachable(self, why: str) -> None:
        self._fail(Refusal(502, "model_unreachable", f"no connection to the model's server: {why}", 1.0))

    # -- the answer ------------------------------------------------------------------------------------------------------

    def answer_data(self, data: bytes) -> None:
        answer = self.answer
        if self.phase is Phase.TUNNEL and self._movement is not None:
            self._movement.went(data)
        if not self.answered:
            self.answered = time.monotonic()
            self._let_go()
        if not answer.status and (self.front.closing or not self.body_complete):
            answer.close = True  # a body that is half read leaves no place where the next request could begin
        try:
            out = answer.feed(data)
        except BadAnswer as e:
            self._break_off(Refusal(502, "bad_answer", str(e)))
            return
        if out:
            self.bytes_out += len(out)
            self.front.write(out)
        if answer.done:
            self._finish()
        elif answer.tunnel and self.phase is Phase.SENT:
            self.phase = Phase.TUNNEL
            self._movement = Movement(websocket=self._is_websocket)
            self._movement.went(answer.early)
            self.front.begin_tunnel()

    def answer_end(self, error: Exception | None) -> None:
        """The model's side of the connection is gone."""
        upstream, self.upstream = self.upstream, None
        if self.phase is Phase.OVER or upstream is None:
            return
        if self.phase is Phase.TUNNEL or self.answer.end():
            self._finish()
        elif not self.answered and self._may_repeat(upstream):
            self._retries += 1
            self.phase = Phase.CONNECTING
            assert self.model is not None
            self.model.connect(self, fresh=False)
        else:
            why = f": {error}" if error is not None else ""
            self._break_off(
                Refusal(
                    502, "model_closed", f"the model's server closed the connection before its answer was whole{why}"
                )
            )

    def _may_repeat(self, upstream: Upstream) -> bool:
        if not self._can_repeat or upstream.used < 2 or self._retries >= _RETRIES_MAX:
            return False
        return upstream.nothing_accepted or (self._safe and not self._retries)

    def _finish(self) -> None:
        answer, front = self.answer, self.front
        complete = self.body_complete
        tunnel = self.phase is Phase.TUNNEL
        self.phase = Phase.OVER
        self._let_go()
        upstream, self.upstream = self.upstream, None
        keep = not answer.close and complete
        if upstream is not None:
            if tunnel or not complete:
                upstream.abort()
            elif self._has_body:
                keeps = keep and answer.reusable and not self._is_unread(upstream)
                front.keeps |= keeps
                upstream.release(reusable=keeps, only_for=front)
            else:
                upstream.release(reusable=answer.reusable)
        assert self.model is not None
        self.model.ended(self, service_s=None if tunnel else time.monotonic() - self.forwarded)
        self._count(answer.status)
        front.answered(keep=keep)

    def _is_unread(self, upstream: Upstream) -> bool:
        """Simple servers leave a body unread where they expect none, or when they refuse, and take it for the next request."""
        return self._safe or self.answer.status >= 400 or not upstream.all_accepted

    # -- the answers that are ours ---------------------------------------------------------------------------------------

    def refuse(self, refusal: Refusal) -> None:
        """Not, or no longer, in flight: this is the answer."""
        if self.phase is Phase.OVER:
            return
        self.phase = Phase.OVER
        self._let_go()
        self._count(refusal.status)
        self.front.answer_error(refusal, complete=self.body_complete, head_only=self.answer.head_only, exchange=self)

    def cut(self, refusal: Refusal) -> None:
        """In flight, to be ended at once."""
        self._break_off(refusal)

    def _fail(self, refusal: Refusal) -> None:
        if self.phase is Phase.OVER:
            return
        model = self.model
        self.refuse(refusal)
        if model is not None:
            model.ended(self, service_s=None)

    def _break_off(self, refusal: Refusal) -> None:
        """The model's connection is of no use any more. A client that has the head can only be cut off, so that it sees that
        something is missing."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        if not self.answer.status:
            self._fail(refusal)
            return
        self.phase = Phase.OVER
        self._let_go()
        assert self.model is not None
        self.model.ended(self, service_s=None)
        self._count(self.answer.status)
        self.front.worker.failed(refusal, self)
        self.front.cut()

    def _count(self, status: int) -> None:
        self.front.worker.over(self, status)
