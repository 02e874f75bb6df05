"""Who waits for a stream hears that it is waited for; what goes wrong then comes as an event."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.proxy.rig import Client, Rig, Upstream, request

from kybernate.model.messages import Endpoint, Limits, Load, Refuse
from kybernate.proxy.answering import BadAnswer
from kybernate.proxy.events import BegunAnswer
from kybernate.proxy.refusals import Refusal

STREAM = b'{"model":"m","stream":true}'
COMMENT = b": waiting for the model\n\n"


def waits(rig: Rig, client: Client, path: str = "/v1/chat/completions", **fields: str) -> None:
    client.send(request("POST", path, STREAM, **fields))
    head = client.until(b"\r\n\r\n").lower()
    assert head.startswith(b"http/1.1 200")
    assert b"text/event-stream" in head
    assert b"x-request-id" in head
    client.until(COMMENT)


def held(rig: Rig, **settings: Any) -> Upstream:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, limits=Limits(hold_s=60)), heartbeat_s=0.2, **settings)
    return server


def content(client: Client) -> bytes:
    """What is left of a chunked answer behind a chunk's content."""
    assert client.exactly(2) == b"\r\n"
    pieces = []
    while size := int(client.until(b"\r\n"), 16):
        pieces.append(client.exactly(size))
        assert client.exactly(2) == b"\r\n"
    assert client.exactly(2) == b"\r\n"
    return b"".join(pieces)


def error_in(text: bytes) -> dict[str, object]:
    said = text.replace(COMMENT, b"")
    assert said.startswith(b"event: error\ndata: "), said
    assert said.endswith(b"\n\n")
    error: dict[str, object] = json.loads(said.removeprefix(b"event: error\ndata: "))["error"]
    return error


def test_comments_until_the_model_is_there_and_then_its_events(rig: Rig, eventually: Eventually) -> None:
    server = held(rig)
    with rig.client() as client:
        waits(rig, client, "/v1/events")
        assert client.exactly(2) == b"\r\n"
        client.until(COMMENT)
        rig.open()
        for _ in range(2):
            eventually(server.release)
        text = content(client).replace(COMMENT, b"")
        assert text == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
        assert client.model("m").status == 200, "the connection goes on"
    assert len(server.requests) == 2


def test_an_error_comes_as_an_event(rig: Rig) -> None:
    held(rig)
    with rig.client() as client:
        waits(rig, client)
        rig.agent.send(Refuse("m", 503, "its image is damaged", retry_after_s=30))
        error = error_in(content(client))
        assert error["code"] == "model_unavailable"
        assert "image is damaged" in str(error["message"])
        assert client.ask("GET", "/v1/models").status == 200, "the connection goes on"


def test_a_deadline_comes_as_an_event(rig: Rig) -> None:
    held(rig)
    with rig.client() as client:
        waits(rig, client, x_kybernate_max_wait="2.5")
        assert error_in(content(client))["code"] == "hold_timeout"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b'HTTP/1.1 400 Bad\r\ncontent-length: 32\r\n\r\n{"error":{"message":"too long"}}', None),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 4\r\n\r\noops", "model_error"),
        (b"HTTP/1.1 500 Oh\r\n\r\noops", "model_error"),
        (b"HTTP/1.1 503 Later\r\ncontent-length: 0\r\n\r\n", "model_error"),
        (b"no HTTP at all\r\n\r\n", "bad_answer"),
    ],
)
def test_the_servers_own_errors_come_as_events(rig: Rig, answer: bytes, code: str | None) -> None:
    held(rig)
    with rig.client() as client:
        waits(rig, client, f"/v1/raw?{answer.hex()}&close")
        rig.open()
        assert error_in(content(client)).get("code") == code


def test_an_answer_that_is_no_stream_is_one_event(rig: Rig) -> None:
    held(rig)
    with rig.client() as client:
        waits(rig, client, "/v1/echo")
        rig.open()
        text = content(client).replace(COMMENT, b"")
        assert json.loads(text.removeprefix(b"data: "))["target"] == "/v1/echo"
        assert text.endswith(b"\n\n")


def test_a_server_that_hangs_up_in_the_middle_is_seen(rig: Rig) -> None:
    held(rig)
    raw = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n"
    with rig.client() as client:
        waits(rig, client, f"/v1/raw?{raw.hex()}&close")
        rig.open()
        with contextlib.suppress(ConnectionResetError):
            assert not client.rest().endswith(b"0\r\n\r\n"), "its client sees that something is missing"


def test_a_stream_that_was_begun_as_plain_text_stays_so(rig: Rig) -> None:
    """A client that takes gzip, and a server that would send it, don't make the rest of it unreadable."""
    held(rig)
    with rig.client() as client:
        waits(rig, client, "/v1/echo", accept_encoding="gzip")
        rig.open()
        text = content(client).replace(COMMENT, b"")
        assert "accept-encoding" not in dict(json.loads(text.removeprefix(b"data: "))["fields"])
    rig.close()
    raw = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b"
    with rig.client() as client:
        waits(rig, client, f"/v1/raw?{raw.hex()}&close")
        rig.open()
        assert error_in(content(client))["code"] == "bad_answer"


def test_who_wants_no_stream_gets_a_status(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), heartbeat_s=0.2)
    with rig.client() as plain, rig.client() as path, rig.client() as streams:
        plain.send(request("POST", "/v1/x", b'{"model":"m","stream":false}'))
        path.send(request("POST", "/svc/x", STREAM))
        rig.agent.wait(Load, lambda load: load.waiting == 2)
        waits(rig, streams)  # by then the others would have heard something, too
        rig.agent.send(Refuse("m", 503, "no"))
        assert plain.answer().status == path.answer().status == 503


def test_a_client_of_http_1_0_gets_them_up_to_the_connections_end(rig: Rig) -> None:
    held(rig)
    with rig.client() as client:
        client.send(request("POST", "/v1/echo", STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"))
        head = client.until(b"\r\n\r\n").lower()
        assert b"connection: close" in head
        assert b"chunked" not in head
        client.until(COMMENT)
        rig.open()
        assert client.rest().replace(COMMENT, b"").startswith(b"data: {")


def test_who_hangs_up_meanwhile_waits_no_longer(rig: Rig) -> None:
    server = held(rig)
    client = rig.client()
    waits(rig, client)
    client.socket.close()
    rig.agent.wait(Load, lambda load: load.waiting == 0 and load.ended == 1)
    assert server.requests == []


def test_a_large_answer_that_is_no_stream_ends_where_it_is_too_large() -> None:
    answer = BegunAnswer(minor=1, keep_alive=True)
    assert answer.begin(b"").endswith(COMMENT + b"\r\n")
    assert answer.feed(b"HTTP/1.1 500 Oh\r\ncontent-length: 9000000\r\n\r\n") == b""
    for _ in range(10):
        assert answer.feed(bytes(100_000)) == b""
    with pytest.raises(BadAnswer):
        answer.feed(bytes(100_000))
    assert answer.failed(Refusal(502, "x", "y")).endswith(b"\r\n0\r\n\r\n")
