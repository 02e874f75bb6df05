"""What is held in a worker: how much all models together may hold, and one model's waiting requests in their order. Pure."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class HeldBudget:
    """What one worker may hold, all models together."""

    def __init__(self, *, requests: int, size_bytes: int) -> None:
        self.requests_max = requests
        self.bytes_max = size_bytes
        self.requests = 0
        self.bytes = 0

    def limit(self, *, requests: int, size_bytes: int) -> None:
        """New limits. What is held above them stays."""
        self.requests_max = requests
        self.bytes_max = size_bytes

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


@dataclass(frozen=True, slots=True)
class Waiting:
    """One that is held. Times (s) by the caller's clock."""

    since: float
    deadline: float
    size: int
    """Bytes that it has of the budget."""


class WaitingList(OrderedDict[T, Waiting]):
    """Tickets of one model, the next one first. Each is on the account of `budget` as long as it is in here."""

    def __init__(self, budget: HeldBudget) -> None:
        super().__init__()
        self._budget = budget
        self._deadlines: list[tuple[float, int, T]] = []
        self._sequence = 0

    def hold(self, ticket: T, entry: Waiting, *, first: bool = False) -> bool:
        """As the last, or as the first. False: the budget has no room for it."""
        if not self._budget.take(entry.size):
            return False
        self[ticket] = entry
        if first:
            self.move_to_end(ticket, last=False)
        self._sequence += 1
        heapq.heappush(self._deadlines, (entry.deadline, self._sequence, ticket))
        if len(self._deadlines) > 2 * len(self) + 64:  # most of them left before their deadline
            self._deadlines = [each for each in self._deadlines if each[2] in self]
            heapq.heapify(self._deadlines)
        return True

    def take_first(self) -> T:
        ticket, entry = self.popitem(last=False)
        self._budget.give(entry.size)
        return ticket

    def release(self, ticket: T) -> None:
        self._budget.give(self.pop(ticket).size)

    def take_overdue(self, now: float) -> list[tuple[T, float]]:
        """Those whose deadline is over, taken out, and how long (s) each has waited."""
        found: list[tuple[T, float]] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, ticket = heapq.heappop(self._deadlines)
            entry = self.get(ticket)
            if entry is not None and entry.deadline == deadline:
                self.release(ticket)
                found.append((ticket, now - entry.since))
        if not self:
            self._deadlines.clear()
        return found

    def oldest_since(self) -> float | None:
        """When the first of them came. O(1)."""
        for entry in self.values():
            return entry.since
        return None
