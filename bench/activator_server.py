"""The server behind the activator in bench/activator.py: as fast as Python gets, so that what stands before it is what is measured.

POST /...          reads the body, answers 1 kB
POST /...stream    `x-events: N`, `x-gap: S`: N server-sent events of 120 bytes, S seconds apart (0: as fast as they go), each with
                   the machine's monotonic clock in it
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time

import uvloop

BODY = b"x" * 1024
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = 120


def event() -> bytes:
    text = b"data: %d " % time.monotonic_ns()
    return b"%x\r\n%b\n\n\r\n" % (EVENT, text.ljust(EVENT - 2, b"."))


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.buffer = b""
        self.writable = asyncio.Event()
        self.writable.set()
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.buffer = data
            return
        head = data[:end].lower()
        if len(data) < end + 4 + number(head, b"content-length:"):
            self.buffer = data
            return
        self.buffer = b""
        if b"x-events:" not in head:
            self.transport.write(ANSWER)
            return
        events, gap = number(head, b"x-events:"), number(head, b"x-gap-us:") / 1e6
        self.task = asyncio.get_running_loop().create_task(self.stream(events, gap))

    async def stream(self, events: int, gap: float) -> None:
        self.transport.write(STREAM)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for n in range(events):
            if gap:
                await asyncio.sleep(max(0.0, begin + n * gap - loop.time()))
            elif n % 16 == 15:
                await asyncio.sleep(0)
            if not self.writable.is_set():
                await self.writable.wait()
            self.transport.write(event())
        self.transport.write(b"0\r\n\r\n")


def number(head: bytes, name: bytes) -> int:
    at = head.find(name)
    return int(head[at + len(name) :].split(b"\r", 1)[0]) if at >= 0 else 0


async def main(port: int) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    server = await asyncio.get_running_loop().create_server(Connection, sock=listener, backlog=16384)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
