"""Web pages of other sites: none may ask but those that are named, which are told so without a key, and need one like anybody."""

from __future__ import annotations

import hashlib

import pytest
from tests.proxy.rig import Rig, request

from kybernate.model.messages import Endpoint, Key, Load

PAGE = "https://chat.example.org"
ALLOW = "access-control-allow-origin"
KEYS = (Key("all", hashlib.sha256(b"secret-all").hexdigest()),)
JSON = b'{"model":"m"}'


def asks(origin: str, headers: str = "authorization,content-type,x-stainless-lang") -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": headers,
    }


@pytest.mark.parametrize("origins", [(PAGE, "http://localhost:3000"), ("*",)])
def test_a_page_that_is_named(rig: Rig, origins: tuple[str, ...]) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), keys=KEYS, origins=origins)
    rig.open()
    with rig.client() as client:
        for path in ("/v1/chat/completions", "/v1/models", "/svc", "/upstream/m/x", "/rerank"):
            answer = client.ask("OPTIONS", path, **asks(PAGE))
            assert answer.status == 204
            assert answer.fields[ALLOW] == ("*" if origins == ("*",) else PAGE)
            assert "POST" in answer.fields["access-control-allow-methods"]
            assert answer.fields["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
            assert "access-control-allow-credentials" not in answer.fields
        assert server.requests == []
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/svc")):
            body = JSON if method == "POST" else None
            answer = client.ask(method, path, body, origin=PAGE)
            assert (answer.status, answer.code) == (401, "invalid_api_key"), "a key is needed as ever"
            assert ALLOW in answer.fields, "and the page can read that"
            answer = client.ask(method, path, body, origin=PAGE, x_api_key="secret-all")
            assert answer.status == 200
            assert answer.fields[ALLOW] in ("*", PAGE)
            assert "x-kybernate-wait-ms" in answer.fields["access-control-expose-headers"]
            assert ALLOW not in client.ask(method, path, body, x_api_key="secret-all").fields


def test_errors_can_be_read_by_the_page(rig: Rig) -> None:
    rig.configure(Endpoint("m", 1, paths=("/svc",)), origins=(PAGE,))
    rig.open()
    with rig.client() as client:
        for answer in (
            client.ask("POST", "/v1/x", b"{", origin=PAGE),
            client.ask("POST", "/v1/x", b'{"model":"other"}', origin=PAGE),
            client.ask("GET", "/nowhere", origin=PAGE),
            client.ask("POST", "/v1/x", JSON, origin=PAGE, x_kybernate_max_wait="soon"),
            client.ask("POST", "/v1/x", JSON, origin=PAGE, content_encoding="compress"),
        ):
            assert (400 <= answer.status < 600, answer.fields.get(ALLOW)) == (True, PAGE), answer.body
    with rig.client() as client:
        rig.close()
        client.send(request("POST", "/v1/x", JSON, origin=PAGE, x_kybernate_max_wait="0.1"))
        answer = client.answer()
        assert (answer.code, answer.fields[ALLOW]) == ("hold_timeout", PAGE)


def test_pages_that_are_not_named(rig: Rig) -> None:
    server = rig.serve(hosts=())
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), origins=(PAGE,))
    with rig.client() as client:
        for origin in (
            "https://evil.example",
            PAGE + ".evil.example",
            PAGE + ":8443",
            "http://chat.example.org",
            "null",
            "https://evil.example, " + PAGE,
            "",
        ):
            answer = client.ask("OPTIONS", "/v1/chat/completions", **asks(origin))
            assert answer.status == 404, origin
            assert ALLOW not in answer.fields
            answer = client.ask("POST", "/v1/chat/completions", JSON, origin=origin, content_type="text/plain")
            assert (answer.status, ALLOW in answer.fields) == (403, False)
    assert server.requests == []


def test_without_origins_nothing_is_said_to_any_page(rig: Rig) -> None:
    server = rig.serve()
    with rig.client() as client:
        assert client.ask("OPTIONS", "/v1/chat/completions", **asks(PAGE)).status == 404
        assert ALLOW not in client.ask("GET", "/v1/models", origin=PAGE).fields
        raw = b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\n\r\n"
        answer = client.ask("OPTIONS", f"/svc/raw?{raw.hex()}", **asks(PAGE))
        assert answer.fields[ALLOW] == "*", "on its own path that is the server's own to say"
    assert len(server.requests) == 1


@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
def test_who_keeps_answers_is_told_that_pages_are_answered_otherwise(rig: Rig, origins: tuple[str, ...]) -> None:
    """Else a page that may ask gets what was kept of an answer to somebody else, and its browser doesn't show it that."""
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), origins=origins)
    rig.open()
    with rig.client() as client:
        for path in ("/v1/models", "/svc", "/nowhere"):
            for fields in ({}, {"origin": PAGE}, {"origin": "https://evil.example"}):
                assert client.ask("GET", path, **fields).fields["vary"] == "Origin", (path, fields)
        rig.configure(Endpoint("m", server.port, paths=("/svc",)))
        while "vary" in client.ask("GET", "/v1/models").fields:
            pass
        assert ALLOW not in client.ask("GET", "/v1/models", origin=PAGE).fields


def test_what_the_server_says_of_pages_is_not_said_twice(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), origins=(PAGE,))
    rig.open()
    raw = (
        b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\n"
        b"content-length: 2\r\n\r\nok"
    )
    with rig.client() as client:
        client.send(request("GET", f"/svc/raw?{raw.hex()}", origin=PAGE))
        head = client.until(b"\r\n\r\n").lower()
        assert head.count(b"access-control-allow-origin") == 1
        assert b"credentials" not in head
        assert client.exactly(2) == b"ok"


def test_odd_questions_are_answered_with_plain_words(rig: Rig) -> None:
    rig.configure(Endpoint("m", 1), origins=(PAGE,))
    with rig.client() as client:
        for headers in ("x y", "a" * 5000, "", 'a"b'):
            answer = client.ask("OPTIONS", "/v1/x", **asks(PAGE, headers))
            assert answer.fields["access-control-allow-headers"] == "authorization, content-type, x-api-key"
        client.send(b"OPTIONS /v1/x HTTP/1.1\r\nhost: evil.example\r\norigin: " + PAGE.encode() + b"\r\n")
        client.send(b"access-control-request-method: POST\r\n\r\n")
        assert client.answer().status == 204, "any name is ours here"
        rig.configure(Endpoint("m", 1), origins=(PAGE,), hosts=("ours",))
        rig.agent.send()
        with rig.client() as other:
            while (answer := other.ask("OPTIONS", "/v1/x", host="evil.example", **asks(PAGE))).status == 204:
                pass
            assert answer.code == "misdirected"
    assert not rig.agent.of(Load)
