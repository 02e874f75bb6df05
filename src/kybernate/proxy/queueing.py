"""One model's requests: who is forwarded, who is held, who is refused. A state machine: events in, effects out.

It knows no clock, no sockets and no requests, only tickets (any object that can be a key). Whoever calls it carries out the effects
it returns, in their order. `arrive` is on the way of every request, hence answers directly instead of by an effect.

A ticket is in one of: unknown, waiting, in flight. It leaves waiting by `Forward`, `Answer` or `hang_up`, exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from kybernate.model.messages import Limits, Open, Refuse, Status
from kybernate.proxy.held import HeldBudget, Waiting, WaitingList
from kybernate.proxy.refusals import Refusal

T = TypeVar("T")

RETRY_MAX_S: Final = 120.0
"""More than a client may be told: common ones don't try again at all then."""
_RETRY_UNKNOWN_S: Final = 5.0
"""What a client is told to wait when nobody knows: long enough not to hammer, short enough to be tried again."""


@dataclass(frozen=True, slots=True)
class Forward(Generic[T]):
    """Send it to the model. It is in flight until `ended` or `returned`."""

    ticket: T


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    ticket: T
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Cut(Generic[T]):
    """End it although it is in flight, then say `ended`."""

    ticket: T
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close connections to the model that nobody uses. `disconnected` is to be said when there is none left."""


@dataclass(frozen=True, slots=True)
class SayDrained:
    epoch: int


Effect = Forward[T] | Answer[T] | Cut[T] | Disconnect | SayDrained


class Capacity:
    """How many requests may be at a model and wait for it. All workers share its limits, and each keeps to its part, since they
    don't talk to each other."""

    def __init__(self, limits: Limits, *, workers: int) -> None:
        self._workers = workers
        self._share: int | None = None
        self.configure(limits)

    def configure(self, limits: Limits) -> None:
        self.limits = limits
        self.queue_max = -(-limits.queue // self._workers)
        self._apply()

    def share(self, concurrency: int) -> None:
        """So many of the requests at the model are this worker's part, by the agent's word."""
        self._share = concurrency
        self._apply()

    def _apply(self) -> None:
        self.in_flight_max: int | None = None
        """None: any number."""
        if self.limits.concurrency:
            own = max(1, self.limits.concurrency // self._workers)
            self.in_flight_max = own if self._share is None else self._share


class Draining:
    """Closes that the agent waits for: each is answered once nothing is in flight and nothing is connected."""

    def __init__(self) -> None:
        self._epochs: list[int] = []
        self._connected = False

    def begin(self, epoch: int) -> None:
        self._epochs.append(epoch)

    def forget(self) -> None:
        """Who asked for them is gone, or wants the model open again."""
        self._epochs.clear()

    def on_connected(self) -> None:
        """There is a connection to the model, or an attempt at one."""
        self._connected = True

    def on_disconnected(self) -> None:
        """There is none any more."""
        self._connected = False

    def take_drained(self) -> list[int]:
        """Nothing is in flight: epochs that are to be answered, once each."""
        if not self._epochs or self._connected:
            return []
        drained, self._epochs = self._epochs, []
        return drained


class Queue(Generic[T]):
    """`workers` share `limits`."""

    def __init__(self, model: str, limits: Limits, budget: HeldBudget, *, workers: int = 1) -> None:
        self.model = model
        self.is_open = False
        self.epoch = 0
        self.opened: Open | None = None
        """How it came, while it is open."""
        self.status: Status | None = None
        self.refusal: Refusal | None = None
        """What each request gets now."""
        self.waiting: WaitingList[T] = WaitingList(budget)
        self.in_flight: dict[T, None] = {}
        self.draining = Draining()
        self._capacity = Capacity(limits, workers=workers)

    # -- requests --------------------------------------------------------------------------------------------------------

    def arrive(self, ticket: T, *, now: float, size: int, max_wait: float | None = None) -> Refusal | bool:
        """True: forward it, it is in flight. False: it is held. `max_wait` (s) shortens the deadline."""
        if self.refusal is not None:
            return self.refusal
        capacity = self._capacity
        if self.is_open and not self.waiting:
            most = capacity.in_flight_max
            if most is None or len(self.in_flight) < most:
                self.in_flight[ticket] = None
                return True
        if len(self.waiting) >= capacity.queue_max:
            return Refusal(
                429, "queue_full", f"too many requests wait for model {self.model!r}", _retry_after_s(self.status)
            )
        hold = capacity.limits.hold_s if max_wait is None else min(max_wait, capacity.limits.hold_s)
        if hold <= 0:
            return _overdue(self.model, self.status, 0.0)
        if not self.waiting.hold(ticket, Waiting(now, now + hold, size)):
            return Refusal(
                429, "held_full", "too many requests wait here, of all models together", _retry_after_s(self.status)
            )
        return False

    def hang_up(self, ticket: T) -> list[Effect[T]]:
        """Its client is gone. One in flight has to be cut off by the caller."""
        if ticket in self.waiting:
            self.waiting.release(ticket)
            return []
        return self.ended(ticket)

    def ended(self, ticket: T) -> list[Effect[T]]:
        """One in flight is over, however."""
        if self.in_flight.pop(ticket, self) is self:
            return []
        if self.waiting or not self.is_open:
            return [*self._forward(), *self._drained()]
        return []

    def returned(self, ticket: T, *, now: float, since: float, size: int) -> list[Effect[T]]:
        """One in flight could not be sent, nothing of it was: it is held again, before all others, up to its old deadline."""
        if self.in_flight.pop(ticket, self) is self:
            return []
        if self.refusal is not None:
            return [Answer(ticket, self.refusal), *self._drained()]
        deadline = since + self._capacity.limits.hold_s
        if deadline <= now or not self.waiting.hold(ticket, Waiting(since, deadline, size), first=True):
            return [Answer(ticket, _overdue(self.model, self.status, now - since)), *self._drained()]
        return [*self._forward(), *self._drained()]

    def tick(self, now: float) -> list[Effect[T]]:
        """Answers what waited too long. To be called some times a second while `waiting` isn't empty."""
        return [
            Answer(ticket, _overdue(self.model, self.status, waited_s))
            for ticket, waited_s in self.waiting.take_overdue(now)
        ]

    # -- the agent's word ------------------------------------------------------------------------------------------------

    def open(self, message: Open) -> list[Effect[T]]:
        self.is_open = True
        self.epoch = message.epoch
        self.opened = message
        self.refusal = None
        self.draining.forget()
        return self._forward()

    def close(self, epoch: int, *, preempt: bool) -> list[Effect[T]]:
        self.is_open = False
        self.epoch = epoch
        self.draining.begin(epoch)
        effects: list[Effect[T]] = []
        if preempt:
            refusal = Refusal(
                502, "preempted", f"model {self.model!r} had to leave the GPU", _retry_after_s(self.status)
            )
            effects += [Cut(ticket, refusal) for ticket in self.in_flight]
        return [*effects, Disconnect(), *self._drained()]

    def share(self, concurrency: int) -> list[Effect[T]]:
        self._capacity.share(concurrency)
        return self._forward()

    def configure(self, limits: Limits) -> list[Effect[T]]:
        """New limits; deadlines of what is held stay."""
        self._capacity.configure(limits)
        return self._forward()

    def set_status(self, status: Status) -> None:
        """How its model stands; whatever was refused is held again."""
        self.status = status
        self.refusal = None

    def refuse(self, message: Refuse) -> list[Effect[T]]:
        return self._refuse_all(Refusal(message.status, "model_unavailable", message.message, message.retry_after_s))

    def fail(self, status: Status) -> None:
        """It can't be opened here. What waits goes on waiting: the agent finds that out too and says what follows."""
        self.status = status

    def remove(self) -> list[Effect[T]]:
        """The model is no longer configured."""
        self.is_open = False
        refusal = Refusal(404, "model_not_found", f"model {self.model!r} is no longer served here")
        return [*self._refuse_all(refusal), Disconnect()]

    def end(self) -> list[Effect[T]]:
        """The worker ends: nothing is held any more, what is in flight goes on."""
        return self._refuse_all(Refusal(503, "shutting_down", "this server is being stopped", 1.0))

    def disconnected(self) -> list[Effect[T]]:
        """There is no connection to the model any more, nor an attempt at one."""
        self.draining.on_disconnected()
        return self._drained()

    # -- what is known of it ---------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.in_flight

    # -- inside ----------------------------------------------------------------------------------------------------------

    def _forward(self) -> list[Effect[T]]:
        effects: list[Effect[T]] = []
        most = self._capacity.in_flight_max
        while self.waiting and self.is_open and self.refusal is None:
            if most is not None and len(self.in_flight) >= most:
                break
            ticket = self.waiting.take_first()
            self.in_flight[ticket] = None
            effects.append(Forward(ticket))
        return effects

    def _refuse_all(self, refusal: Refusal) -> list[Effect[T]]:
        self.refusal = refusal
        effects: list[Effect[T]] = []
        while self.waiting:
            effects.append(Answer(self.waiting.take_first(), refusal))
        return effects

    def _drained(self) -> list[Effect[T]]:
        return [] if self.in_flight else [SayDrained(epoch) for epoch in self.draining.take_drained()]


def _retry_after_s(status: Status | None) -> float:
    expected = status.expected_s if status is not None else None
    return min(RETRY_MAX_S, max(1.0, expected or _RETRY_UNKNOWN_S))


def _overdue(model: str, status: Status | None, waited_s: float) -> Refusal:
    message = f"model {model!r} was not there after {waited_s:.1f} s"
    return Refusal(503, "hold_timeout", message, _retry_after_s(status))
