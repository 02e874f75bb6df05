"""What a worker's connections share: the registry of clients, and ids of requests."""

from __future__ import annotations

import re

import pytest

from kybernate.proxy.services import ClientRegistry, request_ids

pytestmark = pytest.mark.unit


class Connected:
    """A client that leaves the registry when it is told to end, as connections do."""

    def __init__(self, registry: ClientRegistry, *, idle: bool) -> None:
        self._registry = registry
        self._idle = idle
        self.told = 0
        registry.add(self)

    def sweep(self, now: float) -> None: ...

    def close_after_answer(self) -> None:
        self.told += 1
        if self._idle:
            self._registry.discard(self)

    def cut(self) -> None: ...


def test_the_last_client_that_fits_is_not_yet_too_many() -> None:
    registry = ClientRegistry(clients_max=2)
    clients = [Connected(registry, idle=False) for _ in range(2)]
    assert not registry.is_full
    third = Connected(registry, idle=False)
    assert registry.is_full
    registry.discard(third)
    assert not registry.is_full
    registry.discard(third)
    assert registry.clients == set(clients), "one that is gone may go again"


def test_at_the_end_each_is_told_once_also_while_others_leave() -> None:
    registry = ClientRegistry(clients_max=100)
    clients = [Connected(registry, idle=number % 2 == 0) for number in range(20)]
    assert not registry.ending
    registry.end()
    assert registry.ending
    assert [client.told for client in clients] == [1] * 20
    assert len(registry.clients) == 10


def test_ids_are_counted_within_a_worker_and_differ_between_workers() -> None:
    one, other = request_ids(), request_ids()
    mine = [one() for _ in range(300)]
    assert len(set(mine)) == 300
    assert not set(mine) & {other() for _ in range(300)}
    assert all(re.fullmatch(rb"[0-9a-f]{12}-[0-9a-f]+", each) for each in mine), "they go into heads as they are"
    assert mine[0].endswith(b"-1")
    assert mine[15].endswith(b"-10"), "in hexadecimal"
