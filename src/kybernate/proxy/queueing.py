"""One model's requests: who is forwarded, who is held, who is refused. A state machine: events in, effects out.

It knows no clock, no sockets and no requests, only tickets (any object that can be a key). Whoever calls it carries out the effects
it returns, in their order. `arrive` is on the way of every request, hence answers directly instead of by an effect.

A ticket is in one of: unknown, waiting, in flight. It leaves waiting by `Forward`, `Answer` or `hang_up`, exactly once.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from kybernate.model.messages import Limits, Open, Refuse, Status

T = TypeVar("T")

RETRY_MAX_S: Final = 120.0
"""More than a client may be told: common ones don't try again at all then."""
_RETRY_UNKNOWN_S: Final = 5.0
"""What a client is told to wait when nobody knows: long enough not to hammer, short enough to be tried again."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that isn't the model's."""

    status: int
    code: str
    message: str
    retry_after_s: float | None = None


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


class HeldBudget:
    """What one worker may hold, all models together."""

    def __init__(self, *, requests: int, size_bytes: int) -> None:
        self.requests_max = requests
        self.bytes_max = size_bytes
        self.requests = 0
        self.bytes = 0

    def take(self, size_bytes: int) -> bool:
        if self.requests >= self.requests_max or self.bytes + size_bytes > self.bytes_max:
            return False
        self.requests += 1
        self.bytes += size_bytes
        return True

    def give(self, size_bytes: int) -> None:
        self.requests -= 1
        self.bytes -= size_bytes

    def take_bytes(self, size_bytes: int) -> bool:
        """For a body that is still being read."""
        if self.bytes + size_bytes > self.bytes_max:
            return False
        self.bytes += size_bytes
        return True

    def book_bytes(self, size_bytes: int) -> None:
        """They are here already; whoever comes next has to do with what is left."""
        self.bytes += size_bytes

    def give_bytes(self, size_bytes: int) -> None:
        self.bytes -= size_bytes


@dataclass(slots=True)
class _Waiting:
    since: float
    deadline: float
    size: int


class Queue(Generic[T]):
    """`workers` share `limits`: each keeps to its part, since they don't talk to each other."""

    def __init__(self, model: str, limits: Limits, budget: HeldBudget, *, workers: int = 1) -> None:
        self.model = model
        self.is_open = False
        self.epoch = 0
        self.opened: Open | None = None
        """How it came, while it is open."""
        self.status: Status | None = None
        self.waiting: OrderedDict[T, _Waiting] = OrderedDict()
        self.in_flight: dict[T, None] = {}
        self._budget = budget
        self._workers = workers
        self._limits = limits
        self._share: int | None = None
        self._refusal: Refusal | None = None
        self._closing: list[int] = []
        """Epochs of closes that aren't answered yet."""
        self._connected = False
        self._deadlines: list[tuple[float, int, T]] = []
        self._sequence = 0

    # -- requests --------------------------------------------------------------------------------------------------------

    def arrive(self, ticket: T, *, now: float, size: int, max_wait: float | None = None) -> Refusal | bool:
        """True: forward it, it is in flight. False: it is held. `max_wait` (s) shortens the deadline."""
        if self._refusal is not None:
            return self._refusal
        if self.is_open and not self.waiting and self._has_room():
            self.in_flight[ticket] = None
            return True
        if len(self.waiting) >= self._queue_max:
            return Refusal(429, "queue_full", f"too many requests wait for model {self.model!r}", self.retry_after_s())
        hold = self._limits.hold_s if max_wait is None else min(max_wait, self._limits.hold_s)
        if hold <= 0:
            return self._overdue(0.0)
        if not self._budget.take(size):
            return Refusal(
                429, "held_full", "too many requests wait here, of all models together", self.retry_after_s()
            )
        self.waiting[ticket] = _Waiting(now, now + hold, size)
        self._remember(now + hold, ticket)
        return False

    def hang_up(self, ticket: T) -> list[Effect[T]]:
        """Its client is gone. One in flight has to be cut off by the caller."""
        if ticket in self.waiting:
            self._forget(ticket)
            return []
        return self.ended(ticket)

    def ended(self, ticket: T) -> list[Effect[T]]:
        """One in flight is over, however."""
        if self.in_flight.pop(ticket, self) is self:
            return []
        if self.waiting or self._closing:
            return [*self._forward(), *self._drained()]
        return []

    def returned(self, ticket: T, *, now: float, since: float, size: int) -> list[Effect[T]]:
        """One in flight could not be sent, nothing of it was: it is held again, before all others, up to its old deadline."""
        if self.in_flight.pop(ticket, self) is self:
            return []
        if self._refusal is not None:
            return [Answer(ticket, self._refusal), *self._drained()]
        deadline = since + self._limits.hold_s
        if deadline <= now or not self._budget.take(size):
            return [Answer(ticket, self._overdue(now - since)), *self._drained()]
        self.waiting[ticket] = _Waiting(since, deadline, size)
        self.waiting.move_to_end(ticket, last=False)
        self._remember(deadline, ticket)
        return [*self._forward(), *self._drained()]

    def tick(self, now: float) -> list[Effect[T]]:
        """Answers what waited too long. To be called some times a second while `waiting` isn't empty."""
        effects: list[Effect[T]] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, ticket = heapq.heappop(self._deadlines)
            entry = self.waiting.get(ticket)
            if entry is not None and entry.deadline == deadline:
                self._forget(ticket)
                effects.append(Answer(ticket, self._overdue(now - entry.since)))
        if not self.waiting:
            self._deadlines.clear()
        return effects

    # -- the agent's word ------------------------------------------------------------------------------------------------

    def open(self, message: Open) -> list[Effect[T]]:
        self.is_open = True
        self.epoch = message.epoch
        self.opened = message
        self._refusal = None
        self._closing.clear()
        return self._forward()

    def close(self, epoch: int, *, preempt: bool) -> list[Effect[T]]:
        self.is_open = False
        self.epoch = epoch
        self._closing.append(epoch)
        effects: list[Effect[T]] = []
        if preempt:
            refusal = Refusal(502, "preempted", f"model {self.model!r} had to leave the GPU", self.retry_after_s())
            effects += [Cut(ticket, refusal) for ticket in self.in_flight]
        return [*effects, Disconnect(), *self._drained()]

    def share(self, concurrency: int) -> list[Effect[T]]:
        self._share = concurrency
        return self._forward()

    def configure(self, limits: Limits) -> list[Effect[T]]:
        """New limits; deadlines of what is held stay."""
        self._limits = limits
        return self._forward()

    def stand(self, status: Status) -> None:
        self.status = status
        self._refusal = None

    def refuse(self, message: Refuse) -> list[Effect[T]]:
        self._refusal = Refusal(message.status, "model_unavailable", message.message, message.retry_after_s)
        return self._answer_all(self._refusal)

    def remove(self) -> list[Effect[T]]:
        """The model is no longer configured."""
        self.is_open = False
        self._refusal = Refusal(404, "model_not_found", f"model {self.model!r} is no longer served here")
        return [*self._answer_all(self._refusal), Disconnect()]

    def end(self) -> list[Effect[T]]:
        """The worker ends: nothing is held any more, what is in flight goes on."""
        self._refusal = Refusal(503, "shutting_down", "this server is being stopped", 1.0)
        return self._answer_all(self._refusal)

    def forget_closes(self) -> None:
        """Who asked for them is gone."""
        self._closing.clear()

    # -- connections -----------------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """There is a connection to the model, or an attempt at one."""
        self._connected = True

    def disconnected(self) -> list[Effect[T]]:
        """There is none any more."""
        self._connected = False
        return self._drained()

    # -- what is known of it ---------------------------------------------------------------------------------------------

    @property
    def refused(self) -> Refusal | None:
        return self._refusal

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.in_flight

    def oldest_since(self) -> float | None:
        """When the first of those that wait came. O(1)."""
        for entry in self.waiting.values():
            return entry.since
        return None

    def retry_after_s(self) -> float:
        expected = self.status.expected_s if self.status is not None else None
        return min(RETRY_MAX_S, max(1.0, expected or _RETRY_UNKNOWN_S))

    # -- inside ----------------------------------------------------------------------------------------------------------

    @property
    def _queue_max(self) -> int:
        return -(-self._limits.queue // self._workers)

    def _has_room(self) -> bool:
        if not self._limits.concurrency:
            return True
        share = self._share
        if share is None:
            share = max(1, self._limits.concurrency // self._workers)
        return len(self.in_flight) < share

    def _forward(self) -> list[Effect[T]]:
        effects: list[Effect[T]] = []
        while self.waiting and self.is_open and self._refusal is None and self._has_room():
            ticket, entry = self.waiting.popitem(last=False)
            self._budget.give(entry.size)
            self.in_flight[ticket] = None
            effects.append(Forward(ticket))
        return effects

    def _remember(self, deadline: float, ticket: T) -> None:
        self._sequence += 1
        heapq.heappush(self._deadlines, (deadline, self._sequence, ticket))
        if len(self._deadlines) > 2 * len(self.waiting) + 64:  # most of them left before their deadline
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self.waiting]
            heapq.heapify(self._deadlines)

    def _forget(self, ticket: T) -> None:
        self._budget.give(self.waiting.pop(ticket).size)

    def _answer_all(self, refusal: Refusal) -> list[Effect[T]]:
        effects: list[Effect[T]] = []
        while self.waiting:
            ticket, entry = self.waiting.popitem(last=False)
            self._budget.give(entry.size)
            effects.append(Answer(ticket, refusal))
        return effects

    def _drained(self) -> list[Effect[T]]:
        if not self._closing or self.in_flight or self._connected:
            return []
        said: list[Effect[T]] = [SayDrained(epoch) for epoch in self._closing]
        self._closing.clear()
        return said

    def _overdue(self, waited_s: float) -> Refusal:
        return Refusal(
            503, "hold_timeout", f"model {self.model!r} was not there after {waited_s:.1f} s", self.retry_after_s()
        )
