"""One request and its answer: from the head that was read to the last byte that was passed on.

    reading ──▶ held ──▶ connecting ──▶ sent ──▶ (tunnel) ──▶ over

A request whose body must name the model is read first, until it has (`addressing.py` has other bodies than JSON); any other body
passes through as it comes (`body.py`). The client's connection and the model's call in here; what is decided about waiting is the
queue's. Once a byte of it may have reached the model, a request isn't sent again.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from kybernate.model.messages import Endpoint, Key
from kybernate.proxy.addressing import Reader, Unaddressed, reader_of
from kybernate.proxy.answering import AnswerReader, BadAnswer
from kybernate.proxy.backend import ServedModel
from kybernate.proxy.body import NotTaken, RequestBody, too_large
from kybernate.proxy.events import BegunAnswer
from kybernate.proxy.heads import RequestHead, request_for_upstream
from kybernate.proxy.keys import allows, fields_with_keys
from kybernate.proxy.phases import Phase
from kybernate.proxy.queueing import Refusal
from kybernate.proxy.upstream import Upstream
from kybernate.proxy.watching import Watch

if TYPE_CHECKING:
    from kybernate.proxy.client_connection import Front

_SECONDS = re.compile(rb"\d{1,9}(?:\.\d{1,6})?")
_SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_RETRIES_MAX: Final = 3


class Exchange:
    """Made by the front for each request that isn't answered by a page."""

    __slots__ = (
        "_at_once",
        "_has_body",
        "_head",
        "_head_out",
        "_is_websocket",
        "_key",
        "_reader",
        "_retries",
        "_safe",
        "_swap_s",
        "_tier",
        "_watch",
        "answer",
        "answered",
        "arrived",
        "body",
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
        self.body = RequestBody(head, front.worker.budget, size_max=front.worker.body_max)
        self._head: RequestHead | None = head
        self._key = key
        self._reader: Reader | None = None
        """Of a body that names its model."""
        self._at_once = False
        """Nothing had to be waited for to know where it goes."""
        self._safe = head.method in _SAFE
        self._has_body = head.has_body
        self._is_websocket = head.upgrade == b"websocket"
        self._retries = 0
        self._tier: str | None = None
        self._swap_s = 0.0
        self._head_out = 0
        """Bytes of the answer's head; -1 if some of its body came with it."""
        self._watch: Watch | None = None

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
    def over(self) -> bool:
        return self.phase is Phase.OVER

    @property
    def head(self) -> RequestHead:
        """Until it arrives at its model."""
        assert self._head is not None
        return self._head

    @property
    def is_in_the_way(self) -> bool:
        """Its model shall leave and can't before this is over."""
        return self.upstream is not None and self.model is not None and not self.model.queue.is_open

    @property
    def still(self) -> bool:
        return self._watch is not None and self._watch.still

    def look(self, now: float, *, left: int) -> None:
        """Once a second. `left`: bytes of the answer that the client hasn't taken."""
        self._watched().look(self, now, left=left)

    @property
    def has_begun(self) -> bool:
        """The first byte of its answer's body is out: before that its model may well be reading a long prompt."""
        return self.phase is Phase.TUNNEL or (self.answer.status != 0 and self.bytes_out > self._head_out)

    def _watched(self) -> Watch:
        if self._watch is None:
            self._watch = Watch()
        return self._watch

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
            self._spoiled(too_large(self.front.worker.body_max))
            return 0
        self._at_once = model is not None or (head.length is not None and len(data) >= head.length)
        if model is None:
            return self._begin_unnamed(head, data)
        used = self._take(data) if data else 0
        if self.phase is Phase.OVER:
            return used
        self.arrive(model, length=None)
        return used

    def _begin_unnamed(self, head: RequestHead, data: bytes) -> int:
        self.body.content = []
        expects = (
            head.named.pop(b"expect", None) is not None
        )  # of us: it has to be read before anybody else may be asked
        try:
            self._reader = reader_of(head)
        except Unaddressed as e:
            self._spoiled(e.refusal)
            return 0
        used = self.client_data(data)
        if expects and not self.body.done and self.phase is not Phase.OVER:
            self.front.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return used

    def client_data(self, data: bytes) -> int:
        """More of the body; how much of `data` belongs to it. A tunnel takes all."""
        if self.phase is Phase.TUNNEL:
            self.bytes_in += len(data)
            self._watched().came(data)
            if self.upstream is not None:
                self.upstream.write(data)
            return len(data)
        used = self._take(data)
        if self.phase is Phase.READING and self._reader is not None:
            self._reader.came(self)
        elif self.phase in (Phase.HELD, Phase.CONNECTING) and self.body.is_much_ahead:
            self.front.pause_reading()
        return used

    def client_gone(self) -> None:
        """It hung up: whatever is under way for it ends."""
        if self.phase is Phase.OVER:
            return
        phase, self.phase = self.phase, Phase.OVER
        self.body.let_go()
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
        try:
            used = self.body.take(data, self.upstream if self.phase is Phase.SENT else None)
        except NotTaken as e:
            if e.whole:
                self.refuse(e.refusal)
            else:
                self._spoiled(e.refusal)
            return e.used
        self.bytes_in += used
        return used

    def _spoiled(self, refusal: Refusal) -> None:
        """The body is not to be passed on; what was, was only a beginning, which no server takes for the whole."""
        self.front.close_after_answer()
        if self.phase in (Phase.SENT, Phase.TUNNEL):
            self.cut(refusal)
            return
        if self.phase is not Phase.READING and self.model is not None:
            self.model.hung_up(self)
        self.refuse(refusal)

    # -- to the model ----------------------------------------------------------------------------------------------------

    def turn_down(self, refusal: Refusal) -> None:
        """Before it went anywhere, perhaps while its body is still to come."""
        if self.body.done:
            self.refuse(refusal)
        else:
            self._spoiled(refusal)

    def expect_events(self, *, every_s: float) -> None:
        """Its client wants a stream of events, and is told so often that it is waited for."""
        self._watched().expect_events(first_at=self.arrived + every_s)

    def arrive(self, model: ServedModel, *, length: int | None, decoded: bool = False) -> None:
        """It goes to this model. `length` is that of its body, where that is another than the client's; `decoded`: it is no longer
        in the coding that it came in."""
        head = self._head
        assert head is not None
        self.model = model
        worker, front = self.front.worker, self.front
        drop = fields_with_keys(head.named) if worker.keys.needed else frozenset()
        if decoded:
            drop |= {b"content-encoding"}
        if self._watch is not None and self._watch.expects_events:
            drop |= {b"accept-encoding"}  # its answer may be begun here, as plain text
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
        self.body.ahead.insert(0, text)
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
            if not self.body.done and self.body.is_much_ahead:
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
        model.connect(self, fresh=not self.body.done)

    def connected(self, upstream: Upstream) -> None:
        self.phase = Phase.SENT
        self.upstream = upstream
        self.own_s += time.monotonic() - self.forwarded
        ahead = self.body.ahead
        data = ahead[0] if len(ahead) == 1 else b"".join(ahead)
        self.body.ahead = [data]
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
        self.answer.extra += front.cors
        self.answer.owns_cors = front.page_allowed
        upstream.write(data)
        if not self.body.done and not upstream.write_paused:
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
        if self.phase is Phase.TUNNEL:
            self._watched().went(data)
        if not self.answered:
            self.answered = time.monotonic()
            self.body.let_go()
        headless = not answer.status
        if headless and (self.front.closing or not self.body.done):
            answer.close = True  # a body that is half read leaves no place where the next request could begin
        try:
            out = answer.feed(data)
        except BadAnswer as e:
            self._break_off(Refusal(502, "bad_answer", str(e)))
            return
        if out:
            self.bytes_out += len(out)
            self.front.write(out)
        if headless:
            self._head_out = -1 if answer.body_began else self.bytes_out
        if answer.done:
            self._finish()
        elif answer.tunnel and self.phase is Phase.SENT:
            self.phase = Phase.TUNNEL
            self._watched().begin_tunnel(websocket=self._is_websocket, early=answer.early)
            self.front.begin_tunnel()

    def answer_end(self, error: Exception | None) -> None:
        """The model's side of the connection is gone."""
        upstream, self.upstream = self.upstream, None
        if self.phase is Phase.OVER or upstream is None:
            return
        if self.phase is Phase.TUNNEL or self.answer.end():
            if out := self.answer.ending():
                self.front.write(out)
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
        if not self.body.can_repeat or upstream.used < 2 or self._retries >= _RETRIES_MAX:
            return False
        return upstream.nothing_accepted or (self._safe and not self._retries)

    def _finish(self) -> None:
        answer, front = self.answer, self.front
        complete = self.body.done
        tunnel = self.phase is Phase.TUNNEL
        self.phase = Phase.OVER
        self.body.let_go()
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
        self.body.let_go()
        self._count(refusal.status)
        if isinstance(self.answer, BegunAnswer):
            self._fail_as_event(self.answer, refusal)
            return
        self.front.answer_error(refusal, complete=self.body.done, head_only=self.answer.head_only, exchange=self)

    def _fail_as_event(self, answer: BegunAnswer, refusal: Refusal) -> None:
        self.front.worker.failed(refusal, self)
        self.front.write(answer.failed(refusal))
        self.front.answered(keep=self.body.done and not answer.close)

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
        self.body.let_go()
        assert self.model is not None
        self.model.ended(self, service_s=None)
        self._count(self.answer.status)
        self.front.worker.failed(refusal, self)
        self.front.cut()

    def _count(self, status: int) -> None:
        self.front.worker.over(self, status)
