"""Clients for bench/activator.py: one process, many connections. Reads orders as lines of JSON, answers each with one.

{"kind": "closed", "port", "connections", "seconds"}           each connection asks again as soon as it has its answer
{"kind": "paced", ..., "rate"}                                 so many requests a second in all; latency is from when one was due
{"kind": "stream", ..., "events", "gap_us"}                    streams, one after the other on each connection; delay of each event
{"kind": "hold", "port", "count", "model"} then {"kind": "collect"}     sends without waiting; then counts the answers
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import random
import resource
import socket
import sys
import time
from typing import Any

import uvloop

PATH = b"/v1/chat/completions"


def request(*extra: bytes, model: str = "m") -> bytes:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x" * 900}], "stream": True}).encode()
    lines = [
        b"POST %b HTTP/1.1" % PATH,
        b"host: bench",
        b"user-agent: OpenAI/Python 1.99",
        b"accept: application/json",
        b"authorization: Bearer sk-bench",
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        *extra,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.buffer = b""
        self.left = -1
        """Bytes of the body to come; -1: the head; -2: chunked."""
        self.waiter: asyncio.Future[float] | None = None
        self.delays: array.array[float] | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(ConnectionError("the connection was lost"))

    def ask(self, data: bytes) -> asyncio.Future[float]:
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self.waiter

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self.left >= 0:
            self.left -= len(data)
        elif self.left == -2:
            self.chunks(data, now)
            return
        else:
            data = self.buffer + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.buffer = data
                return
            self.buffer = b""
            head = data[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                if self.waiter is not None and not self.waiter.done():
                    self.waiter.set_exception(ConnectionError(head[:60].decode()))
                return
            if b"chunked" in head:
                self.left = -2
                self.chunks(data[end + 4 :], now)
                return
            self.left = int(head.split(b"content-length:")[1].split(b"\r")[0]) - (len(data) - end - 4)
        if self.left <= 0:
            self.finish(now)

    def chunks(self, data: bytes, now: float) -> None:
        if self.delays is not None:
            at = data.find(b"data: ")
            stamp = now * 1e9
            while at >= 0:
                with contextlib.suppress(ValueError):
                    self.delays.append(stamp - int(data[at + 6 : at + 40].split(b" ", 1)[0]))
                at = data.find(b"data: ", at + 100)
        tail = (self.buffer + data)[-5:]
        self.buffer = tail
        if tail == b"0\r\n\r\n":
            self.buffer = b""
            self.finish(now)

    def finish(self, now: float) -> None:
        self.left = -1
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(now)


async def connect(port: int, count: int) -> list[Connection]:
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(count):
        _, protocol = await loop.create_connection(Connection, "127.0.0.1", port)
        made.append(protocol)
    return made


async def closed(order: dict[str, Any]) -> dict[str, Any]:
    connections = await connect(order["port"], order["connections"])
    data = request()
    times: array.array[float] = array.array("d")
    failed = 0
    end = time.monotonic() + order["seconds"]

    async def one(connection: Connection) -> None:
        nonlocal failed
        while (begin := time.monotonic()) < end:
            try:
                times.append(await connection.ask(data) - begin)
            except ConnectionError:
                failed += 1
                return

    await asyncio.gather(*(one(connection) for connection in connections))
    for connection in connections:
        connection.transport.close()
    return {"requests": len(times), "failed": failed, "times": percentiles(times)}


async def paced(order: dict[str, Any]) -> dict[str, Any]:
    connections = await connect(order["port"], order["connections"])
    data = request()
    times: array.array[float] = array.array("d")
    failed = 0
    # The first ones make the connections to the model, too: that is what a switch costs, not a request.
    await asyncio.gather(*(connection.ask(data) for connection in connections))
    begin = time.monotonic() + 0.1
    gap = order["connections"] / order["rate"]
    generator = random.Random(1)

    async def one(connection: Connection) -> None:
        nonlocal failed
        due = begin + generator.random() * gap
        while due < begin + order["seconds"]:
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            # The timer's own lateness (up to 1 ms in libuv) is the client's, not that of who is measured.
            started = max(due, time.monotonic()) if wait > 0 else due
            try:
                times.append(await connection.ask(data) - started)
            except ConnectionError:
                failed += 1
                return
            due += gap

    await asyncio.gather(*(one(connection) for connection in connections))
    for connection in connections:
        connection.transport.close()
    return {"requests": len(times), "failed": failed, "times": percentiles(times)}


async def stream(order: dict[str, Any]) -> dict[str, Any]:
    connections = await connect(order["port"], order["connections"])
    data = request(b"x-events: %d" % order["events"], b"x-gap-us: %d" % order["gap_us"])
    delays: array.array[float] = array.array("d")
    failed = 0
    for connection in connections:
        connection.delays = delays
    begin = time.monotonic()

    async def one(connection: Connection) -> None:
        nonlocal failed
        while time.monotonic() < begin + order["seconds"]:
            try:
                await connection.ask(data)
            except ConnectionError:
                failed += 1
                return

    await asyncio.gather(*(one(connection) for connection in connections))
    took = time.monotonic() - begin
    for connection in connections:
        connection.transport.close()
    return {"events": len(delays), "seconds": took, "failed": failed, "delays_ns": percentiles(delays)}


class Holder:
    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[float]] = []
        self.connections: list[Connection] = []

    async def hold(self, order: dict[str, Any]) -> dict[str, Any]:
        self.connections = await connect(order["port"], order["count"])
        data = request(model=order["model"])
        self.waiting = [connection.ask(data) for connection in self.connections]
        return {"sent": len(self.waiting)}

    async def collect(self) -> dict[str, Any]:
        done = await asyncio.gather(*self.waiting, return_exceptions=True)
        for connection in self.connections:
            connection.transport.close()
        return {"answered": sum(isinstance(result, float) for result in done)}


def percentiles(values: array.array[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    return {f"p{p}": ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] for p in (50, 90, 99)}


async def main() -> None:
    holder = Holder()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        match order["kind"]:
            case "closed":
                answer = await closed(order)
            case "paced":
                answer = await paced(order)
            case "stream":
                answer = await stream(order)
            case "hold":
                answer = await holder.hold(order)
            case _:
                answer = await holder.collect()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    socket.setdefaulttimeout(60)
    uvloop.run(main())
