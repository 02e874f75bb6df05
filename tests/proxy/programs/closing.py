"""A server that closes or resets half of its connections a moment after an answer, without saying so before. Prints its port, and
one where it says how many requests it saw."""

from __future__ import annotations

import asyncio
import random

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
seen = 0


class Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        global seen
        seen += data.count(b"POST ")
        self.transport.write(ANSWER)
        if random.random() < 0.5:
            end = random.choice([self.transport.close, self.transport.abort])
            asyncio.get_running_loop().call_later(random.random() * 0.002, end)


async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"%d" % seen)
    writer.close()


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    told = await asyncio.start_server(tell, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], told.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
