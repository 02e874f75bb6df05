"""One request and its answer: from the head that was read to the last byte that was passed on.

    reading ──▶ held ──▶ connecting ──▶ sent ──▶ (tunnel) ──▶ over

A request whose body must name the model is read first, until it has (`intake.py`); any other body passes through as it comes
(`body.py`). The client's connection and the model's call in here; what is decided about waiting is the queue's. Once a byte of it
may have reached the model, a request isn't sent again.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from kybernate.model.messages import Endpoint, Key
from kybernate.proxy import answers
from kybernate.proxy.answering import AnswerReader, BadAnswer
from kybernate.proxy.backend import Backend
from kybernate.proxy.body import NotTaken, RequestBody
from kybernate.proxy.client_side import ClientSide
from kybernate.proxy.events import BegunAnswer
from kybernate.proxy.heads import RequestHead
from kybernate.proxy.intake import Intake
from kybernate.proxy.keys import allows
from kybernate.proxy.phases import ConnectionPhase, Phase
from kybernate.proxy.refusals import Refusal
from kybernate.proxy.request_record import RequestRecord, Swap
from kybernate.proxy.services import WorkerServices
from kybernate.proxy.upstream import Upstream
from kybernate.proxy.watch import Watch

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_SECONDS = re.compile(rb"\d{1,9}(?:\.\d{1,6})?")
_SAFE = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_RETRIES_MAX: Final = 3


class Request:
    """Made for each that isn't answered by a page of ours."""

    __slots__ = (
        "_cors",
        "_has_body",
        "_head_out",
        "_intake",
        "_is_websocket",
        "_key",
        "_own_s",
        "_page_allowed",
        "_retries",
        "_safe",
        "_services",
        "_span",
        "_swap",
        "_tier",
        "_watch",
        "answer",
        "answered",
        "arrived",
        "backend",
        "body",
        "bytes_in",
        "bytes_out",
        "client",
        "forwarded",
        "held_size",
        "phase",
        "request_id",
        "still",
        "upstream",
        "waited",
    )

    def __init__(
        self,
        client: ClientSide,
        services: WorkerServices,
        head: RequestHead,
        *,
        key: Key | None,
        request_id: bytes,
        cors: bytes = b"",
        page_allowed: bool = False,
    ) -> None:
        """`cors`: lines for the head of its answer, what they say to the browser it came from. `page_allowed`: it came from a page
        of another site that may ask."""
        self.client = client
        self.arrived = time.monotonic()
        self.request_id = request_id
        self.phase = Phase.READING
        self.backend: Backend | None = None
        self.upstream: Upstream | None = None
        self.held_size = 0
        self.forwarded = 0.0
        """When it was sent."""
        self.answered = 0.0
        """When the first byte of the answer came."""
        self.waited = False
        self.still = False
        """Its answer has begun, and nothing moved on it any more at the last look."""
        self.bytes_in = self.bytes_out = 0
        self.answer = AnswerReader(
            head_only=head.method == b"HEAD",
            minor=head.minor,
            keep_alive=head.keep_alive,
            upgrade=head.upgrade is not None,
        )
        self.body = RequestBody(head, services.budget, size_max=services.directory.rules.body_max)
        self._services = services
        self._intake: Intake | None = None
        """Until it has arrived."""
        self._key = key
        self._cors = cors
        self._page_allowed = page_allowed
        self._safe = head.method in _SAFE
        self._has_body = head.has_body
        self._is_websocket = head.upgrade == b"websocket"
        self._retries = 0
        self._own_s = 0.0
        """What it spent here without waiting for anybody: the client's body, its turn, the model."""
        self._tier = "warm"
        self._swap: Swap | None = None
        self._span: Span | None = None
        self._head_out = 0
        """Bytes of the answer's head; -1 if some of its body came with it."""
        self._watch: Watch | None = None

    def begin(self, head: RequestHead, backend: Backend | None, data: bytes) -> int:
        """`backend` None: the body names it. `data` is what came behind the head; how much of it was used."""
        intake = self._intake = Intake(self, self._services, head)
        return intake.begin(backend, data)

    def may_ask(self, endpoint: Endpoint) -> bool:
        """By the keys that are valid now: who has waited may have been shut out meanwhile."""
        keys = self._services.directory.rules.keys
        if not keys.needed:
            return True
        key = keys.present(self._key)
        return key is not None and allows(key, endpoint)

    def look(self, now: float, *, left: int) -> None:
        """Once a second. `left`: bytes of the answer that the client hasn't taken."""
        answer, backend, watch = self.answer, self.backend, self._watch
        if watch is None:
            watch = self._watch = Watch()
        if not answer.status and watch.beats(now, every_s=self._services.directory.rules.heartbeat_s):
            if isinstance(answer, BegunAnswer):
                self.client.write(answer.beat())
            elif self.phase in (Phase.HELD, Phase.CONNECTING):
                begun = self.answer = BegunAnswer(minor=answer.minor, keep_alive=not answer.close)
                self.client.write(begun.begin(b"x-request-id: %b\r\n%b" % (self.request_id, self._cors)))
        if backend is None or self.upstream is None:
            return
        begun_body = self.phase is Phase.TUNNEL or (answer.status != 0 and self.bytes_out > self._head_out)
        moved = self.bytes_in + self.bytes_out
        if watch.observe(now, moved=moved, left=left, begun=begun_body, limits=backend.endpoint.limits):
            self.still = watch.still
            backend.on_still_changed(self)

    # -- the client's side -----------------------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> int:
        """More of the body; how much of `data` belongs to it. A tunnel takes all."""
        if self.phase is Phase.TUNNEL:
            self.bytes_in += len(data)
            if self._watch is not None:
                self._watch.received(data)
            if self.upstream is not None:
                self.upstream.write(data)
            return len(data)
        used = self.take(data)
        if self._intake is not None:
            self._intake.on_body()
        elif self.phase in (Phase.HELD, Phase.CONNECTING) and self.body.is_much_ahead:
            self.client.pause_reading()
        return used

    def client_gone(self) -> None:
        """It hung up: whatever is under way for it ends."""
        if self.phase is Phase.OVER:
            return
        phase, self.phase = self.phase, Phase.OVER
        self._intake = None
        self.body.release()
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        if self.backend is not None and phase is not Phase.READING:
            self.backend.on_hung_up(self)
        self._account(499)

    def client_paused(self, paused: bool) -> None:
        """It doesn't read fast enough."""
        if self.upstream is not None:
            if paused:
                self.upstream.pause_reading()
            else:
                self.upstream.resume_reading()

    def take(self, data: bytes) -> int:
        """How much of it belongs to the body. What isn't to be passed on ends the request."""
        try:
            used = self.body.take(data, self.upstream if self.phase is Phase.SENT else None)
        except NotTaken as e:
            if e.whole:
                self.refuse(e.refusal)
            else:
                self.reject_body(e.refusal)
            return e.used
        self.bytes_in += used
        return used

    def reject_body(self, refusal: Refusal) -> None:
        """The body is not to be passed on; what was, was only a beginning, which no server takes for the whole."""
        self.client.close_after_answer()
        if self.phase in (Phase.SENT, Phase.TUNNEL):
            self.cut(refusal)
            return
        if self.phase is not Phase.READING and self.backend is not None:
            self.backend.on_hung_up(self)
        self.refuse(refusal)

    # -- to the model ----------------------------------------------------------------------------------------------------

    def hold(
        self,
        backend: Backend,
        head: bytes,
        *,
        at_once: bool,
        max_wait: bytes | None,
        beat_at: float | None,
        span: Span | None,
    ) -> None:
        """It goes to `backend`, with that head. See `Addressee`."""
        self._intake = None  # 2 KiB less while it is held
        self.backend = backend
        self._span = span
        if beat_at is not None:
            self._watch = Watch(beat_at=beat_at)
        self.body.ahead.insert(0, head)
        self.held_size = len(head)  # the body is booked by itself, since it is kept until the answer begins
        if max_wait is not None and not _SECONDS.fullmatch(max_wait):
            self.refuse(Refusal(400, "bad_header", "x-kybernate-max-wait is no number of seconds"))
            return
        self.phase = Phase.HELD
        now = time.monotonic()
        if at_once:
            self._own_s = now - self.arrived
        backend.arrive(self, now=now, max_wait=None if max_wait is None else float(max_wait))
        if self.phase is Phase.HELD:
            self.waited = True
            if not self.body.done and self.body.is_much_ahead:
                self.client.pause_reading()

    def forward(self) -> None:
        """Its turn has come."""
        backend = self.backend
        assert backend is not None
        opened = backend.queue.opened
        if opened is not None and opened.waited_for is not None and self.arrived < backend.opened_at:
            self._tier = opened.waited_for
            self._swap = Swap(backend.opened_at, opened.seconds, opened.victims)
        self.phase = Phase.CONNECTING
        self.forwarded = time.monotonic()
        backend.connect(self, fresh=not self.body.done)

    def connected(self, upstream: Upstream) -> None:
        self.phase = Phase.SENT
        self.upstream = upstream
        self._own_s += time.monotonic() - self.forwarded
        client = self.client
        if client.write_paused:
            upstream.pause_reading()
        extra = (
            b"x-request-id: %b\r\nx-kybernate-wait-ms: %d\r\nx-kybernate-swap-ms: %d\r\nx-kybernate-tier: %b\r\n%b"
            % (
                self.request_id,
                (self.forwarded - self.arrived) * 1000 if self.waited else 0,
                self._swap.seconds * 1000 if self._swap is not None else 0,
                self._tier.encode(),
                self._cors,
            )
        )
        self.answer.own_head(extra, owns_cors=self._page_allowed)
        upstream.write(self.body.take_ahead())
        if not self.body.done and not upstream.write_paused:
            client.resume_reading()

    def request_paused(self, paused: bool) -> None:
        if paused:
            self.client.pause_reading()
        else:
            self.client.resume_reading()

    def unreachable(self, why: str) -> None:
        self.cut(Refusal(502, "model_unreachable", f"no connection to the model's server: {why}", 1.0))

    # -- the answer ------------------------------------------------------------------------------------------------------

    def answer_data(self, data: bytes) -> None:
        answer, client = self.answer, self.client
        if self.phase is Phase.TUNNEL and self._watch is not None:
            self._watch.sent(data)
        if not self.answered:
            self.answered = time.monotonic()
            self.body.release()
        headless = not answer.status
        if headless and (client.phase is not ConnectionPhase.OPEN or not self.body.done):
            answer.close_behind()  # a body that is half read leaves no place where the next request could begin
        try:
            out = answer.feed(data)
        except BadAnswer as e:
            self.cut(Refusal(502, "bad_answer", str(e)))
            return
        if out:
            self.bytes_out += len(out)
            client.write(out)
        if headless:
            self._head_out = -1 if answer.body_began else self.bytes_out
        if answer.done:
            self._finish()
        elif answer.tunnel and self.phase is Phase.SENT:
            self.phase = Phase.TUNNEL
            watch = self._watch = self._watch or Watch()
            watch.begin_tunnel(websocket=self._is_websocket, early=answer.early)
            client.begin_tunnel()

    def answer_end(self, error: Exception | None) -> None:
        """The model's side of the connection is gone."""
        upstream, self.upstream = self.upstream, None
        if self.phase is Phase.OVER or upstream is None:
            return
        if self.phase is Phase.TUNNEL or self.answer.end():
            if out := self.answer.ending():
                self.client.write(out)
            self._finish()
        elif not self.answered and self.body.can_repeat and _may_repeat(upstream, self._retries, safe=self._safe):
            self._retries += 1
            self.phase = Phase.CONNECTING
            assert self.backend is not None
            self.backend.connect(self, fresh=False)
        else:
            why = f": {error}" if error is not None else ""
            what = "the model's server closed the connection before its answer was whole"
            self.cut(Refusal(502, "model_closed", f"{what}{why}"))

    def _finish(self) -> None:
        answer, client = self.answer, self.client
        complete = self.body.done
        tunnel = self.phase is Phase.TUNNEL
        self.phase = Phase.OVER
        self.body.release()
        upstream, self.upstream = self.upstream, None
        keep = not answer.close and complete
        if upstream is not None:
            if tunnel or not complete:
                upstream.abort()
            elif self._has_body:
                # Simple servers leave a body unread where they expect none, or when they refuse, and take it for the next request.
                unread = self._safe or answer.status >= 400 or not upstream.all_accepted
                keeps = keep and answer.reusable and not unread
                upstream.release(reusable=keeps, only_for=client)
            else:
                upstream.release(reusable=answer.reusable)
        assert self.backend is not None
        self.backend.ended(self, service_s=None if tunnel else time.monotonic() - self.forwarded)
        self._account(answer.status)
        client.answered(keep=keep)

    # -- the answers that are ours ---------------------------------------------------------------------------------------

    def refuse(self, refusal: Refusal) -> None:
        """Not, or no longer, in flight: this is the answer."""
        if self.phase is Phase.OVER:
            return
        self.phase = Phase.OVER
        self._intake = None
        self.body.release()
        self._account(refusal.status)
        self._services.outcomes.failed("" if self.backend is None else self.backend.name, refusal)
        answer, client = self.answer, self.client
        keep = self.body.done and not answer.close and client.phase is ConnectionPhase.OPEN
        if isinstance(answer, BegunAnswer):
            client.write(answer.failed(refusal))
        else:
            extra = b"%bx-request-id: %b\r\n" % (self._cors, self.request_id)
            if self.waited:
                extra += b"x-kybernate-wait-ms: %d\r\n" % ((time.monotonic() - self.arrived) * 1000)
            client.write(answers.error(refusal, extra=extra, close=not keep, head_only=answer.head_only))
        client.answered(keep=keep)

    def cut(self, refusal: Refusal) -> None:
        """In flight, to be ended at once: the model's connection is of no use any more. A client that has the head can only be cut
        off, so that it sees that something is missing."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        if self.phase is Phase.OVER:
            return
        backend = self.backend
        if not self.answer.status:
            self.refuse(refusal)
            if backend is not None:
                backend.ended(self, service_s=None)
            return
        self.phase = Phase.OVER
        self.body.release()
        assert backend is not None
        backend.ended(self, service_s=None)
        self._account(self.answer.status)
        self._services.outcomes.failed(backend.name, refusal)
        self.client.cut()

    def _account(self, status: int) -> None:
        """It is over. 499: its client hung up."""
        backend, span = self.backend, self._span
        self._span = None
        record = RequestRecord(
            self.request_id,
            "" if backend is None else backend.name,
            status,
            self._tier,
            self.arrived,
            self.forwarded,
            self.answered,
            time.monotonic(),
            self.waited,
            self._own_s,
            self.bytes_in,
            self.bytes_out,
            self._swap,
        )
        self._services.outcomes.over(record, span)


def _may_repeat(upstream: Upstream, retries: int, *, safe: bool) -> bool:
    """Whether a request whose connection broke before the first byte of its answer may be sent once more."""
    if upstream.used < 2 or retries >= _RETRIES_MAX:
        return False
    return upstream.nothing_accepted or (safe and not retries)
