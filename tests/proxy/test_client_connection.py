"""A client's connection without a worker and without a socket: what it answers itself, in which order, and when it ends."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from tests.proxy.parts import Parts

from kybernate.model.messages import Endpoint
from kybernate.proxy.client_connection import ClientConnection
from kybernate.proxy.phases import ConnectionPhase

HEALTH = b"GET /health HTTP/1.1\r\nhost: here\r\n\r\n"
NAMELESS = b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: 2\r\n\r\n{}"


class Wire:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = self.closed = self.aborted = False
        self.reads = True
        self.unsent = 0

    def write(self, data: bytes) -> None:
        assert not self.ended
        self.written += data

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.7", 1) if name == "peername" else None

    def set_write_buffer_limits(self, *, high: int) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Connected:
    def __init__(self, parts: Parts | None = None) -> None:
        self.parts = parts or Parts(Endpoint("m", 1))
        self.wire = Wire()
        self.connection = ClientConnection(self.parts.services)
        self.connection.connection_made(cast("asyncio.Transport", self.wire))

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", self.wire.written)]

    async def send(self, *pieces: bytes) -> list[int]:
        """The statuses of all answers so far, once all that may be answered is."""
        for piece in pieces:
            self.connection.data_received(piece)
        for _ in range(10):
            await asyncio.sleep(0)
        return self.statuses


def run(test: Callable[[Connected], Awaitable[None]], parts: Parts | None = None) -> None:
    async def within() -> None:
        await test(Connected(parts))

    asyncio.run(within())


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_requests_are_answered_one_after_the_other_in_whichever_pieces_they_come(size: int) -> None:
    async def test(to: Connected) -> None:
        text = HEALTH + b"\r\n" + NAMELESS + b"GET /nothing HTTP/1.1\r\nhost: here\r\n\r\n" + HEALTH
        assert await to.send(*(text[at : at + size] for at in range(0, len(text), size))) == [200, 400, 404, 200]
        assert to.connection.phase is ConnectionPhase.OPEN

    run(test)


def test_one_behind_the_rest_of_a_body_that_is_refused_at_once() -> None:
    async def test(to: Connected) -> None:
        assert await to.send(NAMELESS[:-1], NAMELESS[-1:] + HEALTH) == [400, 200]

    run(test)


def test_nothing_is_read_behind_a_body_of_which_nobody_knows_the_end() -> None:
    async def test(to: Connected) -> None:
        text = b"PUT /nothing HTTP/1.1\r\nhost: here\r\ncontent-length: 9\r\n\r\n"
        assert await to.send(text, HEALTH) == [404]
        assert to.connection.phase is ConnectionPhase.LINGERING
        assert to.wire.ended

    run(test)


def test_a_client_gets_time_to_read_the_last_of_it() -> None:
    async def test(to: Connected) -> None:
        assert await to.send(b"no HTTP at all\r\n\r\n") == [400]
        now = time.monotonic()
        to.connection.sweep(now + 1)
        assert not to.wire.aborted
        to.wire.unsent = 10
        to.connection.sweep(now + 10)
        to.connection.sweep(now + 11)
        assert not to.wire.aborted, "the kernel hasn't even taken all of it"
        to.wire.unsent = 0
        to.connection.sweep(now + 12)
        to.connection.sweep(now + 14)
        assert to.wire.aborted

    run(test)


def test_a_head_that_never_ends() -> None:
    async def test(to: Connected) -> None:
        await to.send(HEALTH[:10])
        now = time.monotonic()
        to.connection.sweep(now + 9)
        assert to.statuses == []
        to.connection.sweep(now + 11)
        assert to.statuses == [408]
        assert to.wire.ended

    run(test)


def test_a_connection_that_nobody_uses_ends() -> None:
    async def test(to: Connected) -> None:
        await to.send(HEALTH)
        now = time.monotonic()
        to.connection.sweep(now)
        to.connection.sweep(now + 4)
        assert not to.wire.ended
        to.connection.sweep(now + 6)
        assert to.wire.ended

    run(test, Parts(idle_s=5))


def test_with_too_many_clients_another_is_sent_away() -> None:
    parts = Parts(clients_max=1)

    async def test(to: Connected) -> None:
        other = Connected(parts)
        assert other.statuses == [503]
        assert other.wire.closed
        assert parts.counted.failures == [("", "too_many_connections")]
        assert await other.send(HEALTH) == [503]
        other.connection.connection_lost(None)
        assert await to.send(HEALTH) == [200]
        assert parts.services.clients.clients == {to.connection}

    run(test, parts)


def test_at_the_workers_end_what_is_under_way_is_answered_and_nothing_behind_it() -> None:
    async def test(to: Connected) -> None:
        idle = Connected(to.parts)
        await to.send(NAMELESS[:-1])
        to.parts.services.clients.end()
        assert idle.wire.ended
        assert not to.wire.ended
        assert await to.send(NAMELESS[-1:] + HEALTH) == [400]
        assert to.wire.ended

    run(test)


def test_a_client_that_does_not_read_is_not_read_from_either() -> None:
    async def test(to: Connected) -> None:
        to.connection.pause_writing()
        assert await to.send(HEALTH) == []
        to.connection.resume_writing()
        assert await to.send() == [200]

    run(test)
