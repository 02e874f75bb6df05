"""How many connections the API takes over TCP, and for how long one may say nothing."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from tests.agent.conftest import AgentProcess, agent_process
from tests.certificates import self_signed
from tests.conftest import Eventually

from kybernate.agent.api.connection_limits import ConnectionLimits

MOST = 8


@pytest.fixture
def agent() -> Iterator[AgentProcess]:
    settings = f"agent:\n  api: {{listen: '127.0.0.1:0', connections: {MOST}}}\n"
    yield from agent_process(settings=settings, simulated_gpu=False)


def connect(agent: AgentProcess) -> http.client.HTTPConnection:
    where = urlsplit(agent.client.node().url or "")
    assert where.hostname is not None
    made = http.client.HTTPConnection(where.hostname, where.port, timeout=20)
    made.connect()
    return made


def ask(connection: http.client.HTTPConnection, agent: AgentProcess) -> tuple[int, dict[str, object]]:
    token = agent.state.token.read_text().strip()
    connection.request("GET", "/v1/node", headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_one_too_many_is_told_so(agent: AgentProcess, eventually: Eventually) -> None:
    with ExitStack() as stack:
        held = [connect(agent) for _ in range(MOST)]
        for each in held:
            stack.callback(each.close)
        assert ask(held[0], agent)[0] == 200
        for _ in range(3):
            late = connect(agent)
            stack.callback(late.close)
            answer = http.client.HTTPResponse(late.sock)
            answer.begin()  # it is told before it asks
            said = json.loads(answer.read())
            assert (answer.status, said["code"]) == (503, "too_many_connections")
            assert f"{MOST} connections" in said["message"]
            assert "agent.api.connections" in said["hint"]
        assert agent.client.node().pid == agent.pid, "the socket has no such limit"
        assert ask(held[0], agent)[0] == 200, "those that are there go on"
        held[1].close()

        def let_in() -> bool:
            with suppress(http.client.HTTPException, ConnectionError):
                again = connect(agent)
                stack.callback(again.close)
                return ask(again, agent)[0] == 200
            return False

        eventually(let_in)


@asynccontextmanager
async def limits(
    *, most: int, admission_s: float, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, ConnectionLimits]]:
    """A server that lets in whoever asks for /in."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/in":
            made.admit(request.transport)
        return web.Response(text="here")

    application = web.Application()
    application.router.add_get("/{path}", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    assert runner.server is not None
    made = ConnectionLimits(listener, runner.server, tls=tls, maximum=most, admission_s=admission_s)
    made.start(lambda work, *, name: asyncio.create_task(work(), name=name))
    try:
        yield listener.getsockname()[1], made
    finally:
        await made.stop()
        await runner.cleanup()


def tls_pair(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of the server and of its clients."""
    certificate, key = self_signed(directory)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(certificate))
    client.check_hostname = False
    return server, client


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bytes:
    writer.write(f"GET {path} HTTP/1.1\r\nhost: here\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return head.partition(b"\r\n")[0]


@pytest.mark.parametrize("secure", [False, True])
async def test_who_is_not_let_in_is_closed(tmp_path: Path, secure: bool) -> None:
    server, client = tls_pair(tmp_path) if secure else (None, None)
    async with limits(most=4, admission_s=0.5, tls=server) as (port, _), AsyncExitStack() as stack:

        async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
            stack.callback(writer.close)
            return reader, writer

        silent, drips, stranger, guest = [await connected() for _ in range(4)]
        assert (await get(*guest, "/in")).startswith(b"HTTP/1.1 200")
        assert (await get(*stranger, "/out")).startswith(b"HTTP/1.1 200")
        assert (await get(*await connected(), "/in")).startswith(b"HTTP/1.1 503"), "four are there"
        drips[1].write(b"GET /in HT")
        for reader, _ in (silent, drips, stranger):
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
        assert (await get(*guest, "/out")).startswith(b"HTTP/1.1 200"), "it stays"
        assert (await get(*await connected(), "/in")).startswith(b"HTTP/1.1 200"), "there is room again"


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("secure", [False, True])
async def test_all_that_there_may_be_are_let_in_however_close_they_come(
    tmp_path: Path, secure: bool, turns: int
) -> None:
    """`turns` of the server's loop apart."""
    server, client = tls_pair(tmp_path) if secure else (None, None)
    async with limits(most=MOST, admission_s=60, tls=server) as (port, _), AsyncExitStack() as stack:

        async def served(connection: socket.socket) -> bytes:
            name = "localhost" if secure else None
            reader, writer = await asyncio.open_connection(sock=connection, ssl=client, server_hostname=name)
            stack.callback(writer.close)
            return await get(reader, writer, "/in")

        asked = []
        for _ in range(MOST + 1):
            asked.append(asyncio.create_task(served(socket.create_connection(("127.0.0.1", port)))))
            for _ in range(turns):
                await asyncio.sleep(0)
        answers = [answer.partition(b" ")[2] for answer in await asyncio.gather(*asked)]
        assert answers == [b"200 OK"] * MOST + [b"503 Service Unavailable"]


async def test_a_crowd_is_closed_without_a_word() -> None:
    async with limits(most=1, admission_s=20) as (port, made), AsyncExitStack() as stack:
        said = []
        for _ in range(40):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            said.append(reader)
        answers = [await asyncio.wait_for(reader.read(), 20) for reader in said[1:]]
        told = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503")]
        assert 0 < len(told) < len(answers)
        assert set(answers) == {told[0], b""}
        await made.stop()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
