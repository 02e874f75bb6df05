"""Bytes over TCP from somebody without the token: an answer in our words, and no traceback in the log for it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from tests.agent.conftest import AgentProcess, agent_process
from tests.conftest import SLOWER

pytestmark = pytest.mark.timeout(120 * SLOWER)

HOST = b"Host: localhost\r\n"


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    yield from agent_process(settings="agent:\n  api: {listen: '127.0.0.1:0'}\n", simulated_gpu=False)


def send(agent: AgentProcess, sent: bytes) -> bytes:
    """One answer."""
    where = urlsplit(agent.client.node().url or "")
    with socket.create_connection((where.hostname, where.port), timeout=20 * SLOWER) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as reader:
            head = b""
            while (line := reader.readline()).strip():
                head += line
            size = re.search(rb"(?i)content-length: (\d+)", head)
            return head + line + reader.read(int(size[1]) if size else 0)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"\0" * 100, 400, id="zeros"),
        pytest.param(b"\xff\xfe\xfd\r\n\r\n", 400, id="no text"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x77" * 64, 400, id="a TLS hello"),
        pytest.param(b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", 400, id="another version"),
        pytest.param(b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431, id="a long path"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 20000 + b"\r\n\r\n", 431, id="a long field"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X\xff: 1\r\n\r\n", 400, id="a field's name"),
        pytest.param(b"GET http://[ HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="an address that is none"),
        pytest.param(b"GET //[/v1/node HTTP/1.1\r\n" + HOST + b"\r\n", 401, id="a path like an address"),
        pytest.param(b"GET /v1/\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="a path that is no text"),
        pytest.param(b"GET /v1/%ff%fe?x=%ff HTTP/1.1\r\n" + HOST + b"\r\n", 401, id="an encoded path that is no text"),
        pytest.param(b"CONNECT x:1 HTTP/1.1\r\n" + HOST + b"\r\n", 401, id="a proxy's method"),
        pytest.param(b"GET /v1/node HTTP/1.1\r\n" + HOST + b"Origin: http://[\r\n\r\n", 403, id="an origin that is none"),
        pytest.param(b"GET /v1/node HTTP/1.1\r\n" + HOST + b"Origin: \xff\r\n\r\n", 403, id="an origin that is no text"),
        pytest.param(b"GET /v1/node HTTP/1.1\r\nHost: [\r\n\r\n", 421, id="a host that is none"),
        pytest.param(b"GET /v1/node HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", 421, id="a host that is no text"),
        pytest.param(b"GET /v1/node HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param(b"GET /v1/node HTTP/1.1\r\n" + HOST + b"Authorization: Bearer \xff\xfe\r\n\r\n", 401, id="token"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"If-None-Match: \xff, \"\r\n\r\n", 200, id="a tag"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Cookie: \xff=\xff; [\r\n\r\n", 200, id="a cookie"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400, id="a length below zero"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, id="two lengths"),
        pytest.param(
            b"POST /v1/workloads HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, id="no chunk"
        ),
        pytest.param(
            b"POST /v1/workloads HTTP/1.1\r\n" + HOST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
            401,
            id="not compressed",
        ),
        pytest.param(
            b"POST /v1/workloads HTTP/1.1\r\n" + HOST + b"Content-Length: 99\r\n\r\n{", 401, id="half a body"
        ),
        pytest.param(b"POST / HTTP/1.1\r\n" + HOST + b"Expect: \xff\r\nContent-Length: 1\r\n\r\n", 417, id="expects"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: \xff\r\nConnection: upgrade\r\n\r\n", 200, id="upgrade"),
    ],
)  # fmt: skip
def test_bad_bytes_are_answered_and_leave_no_traceback(agent: AgentProcess, sent: bytes, status: int) -> None:
    before = len(agent.log.read_bytes())
    received = send(agent, sent)
    assert agent.client.node().pid == agent.pid
    said = agent.log.read_bytes()[before:]
    assert b"Traceback" not in said, said.decode(errors="replace")
    assert b"Error handling" not in said, said.decode(errors="replace")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.split(b" ")[1:2] == [str(status).encode()], received[:500]
    assert b"Traceback" not in received
    if status >= 400:
        error = json.loads(body)
        assert error["message"]
        assert "\n" not in error["message"]
