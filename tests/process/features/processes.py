"""What people run: multiprocessing's spawn with queues, a subprocess with pipes, asyncio with a server and a client."""

import asyncio
import multiprocessing
import subprocess
import sys

from station import dumped


def double(inbox, outbox) -> None:
    while (number := inbox.get()) is not None:
        outbox.put(number * 2)


async def serve() -> None:
    async def echo(reader, writer) -> None:
        while line := await reader.readline():
            writer.write(line)

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"before\n")
    assert await reader.readline() == b"before\n"
    timer = asyncio.create_task(asyncio.sleep(0.05))
    await asyncio.to_thread(dumped)
    await timer
    writer.write(b"after\n")
    assert await reader.readline() == b"after\n"
    writer.close()
    server.close()


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    worker = context.Process(target=double, args=(inbox, outbox))
    worker.start()
    inbox.put(4)
    assert outbox.get(timeout=20) == 8
    cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    asyncio.run(serve())
    inbox.put(5)
    assert outbox.get(timeout=20) == 10
    inbox.put(None)
    worker.join()
    assert worker.exitcode == 0
    assert cat.communicate(b"through")[0] == b"through"
    sys.exit(cat.returncode)
