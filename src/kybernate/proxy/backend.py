"""One model as the worker serves it: its queue's effects carried out, its connections, and what the agent is told of its load."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from kybernate.model.messages import Close, Drained, Endpoint, Load, Message, Open, Refuse, Share, Status
from kybernate.proxy.held import HeldBudget
from kybernate.proxy.namespace_dialer import NamespaceDialer
from kybernate.proxy.pool import Pool
from kybernate.proxy.queueing import Answer, Cut, Disconnect, Effect, Forward, Queue, SayDrained
from kybernate.proxy.refusals import Refusal
from kybernate.proxy.upstream import User

LOADS_EVERY_S: Final = 0.05
_AVERAGE_OVER: Final = 16
"""Requests over which a model's own time is averaged."""


class QueuedRequest(User, Protocol):
    """What a model needs to know of a request."""

    @property
    def arrived(self) -> float:
        """When, by the monotonic clock."""

    @property
    def held_size(self) -> int:
        """Bytes that it takes while it is held, without its body."""

    @property
    def still(self) -> bool:
        """Its answer has begun, and nothing moves on it any more."""

    def forward(self) -> None:
        """Its turn has come; to be sent on a connection of the model."""

    def refuse(self, refusal: Refusal) -> None: ...

    def cut(self, refusal: Refusal) -> None: ...

    def may_ask(self, endpoint: Endpoint) -> bool:
        """Its key allows that, by what is configured now."""


class Backend:
    """Owns the queue and the pool. `send` sends to the agent; `wake` sees to it that `tick` is called."""

    def __init__(
        self,
        endpoint: Endpoint,
        budget: HeldBudget,
        *,
        workers: int,
        send: Callable[[Message], None],
        wake: Callable[[], None],
    ) -> None:
        self.endpoint = endpoint
        self.health = _health(endpoint)
        self.name = endpoint.model
        self.queue: Queue[QueuedRequest] = Queue(endpoint.model, endpoint.limits, budget, workers=workers)
        self.pool: Pool[QueuedRequest] | None = None
        self.opened_at = 0.0
        self._send = send
        self._wake = wake
        self._begun = 0
        self._ended = 0
        self._service_s: float | None = None
        self._still = 0
        """Requests in flight that are."""
        self._dirty = False
        self._sent_at = 0.0
        self._sent_busy = (False, False)

    # -- requests --------------------------------------------------------------------------------------------------------

    def arrive(self, request: QueuedRequest, *, now: float, max_wait: float | None) -> None:
        self._begun += 1
        verdict = self.queue.arrive(request, now=now, size=request.held_size, max_wait=max_wait)
        if verdict is True:
            request.forward()
        elif verdict is not False:
            self._ended += 1
            request.refuse(verdict)
        self._changed(now)

    def connect(self, request: QueuedRequest, *, fresh: bool) -> None:
        """`fresh`: the request can't be sent twice."""
        if self.pool is None:
            request.unreachable("it is not open")
        else:
            self.pool.acquire(request, fresh=fresh)

    def ended(self, request: QueuedRequest, *, service_s: float | None) -> None:
        """One in flight is over. `service_s`: what the model took, if it answered in whole."""
        self._still -= request.still
        self._ended += 1
        if service_s is not None:
            average = self._service_s
            self._service_s = service_s if average is None else average + (service_s - average) / _AVERAGE_OVER
        if effects := self.queue.ended(request):
            self.run(effects)
        self._changed(time.monotonic())

    def on_hung_up(self, request: QueuedRequest) -> None:
        self._ended += 1
        self._still -= request.still
        if self.pool is not None:
            self.pool.withdraw(request)
        self.run(self.queue.hang_up(request))
        self._changed(time.monotonic())

    def on_still_changed(self, request: QueuedRequest) -> None:
        """It has become still, or moves again."""
        self._still += 1 if request.still else -1
        self._changed(time.monotonic())
        if request.still and not self.queue.is_open:
            _cut_still(self.name, request)

    # -- the agent's word ------------------------------------------------------------------------------------------------

    def on_message(self, message: Open | Close | Share | Status | Refuse) -> None:
        now = time.monotonic()
        match message:
            case Open():
                self._open(message, now)
            case Close():
                self.run(self.queue.close(message.epoch, preempt=message.preempt))
                for request in [each for each in self.queue.in_flight if each.still]:
                    _cut_still(self.name, request)
            case Share():
                self.run(self.queue.share(message.concurrency))
            case Status():
                self.queue.set_status(message)
            case Refuse():
                self.run(self.queue.refuse(message))
        self._changed(now)

    def configure(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.health = _health(endpoint)
        self.run(self.queue.configure(endpoint.limits))

    def remove(self) -> None:
        self.run(self.queue.remove())
        self._retire_pool()

    def end(self) -> None:
        self.run(self.queue.end())

    def run(self, effects: list[Effect[QueuedRequest]]) -> None:
        for effect in effects:
            match effect:
                case Forward(ticket):
                    ticket.forward()
                case Answer(ticket, refusal):
                    self._ended += 1
                    ticket.refuse(refusal)
                case Cut(ticket, refusal):
                    # One that waits for a connection: nothing was sent, so it is held again.
                    if self.pool is not None and self.pool.withdraw(ticket):
                        self._put_back(ticket)
                    else:
                        ticket.cut(refusal)
                case Disconnect():
                    self._disconnect()
                case SayDrained(epoch):
                    self._retire_pool()  # a network namespace that is kept open outlives its workload
                    self._send(Drained(self.name, epoch))

    def refuse_strangers(self) -> None:
        """The keys have changed: what is held with one that isn't valid any more, or not for this model, reaches no model."""
        for request in [each for each in self.queue.waiting if not each.may_ask(self.endpoint)]:
            self._ended += 1
            self.run(self.queue.hang_up(request))
            request.refuse(Refusal(401, "invalid_api_key", "the API key is not valid any more"))
            self._changed(time.monotonic())

    # -- time ------------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """To be called every LOADS_EVERY_S while it returns True."""
        if self.queue.waiting:
            self.run(self.queue.tick(now))
        if self._dirty and now - self._sent_at >= LOADS_EVERY_S:
            self._send(self.load(now))
        return self._dirty or bool(self.queue.waiting)

    def load(self, now: float) -> Load:
        queue = self.queue
        oldest = queue.waiting.oldest_since()
        self._dirty = False
        self._sent_at = now
        self._sent_busy = (bool(queue.waiting), bool(queue.in_flight))
        return Load(
            model=self.name,
            epoch=queue.epoch,
            waiting=len(queue.waiting),
            oldest_s=None if oldest is None else now - oldest,
            in_flight=len(queue.in_flight),
            begun=self._begun,
            ended=self._ended,
            service_s=self._service_s,
            still=self._still,
        )

    # -- inside ----------------------------------------------------------------------------------------------------------

    def _changed(self, now: float) -> None:
        """Somebody who waits where nobody did is told at once: the switch begins with it. All else comes at its time."""
        self._dirty = True
        self._wake()
        waits, flies = bool(self.queue.waiting), bool(self.queue.in_flight)
        if waits != self._sent_busy[0] or (flies != self._sent_busy[1] and now - self._sent_at >= LOADS_EVERY_S):
            self._send(self.load(now))

    def _open(self, message: Open, now: float) -> None:
        try:
            dialer = NamespaceDialer(network_pid=message.network_pid, port=self.endpoint.port)
        except OSError as e:
            # Its process is gone; the agent will find that out too and say what follows.
            self.queue.fail(Status(self.name, f"unreachable: {e}"))
            return
        old = self.pool
        if old is not None and (old.dialer.identity, old.dialer.port) == (dialer.identity, dialer.port):
            dialer.close()
            old.refill()
        else:
            self.pool = Pool(dialer, connected=self.queue.draining.on_connected, disconnected=self._disconnected)
            if old is not None:
                for request in old.withdraw_all():
                    self.pool.acquire(request)
                old.retire()
        self.opened_at = now
        self.run(self.queue.open(message))

    def _disconnect(self) -> None:
        pool = self.pool  # which may be retired below, where the last one is put back
        if pool is None:
            return
        for request in reversed(pool.withdraw_all()):
            self._put_back(request)
        pool.drain()

    def _retire_pool(self) -> None:
        if self.pool is not None:
            self.pool.retire()
            self.pool = None

    def _disconnected(self) -> None:
        if self.pool is None or not self.pool.size:
            self.run(self.queue.disconnected())

    def _put_back(self, request: QueuedRequest) -> None:
        self.run(self.queue.returned(request, now=time.monotonic(), since=request.arrived, size=request.held_size))


def _health(endpoint: Endpoint) -> bytes | None:
    return None if endpoint.health is None else endpoint.health.encode()


def _cut_still(model: str, request: QueuedRequest) -> None:
    request.cut(Refusal(502, "stream_idle", f"nothing moved any more, and model {model!r} had to leave the GPU"))
