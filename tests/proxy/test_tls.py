"""HTTPS, with a certificate of the test's own."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.certificates import self_signed
from tests.proxy.rig import Client, Rig, around_the_kernels_limit, request


@pytest.fixture
def context(rig: Rig, tmp_path: Path) -> ssl.SSLContext:
    """What a client needs for a worker that speaks TLS and serves the model `m`."""
    certificate, key = self_signed(tmp_path)
    rig.start("--tls-certificate", str(certificate), "--tls-key", str(key))
    rig.serve()
    return ssl.create_default_context(cafile=str(certificate))


def secure(rig: Rig, context: ssl.SSLContext) -> Client:
    return Client(rig.port, wrap=lambda plain: context.wrap_socket(plain, server_hostname="localhost"))


def test_https(rig: Rig, context: ssl.SSLContext) -> None:
    with secure(rig, context) as client:
        assert client.socket.version() in ("TLSv1.2", "TLSv1.3")  # type: ignore[attr-defined]
        for _ in range(2):
            fields = dict(client.model("m").json()["fields"])
            assert fields["x-forwarded-proto"] == "https"
        big = bytes(range(256)) * 20_000
        assert client.ask("PUT", "/svc", big).json()["size"] == len(big)
        got = client.ask("GET", f"/svc/bytes?{8 << 20}")
        assert len(got.body) == 8 << 20
        client.send(b"GET /svc HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert client.answer().status == 200
        assert client.rest() == b""
    with Client(rig.port) as plain:
        plain.send(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP/1.1 200" not in plain.rest()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with secure(rig, context) as client:
        assert client.ask("GET", "/health").status == 200


def test_a_slow_reader_gets_the_whole_of_a_connections_last_answer(rig: Rig, context: ssl.SSLContext) -> None:
    """As without TLS. It reads after longer than a closed connection is lingered for."""
    with contextlib.ExitStack() as stack:
        clients = []
        for size in around_the_kernels_limit():
            client = stack.enter_context(secure(rig, context))
            client.send(request("GET", f"/svc/bytes?{size}", connection="close"))
            clients.append((client, size))
        deadline = time.monotonic() + 4.5
        while time.monotonic() < deadline:
            with secure(rig, context) as other:
                assert other.ask("GET", "/health").status == 200
        for client, size in clients:
            assert len(client.answer().body) == size


def test_a_certificate_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("nonsense")
    for arguments in (
        ["--tls-certificate", str(tmp_path / "c.pem"), "--tls-key", str(tmp_path / "c.pem")],
        ["--tls-key", "/nowhere"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "kybernate.proxy", "--agent", "/x", "--listen", "127.0.0.1:0", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
