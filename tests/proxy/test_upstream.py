"""Connections to a model: what is kept, and what a drain closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from kybernate.proxy.namespace_dialer import NamespaceDialer
from kybernate.proxy.pool import Pool
from kybernate.proxy.upstream import Upstream


class Asking:
    """Somebody who wants a connection."""

    def __init__(self) -> None:
        self.upstream: asyncio.Future[Upstream] = asyncio.get_running_loop().create_future()

    @property
    def client(self) -> object:
        return self

    def connected(self, upstream: Upstream) -> None:
        self.upstream.set_result(upstream)

    def unreachable(self, why: str) -> None:
        self.upstream.set_exception(AssertionError(why))

    def answer_data(self, data: bytes) -> None: ...

    def answer_end(self, error: Exception | None) -> None: ...

    def request_paused(self, paused: bool) -> None: ...


class Model:
    """A server that closes its end when the other does, and a pool of connections to it."""

    def __init__(self, port: int) -> None:
        self.empty = asyncio.Event()
        self.pool: Pool[Asking] = Pool(
            NamespaceDialer(network_pid=None, port=port), connected=self.empty.clear, disconnected=self.empty.set
        )

    async def connection(self) -> Upstream:
        asking = Asking()
        self.pool.acquire(asking)
        return await asking.upstream


@asynccontextmanager
async def model() -> AsyncIterator[Model]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made = Model(server.sockets[0].getsockname()[1])
    try:
        yield made
    finally:
        made.pool.retire()
        made.pool.abort()
        await asyncio.wait_for(made.empty.wait(), 10)
        server.close()


def run(test: Callable[[Model], Awaitable[None]]) -> None:
    async def within() -> None:
        async with model() as made, asyncio.timeout(20):
            await test(made)

    asyncio.run(within())


def test_what_is_kept_for_a_client_waits_for_no_drain_either() -> None:
    async def test(model: Model) -> None:
        kept, busy = Asking(), Asking()
        model.pool.acquire(kept)
        model.pool.acquire(busy)
        (await kept.upstream).release(reusable=True, only_for=kept)
        model.pool.drain()
        (await busy.upstream).release(reusable=True, only_for=busy)
        await asyncio.wait_for(model.empty.wait(), 1)

    run(test)


def test_what_is_kept_for_a_client_gives_way_when_it_is_idle() -> None:
    async def test(model: Model) -> None:
        first, second, third = Asking(), Asking(), Asking()
        model.pool.acquire(first)
        kept = await first.upstream
        kept.release(reusable=True, only_for=first)
        kept.idle_since += 60  # however slow this machine is
        model.pool.acquire(second)
        other = await second.upstream
        assert other is not kept
        assert model.pool.size == 2, "it has only just become idle"
        kept.idle_since -= 120
        model.pool.acquire(third)
        await third.upstream
        model.pool.drain()
        for each in (other, await third.upstream):
            each.release(reusable=False)
        await asyncio.wait_for(model.empty.wait(), 1)
        assert kept.transport is None

    run(test)


def test_what_is_kept_for_a_client_is_that_clients() -> None:
    async def test(model: Model) -> None:
        asking = Asking()
        model.pool.acquire(asking)
        kept = await asking.upstream
        kept.release(reusable=True, only_for=asking)
        asking.upstream = asyncio.get_running_loop().create_future()
        model.pool.acquire(asking)
        assert await asking.upstream is kept
        kept.release(reusable=True, only_for=asking)
        model.pool.forget(asking)
        await asyncio.wait_for(model.empty.wait(), 1)

    run(test)


def test_a_connection_is_used_again() -> None:
    async def test(model: Model) -> None:
        first = await model.connection()
        first.release(reusable=True)
        assert await model.connection() is first

    run(test)


def test_what_was_in_flight_at_a_drain_leaves_no_connection_behind() -> None:
    async def test(model: Model) -> None:
        first, second = await model.connection(), await model.connection()
        model.pool.drain()
        for upstream in (first, second):
            assert model.pool.size
            upstream.release(reusable=True)
        await model.empty.wait()

    run(test)


def test_an_attempt_that_a_drain_overtakes_leaves_no_connection_behind() -> None:
    async def test(model: Model) -> None:
        asking = Asking()
        model.pool.acquire(asking)
        assert model.pool.withdraw(asking)
        model.pool.drain()
        await model.empty.wait()
        assert not asking.upstream.done()

    run(test)


def test_who_must_ask_once_more_during_a_drain_gets_a_connection() -> None:
    async def test(model: Model) -> None:
        model.pool.drain()
        (await model.connection()).release(reusable=True)
        await model.empty.wait()

    run(test)


def test_a_drain_that_is_taken_back_keeps_connections_again() -> None:
    async def test(model: Model) -> None:
        first = await model.connection()
        model.pool.drain()
        model.pool.refill()
        first.release(reusable=True)
        assert await model.connection() is first

    run(test)
