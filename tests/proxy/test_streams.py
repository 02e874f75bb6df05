"""Bodies and answers pass through as they come: unbuffered, unchanged, at the pace of the slower side."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time

import websockets
from tests.conftest import Eventually
from tests.proxy.rig import Rig, request

from kybernate.model.messages import Drained, Endpoint


def test_events_arrive_before_the_next_one_is_made(rig: Rig, eventually: Eventually) -> None:
    server = rig.serve()
    with rig.client() as client:
        client.send(request("GET", "/svc/events"))
        head = client.until(b"\r\n\r\n")
        assert b"text/event-stream" in head
        for number in range(3):
            assert client.until(b"\r\n") == b"9\r\n"
            assert client.exactly(11) == b"data: %d\n\n\r\n" % number
            if number < 2:
                eventually(lambda: server.control()["waiting"] == 1)
                server.release()
        assert client.until(b"\r\n\r\n") == b"0\r\n\r\n"
        assert client.model("m").status == 200


def test_a_large_answer_and_its_trailers(rig: Rig) -> None:
    rig.serve()
    size = 100 << 20
    with rig.client() as client:
        client.send(request("GET", f"/svc/bytes?{size}"))
        client.until(b"\r\n\r\n")
        got = 0
        while length := int(client.until(b"\r\n"), 16):
            piece = client.exactly(length + 2)
            assert piece == (b"0123456789abcdef" * 4096)[:length] + b"\r\n"
            got += length
        assert client.until(b"\r\n\r\n") == b"x-sum: done\r\n\r\n"
        assert got == size


def test_a_client_that_does_not_read_stops_the_server(rig: Rig) -> None:
    """What neither side's kernel takes is not heaped up here."""
    rig.serve()
    with rig.client() as client:
        before = rss(rig.pid)
        client.send(request("GET", f"/svc/bytes?{300 << 20}"))
        client.until(b"\r\n\r\n")
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert rss(rig.pid) - before < 48 << 20
        total = 0
        while length := int(client.until(b"\r\n"), 16):
            client.exactly(length + 2)
            total += length
        assert total == 300 << 20
        assert rss(rig.pid) - before < 48 << 20


def test_a_large_body_is_streamed(rig: Rig) -> None:
    server = rig.serve()
    size = 60 << 20
    piece = bytes(range(256)) * 4096
    with rig.client() as client:
        before = rss(rig.pid)
        client.send(b"PUT /svc/up HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // len(piece)):
            client.send(piece)
        assert client.answer().json()["size"] == size
        assert rss(rig.pid) - before < 48 << 20
        client.send(b"PUT /svc/up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(8):
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        client.send(b"0\r\nx-end: yes\r\n\r\n")
        answer = client.answer().json()
        assert (answer["size"], answer["trailers"]) == (8 * len(piece), "x-end: yes\r\n")
    assert len(server.requests) == 2


def test_a_large_body_that_names_its_model(rig: Rig) -> None:
    rig.serve()
    body = b'{"messages":["' + b"x" * (5 << 20) + b'"],"model":"m"}'
    with rig.client() as client:
        seen = client.ask("POST", "/v1/chat/completions", body).json()
        assert seen["size"] == len(body)


def test_bodies_above_the_limit(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), body_max=100_000)
    rig.open()
    body = b'{"model":"m","x":"' + b"x" * 100_000 + b'"}'
    for path in ("/v1/completions", "/svc"):
        with rig.client() as client:
            answer = client.ask("POST", path, body)
            assert (answer.status, answer.code) == (413, "body_too_large")
        with rig.client() as client:
            client.send(b"POST %b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" % path.encode())
            client.send(b"%x\r\n%b\r\n" % (len(body), body))
            assert client.answer().status == 413
    assert server.requests == []


def test_expect_continue(rig: Rig) -> None:
    rig.serve()
    for path, body in (("/svc", b"x" * 10), ("/v1/completions", b'{"model":"m"}')):
        with rig.client() as client:
            client.send(
                b"POST %b HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
                % (path.encode(), len(body))
            )
            assert client.answer().status == 100
            client.send(body)
            assert client.answer().json()["size"] == len(body)


def test_interim_answers_and_heads(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        client.send(request("GET", "/svc/interim"))
        hints = client.answer()
        assert (hints.status, hints.fields["link"]) == (103, "</a>")
        assert client.answer().status == 200
        head = client.ask("HEAD", "/svc/x")
        assert int(head.fields["content-length"]) > 50
        for raw, status in (
            (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
            (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n", 304),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200),
        ):
            assert client.ask("GET", f"/svc/raw?{raw.hex()}").status == status
        assert client.model("m").status == 200


def test_an_answer_up_to_the_connections_end(rig: Rig) -> None:
    rig.serve()
    raw = b"HTTP/1.1 200 OK\r\n\r\nto the end"
    with rig.client() as client:
        answer = client.ask("GET", f"/svc/raw?{raw.hex()}&close")
        assert (answer.body, answer.fields["connection"]) == (b"to the end", "close")


def test_an_answer_that_breaks_off_is_seen_to(rig: Rig) -> None:
    rig.serve()
    for raw in (
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ):
        with rig.client() as client:
            client.send(request("GET", f"/svc/raw?{raw.hex()}&close"))
            client.until(b"\r\n\r\n")
            try:
                rest = client.rest()
            except ConnectionResetError:
                rest = b""
            assert not rest.endswith(b"0\r\n\r\n")
            assert len(rest) < 100


def test_websockets(rig: Rig, eventually: Eventually) -> None:
    """Both ways, large frames too; a request in flight for as long as it is open."""
    port: list[int] = []
    stop = threading.Event()

    async def echo(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def serve() -> None:
        async with websockets.serve(echo, "127.0.0.1", 0, max_size=1 << 24) as server:
            port.append(server.sockets[0].getsockname()[1])
            while not stop.is_set():  # noqa: ASYNC110 - set from another thread
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        eventually(lambda: port)
        rig.configure(Endpoint("m", port[0], paths=("/ws",)))

        async def talk() -> int | None:
            async with websockets.connect(f"ws://127.0.0.1:{rig.port}/ws/x", max_size=1 << 24, proxy=None) as held:
                await held.send("hello")
                assert await held.recv() == "hello"
                large = bytes(range(256)) * (1 << 14)
                await held.send(large)
                got = await held.recv()
                assert (
                    hashlib.sha256(got if isinstance(got, bytes) else got.encode()).digest()
                    == hashlib.sha256(large).digest()
                )
                rig.close()
                assert rig.agent.of(Drained) == []
                await held.send("still here")
                assert await held.recv() == "still here"
            return held.close_code

        opener = threading.Timer(0.2, rig.open)
        opener.start()
        assert asyncio.run(talk()) == 1000
        opener.join()
        rig.agent.wait(Drained)
    finally:
        stop.set()
        thread.join()


def test_an_upgrade_that_is_declined(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        answer = client.ask("GET", "/svc", connection="upgrade", upgrade="other/1")
        assert dict(answer.json()["fields"])["upgrade"] == "other/1"
        assert client.model("m").status == 200


def rss(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096
