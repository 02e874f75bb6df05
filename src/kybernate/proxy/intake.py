"""A request until it is known which model it is for. JSON, a form and what is compressed is read for that (`addressing.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kybernate.model.messages import Endpoint
from kybernate.proxy import model_field
from kybernate.proxy.addressing import Reader, Unaddressed, reader_of
from kybernate.proxy.backend import Backend
from kybernate.proxy.body import RequestBody
from kybernate.proxy.client_side import ClientSide
from kybernate.proxy.heads import RequestHead, request_for_upstream
from kybernate.proxy.keys import fields_with_keys
from kybernate.proxy.phases import Phase
from kybernate.proxy.refusals import Refusal, too_large
from kybernate.proxy.services import WorkerServices

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class Addressee(Protocol):
    """The request: what it does once it is known where it goes, or that it goes nowhere."""

    @property
    def client(self) -> ClientSide: ...

    @property
    def body(self) -> RequestBody: ...

    @property
    def request_id(self) -> bytes: ...

    @property
    def arrived(self) -> float: ...

    @property
    def phase(self) -> Phase: ...

    def may_ask(self, endpoint: Endpoint) -> bool: ...

    def take(self, data: bytes) -> int: ...

    def reject_body(self, refusal: Refusal) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...

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
        """It goes to `backend`, with that head.

        Args:
            at_once: nothing had to be waited for to know where it goes.
            max_wait: the client's own limit, in seconds, as it was sent.
            beat_at: its client hears from then on (monotonic clock) that it is waited for.
        """


class Intake:
    """Of one request; gone once that has arrived."""

    __slots__ = ("_at_once", "_beat_at", "_reader", "_request", "_services", "body", "head")

    def __init__(self, request: Addressee, services: WorkerServices, head: RequestHead) -> None:
        self.head = head
        self.body = request.body
        self._request = request
        self._services = services
        self._reader: Reader | None = None
        """Of a body that names its model."""
        self._at_once = False
        """Nothing had to be waited for to know where it goes."""
        self._beat_at: float | None = None
        """When its client is told for the first time that it is waited for."""

    @property
    def body_max(self) -> int:
        return self._services.directory.rules.body_max

    @property
    def over(self) -> bool:
        return self._request.phase is Phase.OVER

    def begin(self, backend: Backend | None, data: bytes) -> int:
        """`backend` None: the body names it. `data` is what came behind the head; how much of it was used."""
        head, request = self.head, self._request
        length = head.length
        if length is not None and length > (body_max := self._services.directory.rules.body_max):
            request.reject_body(too_large(body_max))
            return 0
        self._at_once = backend is not None or (length is not None and len(data) >= length)
        if backend is None:
            return self._begin_unnamed(data)
        used = request.take(data) if data else 0
        if request.phase is not Phase.OVER:
            self.arrive(backend, length=None)
        return used

    def _begin_unnamed(self, data: bytes) -> int:
        head, request = self.head, self._request
        self.body.keep_whole()
        # It is asked of us: the body has to be read before anybody else may be asked.
        expects = head.named.pop(b"expect", None) is not None
        try:
            self._reader = reader_of(head)
        except Unaddressed as e:
            request.reject_body(e.refusal)
            return 0
        used = request.take(data)
        self.on_body()
        if expects and not self.body.done and request.phase is not Phase.OVER:
            request.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return used

    def on_body(self) -> None:
        """There is more of the body."""
        if self._reader is not None and self._request.phase is not Phase.OVER:
            self._reader.on_body(self)

    # -- for the body's reader -------------------------------------------------------------------------------------------

    def find(self, name: str) -> Backend | None:
        backend = self._services.directory.backend_named(name)
        return backend if backend is not None and self._request.may_ask(backend.endpoint) else None

    def look_for_events(self, content: bytes) -> None:
        every_s = self._services.directory.rules.heartbeat_s
        if every_s is not None and model_field.wants_events(content):
            self._beat_at = self._request.arrived + every_s

    def reject(self, refusal: Refusal) -> None:
        if self.body.done:
            self._request.refuse(refusal)
        else:
            self._request.reject_body(refusal)

    def refuse(self, refusal: Refusal) -> None:
        self._request.refuse(refusal)

    def arrive(self, backend: Backend, *, length: int | None, decoded: bool = False) -> None:
        head, request, services = self.head, self._request, self._services
        named = head.named
        drop: frozenset[bytes] = fields_with_keys(named) if services.directory.rules.keys.needed else frozenset()
        if decoded:
            drop |= {b"content-encoding"}
        if self._beat_at is not None:
            drop |= {b"accept-encoding"}  # its answer may be begun here, as plain text
        span, traceparent = None, None
        if (tracing := services.outcomes.tracing) is not None:
            span, traceparent = tracing.begin(head, request_id=request.request_id, arrived=request.arrived)
        client = request.client
        text = request_for_upstream(
            head,
            client=client.peer,
            secure=client.secure,
            request_id=request.request_id,
            drop=drop,
            length=length,
            traceparent=traceparent,
        )
        max_wait = named.get(b"x-kybernate-max-wait")
        request.hold(backend, text, at_once=self._at_once, max_wait=max_wait, beat_at=self._beat_at, span=span)
