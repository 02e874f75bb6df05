"""What tests of single parts share: services without a worker, a model without a server, a client without a connection."""

from __future__ import annotations

from typing import Any, cast

from kybernate.model.messages import Configure, Endpoint, Message, Open
from kybernate.proxy.backend import Backend, QueuedRequest
from kybernate.proxy.directory import Directory
from kybernate.proxy.heads import RequestHead, parse_request
from kybernate.proxy.held import HeldBudget
from kybernate.proxy.metrics import Meter
from kybernate.proxy.outcomes import Outcomes
from kybernate.proxy.phases import ConnectionPhase
from kybernate.proxy.request_record import RequestRecord
from kybernate.proxy.services import ClientRegistry, WorkerServices, request_ids
from kybernate.proxy.upstream import Upstream


class Counted:
    """What a meter was told."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.failures: list[tuple[str, str]] = []

    def count(self, record: RequestRecord) -> None:
        self.records.append(record)

    def fail(self, model: str, reason: str) -> None:
        self.failures.append((model, reason))


class Model(Backend):
    """Its connections are the test's."""

    def __init__(self, endpoint: Endpoint, budget: HeldBudget) -> None:
        self.sent: list[Message] = []
        self.to_connect: list[QueuedRequest] = []
        super().__init__(endpoint, budget, workers=1, send=self.sent.append, wake=lambda: None)

    def connect(self, request: QueuedRequest, *, fresh: bool) -> None:
        self.to_connect.append(request)

    def open(self, **how: Any) -> None:
        self.run(self.queue.open(Open(self.name, 1, None, **how)))


class Parts:
    """Of a worker that is configured like this."""

    def __init__(self, *endpoints: Endpoint, clients_max: int = 10, **settings: Any) -> None:
        self.counted = Counted()
        self.services = WorkerServices(
            directory=Directory(),
            clients=ClientRegistry(clients_max=clients_max),
            outcomes=Outcomes(meter=cast("Meter", self.counted)),
            budget=HeldBudget(requests=100, size_bytes=1 << 20),
            next_request_id=request_ids(),
        )
        self.configure(*endpoints, **settings)

    def configure(self, *endpoints: Endpoint, **settings: Any) -> None:
        message = Configure(endpoints=endpoints, **settings)
        self.services.directory.configure(message, lambda endpoint: Model(endpoint, self.services.budget))

    def model(self, name: str = "m") -> Model:
        return cast("Model", self.services.directory.backends[name])


class Heard:
    """A client's side that only listens."""

    peer = b"192.0.2.7"
    secure = False
    write_paused = False

    def __init__(self) -> None:
        self.phase = ConnectionPhase.OPEN
        self.written = b""
        self.kept: bool | None = None
        """Whether another request may follow; None: there is no answer yet."""
        self.was_cut = False
        self.reads = True

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def close_after_answer(self) -> None:
        self.phase = ConnectionPhase.LAST

    def begin_tunnel(self) -> None: ...

    def answered(self, *, keep: bool) -> None:
        self.kept = keep

    def cut(self) -> None:
        self.was_cut = True


class Line:
    """An upstream's connection as a request sees it."""

    def __init__(self) -> None:
        self.written = b""
        self.write_paused = False
        self.used = 1
        self.all_accepted = True
        self.released: bool | None = None
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def release(self, *, reusable: bool, only_for: object | None = None) -> None:
        self.released = reusable

    def abort(self) -> None:
        self.aborted = True

    @property
    def as_upstream(self) -> Upstream:
        return cast("Upstream", self)


def head_of(text: bytes) -> RequestHead:
    return parse_request(text + b"\r\n\r\n")
