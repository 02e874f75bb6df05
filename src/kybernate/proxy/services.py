"""What the connections of a worker and their requests share: passed on as one value, so each can be tested without a worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kybernate.proxy.directory import Directory
from kybernate.proxy.held import HeldBudget
from kybernate.proxy.outcomes import Outcomes


class Client(Protocol):
    """A client's connection, as the worker has it."""

    def sweep(self, now: float) -> None:
        """Once a second."""

    def close_after_answer(self) -> None:
        """Nothing more is read behind what is under way."""

    def cut(self) -> None:
        """At once, and what is under way for it."""


class ClientRegistry:
    """All clients that are connected."""

    def __init__(self, *, clients_max: int) -> None:
        self.clients: set[Client] = set()
        self.ending = False
        """The worker ends."""
        self._clients_max = clients_max

    @property
    def is_full(self) -> bool:
        """With more clients there would be no descriptors left by which a request could reach its model."""
        return len(self.clients) > self._clients_max

    def add(self, client: Client) -> None:
        self.clients.add(client)

    def discard(self, client: Client) -> None:
        self.clients.discard(client)

    def end(self) -> None:
        """From now on each connection ends behind the request under way."""
        self.ending = True
        for client in list(self.clients):
            client.close_after_answer()


def request_ids() -> Callable[[], bytes]:
    """Ids that no other worker gives."""
    prefix = os.urandom(6).hex().encode()
    count = 0

    def next_id() -> bytes:
        nonlocal count
        count += 1
        return b"%b-%x" % (prefix, count)

    return next_id


@dataclass(frozen=True, slots=True)
class WorkerServices:
    """The objects stay for the worker's life; what the agent configures changes within them."""

    directory: Directory
    clients: ClientRegistry
    outcomes: Outcomes
    budget: HeldBudget
    next_request_id: Callable[[], bytes]
