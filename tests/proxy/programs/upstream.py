"""A small HTTP server that remembers what it saw, byte for byte, and answers as its paths say. Prints its port.

    /echo        what it saw of this request, as JSON; any path that isn't listed does the same
    /raw?HEX     these bytes are the answer; with `&close` the connection ends behind them
    /head?HEX    these bytes are the answer's head; its body, one event, comes after a POST to /_release, and no end
    /wait        the answer comes after a POST to /_release
    /events      a stream of events: one at once, the next after each POST to /_release, three in all
    /bytes?N     N bytes, chunked
    /interim     103, then 200
    /hang-up     the connection ends without an answer
    /_seen       everything it saw on all connections, as JSON (not itself remembered)
    /_release    lets the oldest of those that wait go on
    /_close_idle closes all connections but this one

With `--own-network` it first makes itself a network namespace of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from urllib.parse import unquote


class Seen:
    def __init__(self) -> None:
        self.raw: list[bytearray] = []
        self.requests: list[dict[str, object]] = []
        self.waiting: list[asyncio.Event] = []
        self.hung_up = 0
        self.writers: set[asyncio.StreamWriter] = set()


class Connection:
    def __init__(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen, self.reader, self.writer = seen, reader, writer
        self.raw = bytearray()

    async def serve(self) -> None:
        self.seen.writers.add(self.writer)
        try:
            while await self.one():
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.seen.writers.discard(self.writer)
            self.writer.close()

    async def read(self, size: int) -> bytes:
        data = await self.reader.readexactly(size)
        self.raw += data
        return data

    async def line(self) -> bytes:
        data = await self.reader.readuntil(b"\n")
        self.raw += data
        return data

    async def one(self) -> bool:
        start = len(self.raw)
        first = (await self.line()).decode("latin-1").rstrip("\r\n")
        method, target, _ = first.split(" ")
        fields: list[tuple[str, str]] = []
        while (line := (await self.line()).decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = line.partition(":")
            fields.append((name.lower(), value.strip()))
        named = dict(fields)
        path, _, query = target.partition("?")
        if path.startswith("/_"):
            del self.raw[start:]
            await self.control(path)
            return True
        if not any(raw is self.raw for raw in self.seen.raw):
            self.seen.raw.append(self.raw)
        if named.get("expect", "").lower() == "100-continue":
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, trailers = await self.body(named)
        request = {
            "method": method,
            "target": target,
            "fields": fields,
            "body": body.decode("latin-1") if len(body) < 100_000 else "",
            "size": len(body),
            "trailers": trailers,
        }
        self.seen.requests.append(request)
        return await self.answer(method, path, query, request)

    async def body(self, named: dict[str, str]) -> tuple[bytes, str]:
        if named.get("transfer-encoding") == "chunked":
            whole = bytearray()
            while size := int((await self.line()).partition(b";")[0], 16):
                whole += await self.read(size)
                assert await self.line() == b"\r\n"
            trailers = b""
            while (line := await self.line()) != b"\r\n":
                trailers += line
            return bytes(whole), trailers.decode("latin-1")
        return await self.read(int(named.get("content-length", "0"))), ""

    async def answer(self, method: str, path: str, query: str, request: dict[str, object]) -> bool:
        write = self.writer.write
        if path.endswith("/raw"):
            text, _, rest = query.partition("&")
            write(bytes.fromhex(unquote(text)))
            await self.writer.drain()
            return "close" not in rest
        if path.endswith("/hang-up"):
            return False
        if path.endswith("/head"):
            write(bytes.fromhex(query))
            await self.writer.drain()
            if not await self.released():
                return False
            write(b"d\r\ndata: first\n\n\r\n")
            await self.released()
            return False
        if path.endswith("/wait"):
            if not await self.released():
                return False
        elif path.endswith("/events"):
            write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for number in range(3):
                if number and not await self.released():
                    return False
                event = b"data: %d\n\n" % number
                write(b"%x\r\n%b\r\n" % (len(event), event))
                await self.writer.drain()
            write(b"0\r\n\r\n")
            return True
        elif path.endswith("/bytes"):
            write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            left, piece = int(query), b"0123456789abcdef" * 4096
            while left:
                part = piece[: min(left, len(piece))]
                write(b"%x\r\n%b\r\n" % (len(part), part))
                await self.writer.drain()
                left -= len(part)
            write(b"0\r\nx-sum: done\r\n\r\n")
            return True
        elif path.endswith("/interim"):
            write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
        body = json.dumps(request).encode()
        write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        write(b"" if method == "HEAD" else body)
        await self.writer.drain()
        return True

    async def released(self) -> bool:
        """False: the other side hung up."""
        event = asyncio.Event()
        self.seen.waiting.append(event)
        waits = asyncio.create_task(event.wait())
        reads = asyncio.create_task(self.reader.read(1))
        await asyncio.wait((waits, reads), return_when=asyncio.FIRST_COMPLETED)
        if waits.done():
            reads.cancel()
            await asyncio.wait((reads,))  # two may not read at once
            return True
        waits.cancel()
        self.seen.hung_up += 1
        self.seen.waiting = [e for e in self.seen.waiting if e is not event]
        return False

    async def control(self, path: str) -> None:
        seen = self.seen
        done = True
        if path == "/_release":
            done = bool(seen.waiting)
            if done:
                seen.waiting.pop(0).set()
        elif path == "/_close_idle":
            for writer in seen.writers - {self.writer}:
                writer.close()
        body = json.dumps(
            {
                "done": done,
                "raw": [bytes(raw).decode("latin-1") for raw in seen.raw],
                "requests": seen.requests,
                "waiting": len(seen.waiting),
                "hung_up": seen.hung_up,
                "connections": len(seen.writers) - 1,
            }
        ).encode()
        self.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await self.writer.drain()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--own-network", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    if options.own_network:
        from kybernate.process import namespaces

        namespaces.unshare(namespaces.NEW_NETWORK)
        namespaces.raise_loopback()
    seen = Seen()
    server = await asyncio.start_server(
        lambda reader, writer: Connection(seen, reader, writer).serve(), "127.0.0.1", options.port, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
