"""What two parsers could read in two ways reaches no server, and no client."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from random import Random

import pytest
from tests.conftest import Eventually
from tests.proxy.rig import Rig, request

from kybernate.model.messages import Drained, Endpoint

H = b"host: a\r\n"
REFUSED = {
    "both lengths": b"POST /svc HTTP/1.1\r\n"
    + H
    + b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG",
    "two lengths": b"POST /svc HTTP/1.1\r\n" + H + b"content-length: 1\r\ncontent-length: 2\r\n\r\nxy",
    "two equal lengths": b"POST /svc HTTP/1.1\r\n" + H + b"content-length: 1\r\ncontent-length: 1\r\n\r\nx",
    "a list of lengths": b"POST /svc HTTP/1.1\r\n" + H + b"content-length: 1, 1\r\n\r\nx",
    "a signed length": b"POST /svc HTTP/1.1\r\n" + H + b"content-length: +1\r\n\r\nx",
    "a hexadecimal length": b"POST /svc HTTP/1.1\r\n" + H + b"content-length: 0x1\r\n\r\nx",
    "an endless length": b"POST /svc HTTP/1.1\r\n" + H + b"content-length: 99999999999999999999\r\n\r\n",
    "chunked, hidden": b"POST /svc HTTP/1.1\r\n" + H + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, twice": b"POST /svc HTTP/1.1\r\n" + H + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked, not last": b"POST /svc HTTP/1.1\r\n" + H + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "gzip, chunked": b"POST /svc HTTP/1.1\r\n" + H + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "two codings": b"POST /svc HTTP/1.1\r\n"
    + H
    + b"transfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n0\r\n\r\n",
    "vertical tab": b"POST /svc HTTP/1.1\r\n" + H + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /svc HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before colon": b"POST /svc HTTP/1.1\r\n" + H + b"content-length : 1\r\n\r\nx",
    "space before name": b"POST /svc HTTP/1.1\r\n content-length: 1\r\n" + H + b"\r\nx",
    "folded": b"GET /svc HTTP/1.1\r\n" + H + b"x: y\r\n z: 1\r\n\r\n",
    "bare line feeds": b"GET /svc HTTP/1.1\n" + b"host: a\n\n",
    "one bare line feed": b"GET /svc HTTP/1.1\r\n" + H + b"x: y\nz: 1\r\n\r\n",
    "bare carriage return": b"GET /svc HTTP/1.1\r\n" + H + b"x: y\rz: 1\r\n\r\n",
    "NUL": b"GET /svc HTTP/1.1\r\n" + H + b"x: a\0b\r\n\r\n",
    "NUL in a name": b"GET /svc HTTP/1.1\r\n" + H + b"x\0: b\r\n\r\n",
    "no colon": b"GET /svc HTTP/1.1\r\n" + H + b"nonsense\r\n\r\n",
    "no host": b"GET /svc HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /svc HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "odd host": b"GET /svc HTTP/1.1\r\nhost: a/b\r\n\r\n",
    "two spaces": b"GET  /svc HTTP/1.1\r\n" + H + b"\r\n",
    "tabs": b"GET\t/svc\tHTTP/1.1\r\n" + H + b"\r\n",
    "trailing words": b"GET /svc HTTP/1.1 x\r\n" + H + b"\r\n",
    "no version": b"GET /svc\r\n\r\n",
    "HTTP/1.2": b"GET /svc HTTP/1.2\r\n" + H + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "lower case": b"GET /svc http/1.1\r\n" + H + b"\r\n",
    "unknown method": b"GOT /svc HTTP/1.1\r\n" + H + b"\r\n",
    "tunnel": b"CONNECT a:80 HTTP/1.1\r\n" + H + b"\r\n",
    "trace": b"TRACE /svc HTTP/1.1\r\n" + H + b"\r\n",
    "fragment": b"GET /svc#x HTTP/1.1\r\n" + H + b"\r\n",
    "dots": b"GET /svc/../v1/x HTTP/1.1\r\n" + H + b"\r\n",
    "dots at the end": b"GET /svc/.. HTTP/1.1\r\n" + H + b"\r\n",
    "one dot": b"GET /svc/./x HTTP/1.1\r\n" + H + b"\r\n",
    "encoded dots": b"GET /svc/%2E%2e/x HTTP/1.1\r\n" + H + b"\r\n",
    "half encoded dots": b"GET /svc/.%2e?x HTTP/1.1\r\n" + H + b"\r\n",
    "dots behind an encoded slash": b"GET /svc%2f..%2Fx HTTP/1.1\r\n" + H + b"\r\n",
    "dots behind a backslash": b"GET /svc\\..\\x HTTP/1.1\r\n" + H + b"\r\n",
    "dots with a parameter": b"GET /svc/..;/x HTTP/1.1\r\n" + H + b"\r\n",
    "dots in an absolute target": b"GET http://a/svc/../x HTTP/1.1\r\n" + H + b"\r\n",
    "dots in a path of OpenAI's": b"POST /v1/../admin HTTP/1.1\r\n" + H + b"content-length: 0\r\n\r\n",
    "no path": b"GET svc HTTP/1.1\r\n" + H + b"\r\n",
    "eight bits": b"GET /svc\xff HTTP/1.1\r\n" + H + b"\r\n",
    "a long target": b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n" + H + b"\r\n",
    "a large head": b"GET /svc HTTP/1.1\r\n" + H + b"x: " + b"y" * 70_000 + b"\r\n\r\n",
    "many fields": b"GET /svc HTTP/1.1\r\n" + H + b"x: y\r\n" * 130 + b"\r\n",
    "two keys": b"GET /svc HTTP/1.1\r\n" + H + b"authorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
    "a connection of nonsense": b"GET /svc HTTP/1.1\r\n" + H + b"connection: a b\r\n\r\n",
}


def test_heads_that_are_refused(rig: Rig) -> None:
    server = rig.serve()
    for name, raw in REFUSED.items():
        with rig.client() as client:
            client.send(raw)
            answer = client.answer(head_only=True)
            assert 400 <= answer.status < 600, name
            assert answer.fields["connection"] == "close", name
            assert ("allow" in answer.fields) == (answer.status == 405), name
            client.rest()
    assert server.requests == []
    assert server.control()["connections"] == 0


CHUNKS = {
    "size with a sign": b"+1\r\nx\r\n0\r\n\r\n",
    "size with 0x": b"0x1\r\nx\r\n0\r\n\r\n",
    "size with spaces": b"1 \r\nx\r\n0\r\n\r\n",
    "size too large": b"fffffffffffffffff\r\nx\r\n0\r\n\r\n",
    "no size": b"\r\nx\r\n0\r\n\r\n",
    "chunk too long": b"1\r\nxy\r\n0\r\n\r\n",
    "bare line feed behind the size": b"1\nx\r\n0\r\n\r\n",
    "bare line feed behind the chunk": b"1\r\nx\n0\r\n\r\n",
    "bare carriage return in an extension": b"1;a=\rb\r\nx\r\n0\r\n\r\n",
    "line feed in an extension": b"1;a=\nb\r\nx\r\n0\r\n\r\n",
    "an endless extension": b"1;" + b"a" * 2000 + b"\r\nx\r\n0\r\n\r\n",
    "a length as trailer": b"0\r\ncontent-length: 5\r\n\r\n",
    "a key as trailer": b"0\r\nauthorization: x\r\n\r\n",
    "a trailer without colon": b"0\r\nnonsense\r\n\r\n",
    "endless trailers": b"0\r\n" + b"x: y\r\n" * 4000 + b"\r\n",
}


def test_chunks_that_are_refused(rig: Rig) -> None:
    server = rig.serve()
    for name, raw in CHUNKS.items():
        for path in ("/svc", "/v1/completions"):
            with rig.client() as client:
                client.send(f"POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".encode() + raw)
                try:
                    status = client.answer().status
                    assert status == 400, (name, path)
                    client.rest()
                except (EOFError, ConnectionResetError):
                    pass
    assert server.requests == [], "no request became whole at the server"


def test_what_is_inside_a_body_is_no_request(rig: Rig) -> None:
    server = rig.serve()
    inner = request("GET", "/svc/stolen")
    with rig.client() as client:
        assert client.ask("POST", "/svc/a", inner).json()["size"] == len(inner)
        client.send(
            b"POST /svc/b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
            % (len(inner), inner)
        )
        assert client.answer().json()["size"] == len(inner)
        assert client.ask("GET", "/svc/c").status == 200
    assert [r["target"] for r in server.requests] == ["/svc/a", "/svc/b", "/svc/c"]


def test_the_body_of_a_page_is_no_request(rig: Rig) -> None:
    """Skipped where it came in whole with its head; else it ends the connection."""
    server = rig.serve()
    inner = request("GET", "/svc/stolen")
    with rig.client() as client:
        for path in ("/v1/models", "/nowhere", "/health"):
            client.send(f"GET {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(inner)}\r\n\r\n".encode() + inner)
            assert client.answer().fields.get("connection") is None
        client.send(b"GET /v1/models HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (len(inner) + 1) + inner)
        assert client.answer().fields["connection"] == "close"
        client.send(b"x" + inner)
        assert client.rest() == b""
    with rig.client() as client:
        client.send(b"GET /nowhere HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + inner)
        assert client.answer().fields["connection"] == "close"
        assert client.rest() == b""
    assert server.requests == []


def test_fields_of_one_connection_stay_there(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        answer = client.ask(
            "GET",
            "/svc",
            connection="keep-alive, x-gone, host, x-forwarded-for",
            x_gone="1",
            keep_alive="5",
            te="trailers",
            proxy_authorization="Basic x",
            proxy_connection="close",
            upgrade="h2c",
            x_forwarded_for="6.6.6.6",
            x_forwarded_proto="https",
            x_forwarded_host="evil",
            x_kybernate_tier="forged",
        )
        fields = answer.json()["fields"]
        names = [name for name, _ in fields]
        assert len(names) == len(set(names))
        named = dict(fields)
        assert set(named) == {"host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id"}
        assert (named["x-forwarded-for"], named["x-forwarded-proto"]) == ("6.6.6.6, 127.0.0.1", "http")
        assert (named["host"], named["x-forwarded-host"]) == ("here", "here")


def test_underscores_do_not_pass_for_dashes(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        client.send(
            b"GET /svc HTTP/1.1\r\nhost: a\r\nX_Forwarded_For: 6.6.6.6\r\nTransfer_Encoding: chunked\r\nx_other: 1\r\n\r\n"
        )
        fields = dict(client.answer().json()["fields"])
    assert "x_forwarded_for" not in fields
    assert "transfer_encoding" not in fields
    assert fields["x_other"] == "1"


def test_h2c_is_no_upgrade(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        answer = client.ask(
            "GET", "/svc", connection="upgrade, http2-settings", upgrade="h2c", http2_settings="AAMAAABk"
        )
        assert {"upgrade", "connection", "http2-settings"}.isdisjoint(dict(answer.json()["fields"]))


def test_an_absolute_target_names_the_host(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        client.send(b"GET http://other:80/svc?x HTTP/1.1\r\nhost: a\r\n\r\n")
        seen = client.answer().json()
        assert (seen["target"], dict(seen["fields"])["host"]) == ("/svc?x", "other:80")


@pytest.mark.parametrize("keep", [True, False])
def test_answers_that_are_not_passed_on(rig: Rig, keep: bool) -> None:
    rig.serve()
    for raw in (
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\nset-cookie: x\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx y: a\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 099 Odd\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"content-length: 0\r\n\r\n",
    ):
        with rig.client() as client:
            client.send(request("GET", f"/svc/raw?{raw.hex()}" + ("" if keep else "&close")))
            while (answer := client.answer()).status == 100:
                pass
            assert (answer.status, answer.code) == (502, "bad_answer"), raw
            assert client.model("m").status == 200, "the client's connection is as good as before"


def test_more_than_the_answer_is_not_the_next_answer(rig: Rig) -> None:
    rig.serve()
    stolen = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen"
    for raw in (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" + stolen,
        b"HTTP/1.1 204 No Content\r\n\r\n" + stolen,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + stolen,
    ):
        with rig.client() as client:
            assert client.ask("GET", f"/svc/raw?{raw.hex()}").body in (b"ok", b"")
            assert client.model("m").json()["method"] == "POST"


def test_answers_can_not_forge_our_fields(rig: Rig) -> None:
    rig.serve()
    raw = b"HTTP/1.1 200 OK\r\nx-kybernate-tier: forged\r\nx-request-id: forged\r\nproxy-connection: x\r\ncontent-length: 0\r\n\r\n"
    with rig.client() as client:
        answer = client.ask("GET", f"/svc/raw?{raw.hex()}")
        assert b"forged" not in answer.raw
        assert b"proxy-connection" not in answer.raw


def test_request_ids(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        assert client.ask("GET", "/svc", x_request_id="abc-1").fields["x-request-id"] == "abc-1"
        made = client.ask("GET", "/svc", x_request_id="x" * 200).fields["x-request-id"]
        assert 0 < len(made) < 40


def test_slow_heads_and_silent_bodies_are_ended(rig: Rig, eventually: Eventually) -> None:
    """Nobody keeps a connection busy by dripping a head. Takes as long as a head may."""
    rig.serve()
    with rig.client() as drips:
        for byte in b"GET /svc HTTP/1.1\r\nhost: aaaaaaaaa"[:-1]:
            drips.send(bytes([byte]))
        answer = drips.answer()
        assert (answer.status, answer.code) == (408, "timeout")
        assert drips.ended


def test_idle_connections_are_closed(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port), idle_s=0.2)
    rig.open()
    with rig.client() as client, rig.client() as fresh:
        assert client.model("m").status == 200
        assert client.ended
        assert fresh.ended


def test_dots_that_are_no_way_up_pass(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        for target in ("/svc/...", "/svc/.x/y..", "/svc/a.b/c%2e", "/svc?a=/../b", "/svc/..x"):
            assert client.ask("GET", target).status == 200, target


class _Careless(http.server.BaseHTTPRequestHandler):
    """Python's own, which doesn't read a body that nobody asked for, and takes it for the next request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200 if self.path.startswith("/svc") else 403)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.send_response(200 if self.path.endswith(("/ok", "completions")) else 403)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_body_that_the_server_leaves_unread_is_no_request_of_the_next_client(rig: Rig) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Careless) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            rig.configure(Endpoint("m", server.server_address[1], paths=("/svc",)))
            rig.open()
            inner = request("GET", "/stolen")
            for method, path, status in (
                ("GET", "/svc/attacker", 200),
                ("POST", "/svc/attacker", 403),
                ("POST", "/svc/attacker/ok", 200),
            ):
                for _ in range(20):
                    with rig.client() as attacker, rig.client() as victim:
                        # At once, so that the second is sent on the first one's connection as soon as it is free.
                        attacker.send(request(method, path, inner))
                        victim.send(request("GET", "/svc/victim"))
                        assert attacker.answer().status == status
                        assert victim.answer().body == b"/svc/victim"
                        assert victim.ask("GET", "/svc/again").body == b"/svc/again"
        finally:
            server.shutdown()
            thread.join()


def test_a_connection_that_carried_a_body_is_for_its_client_only(rig: Rig) -> None:
    """And kept for it, as if it were connected itself."""
    server = rig.serve()

    def made() -> int:
        """Connections that carried requests."""
        return len(server.control()["raw"])

    with rig.client() as one, rig.client() as two:
        for _ in range(5):
            assert one.model("m").status == 200
        assert made() == 1
        assert two.ask("GET", "/svc").status == 200
        assert made() == 2
        for _ in range(5):
            assert two.model("m").status == 200
        assert made() == 2, "what carried none was for anybody, and is the second's now"
    rig.close()
    rig.agent.wait(Drained, lambda drained: drained.epoch == rig.epoch)


def test_a_client_that_leaves_leaves_no_connection(rig: Rig, eventually: Eventually) -> None:
    """They end with their clients, and not since they are idle: one that is idle for longer is still there."""
    server = rig.serve()

    def only_that_of_who_stays() -> bool:
        with rig.client() as stays:
            assert stays.model("m").status == 200
            for _ in range(20):
                with rig.client() as client:
                    assert client.model("m").status == 200
            [left] = eventually(lambda: (count := server.control()["connections"]) <= 1 and [count])
            return bool(left == 1)

    eventually(only_that_of_who_stays, what="an end before they are idle for long")


def test_a_body_that_the_servers_kernel_has_not_taken_was_not_read(rig: Rig) -> None:
    """Its connection isn't even for the same client any more."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Careless) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            rig.configure(Endpoint("m", server.server_address[1], paths=("/svc",)))
            rig.open()
            body = b'{"model":"m","x":"' + b"x" * (1 << 20) + b'"}'
            for _ in range(10):
                with rig.client() as client:
                    client.send(request("POST", "/v1/completions", body))
                    assert client.answer().status == 200
                    assert client.ask("GET", "/svc/next").body == b"/svc/next"
        finally:
            server.shutdown()
            thread.join()


def test_what_follows_an_upgrade_is_a_request_only_if_it_was_declined(rig: Rig) -> None:
    server = rig.serve()
    inner = request("GET", "/svc/b")
    upgrade = {"connection": "upgrade", "upgrade": "websocket"}
    with rig.client() as client:
        client.send(request("GET", "/svc/a", None, **upgrade) + inner)
        assert [client.answer().json()["target"] for _ in range(2)] == ["/svc/a", "/svc/b"]
        raw = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello"
        client.send(request("GET", f"/svc/raw?{raw.hex()}", None, **upgrade) + inner)
        assert client.answer(head_only=True).status == 101
        assert client.exactly(5) == b"hello"
        # Tunnelled as it is: the test's server takes it for a request, without what would have been put in.
        assert "x-request-id" not in dict(client.answer().json()["fields"])
    assert len(server.requests) == 4


REQUESTS = (
    *(b"GET ", b"POST ", b"HEAD ", b"/svc/echo", b"/svc/interim", b"/v1/completions", b"/health", b" HTTP/1.1\r\n"),
    *(
        b" HTTP/1.0\r\n",
        b"host: a\r\n",
        b"content-length: 13\r\n",
        b"content-length: 0\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
    ),
    *(b"transfer-encoding: chunked\r\n", b"connection: close\r\n", b"expect: 100-continue\r\n", b'{"model":"m"}'),
    *(b'd\r\n{"model":"m"}\r\n0\r\n\r\n', b"5\r\nhello\r\n", b"0\r\nx: y\r\n\r\n", b"x-kybernate-max-wait: 0.01\r\n"),
    *(b"connection: upgrade\r\nupgrade: websocket\r\n", b"content-type: multipart/form-data; boundary=b\r\n"),
)
WHOLE = (
    b"GET /svc/echo HTTP/1.1\r\nhost: a\r\n\r\n",
    b'POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 13\r\n\r\n{"model":"m"}',
    b"POST /svc/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /svc/echo HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
)
ANSWERS = (
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 101 S\r\n", b"HTTP/1.1 100 C\r\n\r\n", b"HTTP/1.1 204 N\r\n"),
    *(b"HTTP/1.0 200 OK\r\n", b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n"),
    *(
        b"connection: upgrade\r\nupgrade: websocket\r\n",
        b"\r\n",
        b"hello",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"\n",
        b"x: y\r\n",
    ),
)


def noise(random: Random) -> bytes:
    kind = random.randrange(3)
    if kind == 0:
        return b"".join(random.choices(REQUESTS, k=random.randint(1, 14)))
    if kind == 1:
        data = bytearray(b"".join(random.choices(WHOLE, k=random.randint(1, 4))))
        for _ in range(random.randint(0, 4)):
            at = random.randrange(len(data))
            data[at : at + random.randint(0, 3)] = random.choice([*REQUESTS, bytes([random.randrange(256)])])
        return bytes(data)
    raw = b"".join(random.choices(ANSWERS, k=random.randint(1, 8))).hex()
    more = random.choice(({}, {"connection": "upgrade", "upgrade": "websocket"}))
    ask = request(random.choice(["GET", "POST", "HEAD"]), f"/svc/raw?{raw}", random.choice([None, b"x"]), **more)
    return ask * random.randint(1, 3)


@pytest.mark.parametrize("seed", range(3))
def test_noise_does_no_harm(rig: Rig, seed: int) -> None:
    """From both sides, in any pieces, while the model comes and goes: afterwards all is as before, and nothing is left in flight.
    (A traceback in the worker's log fails the test as well.)"""
    random = Random(seed)
    server = rig.serve()
    for number in range(150):
        with rig.client() as client:
            data = noise(random)
            client.socket.settimeout(0.01)
            with contextlib.suppress(OSError):
                while data:
                    size = random.choice([len(data), random.randint(1, 40)])
                    client.send(data[:size])
                    data = data[size:]
                if random.random() < 0.2:
                    client.socket.shutdown(socket.SHUT_WR)
                while client.socket.recv(1 << 16):
                    pass
        if number % 40 == 39:
            rig.close(preempt=random.random() < 0.5)
            if random.random() < 0.5:
                rig.agent.wait(Drained, lambda drained: drained.epoch == rig.epoch)
            rig.open()
    with rig.client() as client:
        assert client.ask("GET", "/svc/still").status == client.model("m").status == 200
    rig.close()
    rig.agent.wait(Drained, lambda drained: drained.epoch == rig.epoch)
    for seen in server.requests:
        names = [name for name, _ in seen["fields"]]
        if "x-request-id" in names:  # else it was said through a tunnel
            assert names.count("host") == 1
            assert names.count("content-length") + names.count("transfer-encoding") <= 1
