"""Clients and servers that mean harm, or don't read: nobody else's requests suffer from them, and memory has bounds."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import assume, example, given
from tests.conftest import Eventually
from tests.proxy.rig import Client, Rig, around_the_kernels_limit, request

from kybernate.model.messages import Drained, Endpoint, Load
from kybernate.proxy.__main__ import _listener
from kybernate.proxy.forms import BadForm, field_of
from kybernate.proxy.model_field import BadName, model_in, with_model
from kybernate.proxy.patience import UNREAD_S

DEEP = 200_000


def rss(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096


def reads_little(rig: Rig) -> Client:
    client: Client = rig.client()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return client


def status_of(rig: Rig, path: str, body: bytes, **fields: str) -> int:
    """The status of a request on a connection of its own."""
    with rig.client() as client:
        return int(client.ask("POST", path, body, **fields).status)


def reads_much(client: Client) -> None:
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' + b"[" * DEEP + b"]" * DEEP + b',"model":"m"}',
        b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        b'{"model":"m","a":' + b"[" * DEEP,
        b"[" * DEEP,
        b"\xef\xbb\xbf" + b'{"model":"m"}',
        b'{"model":"\\ud800"}',
        b'{"model":"\xff"}',
        b'{"model":["m"]}',
        b'{"MODEL":"m"}',
        b'{"model":"m"}{"model":"m"}',
        b'{"model":"m"}\0',
        b"",
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_bodies_that_make_no_sense_are_answered(rig: Rig, body: bytes) -> None:
    server = rig.serve(rewrite_model="inner")
    with rig.client() as client:
        answer = client.ask("POST", "/v1/completions", body)
        assert (answer.status, answer.code) == (400, "invalid_body")
        assert client.model("m").status == 200, "the connection is as good as before"
    assert len(server.requests) == 1


def test_the_model_that_was_found_is_the_model_that_is_sent(rig: Rig) -> None:
    """Of two, the last one counts, as for Python's json; one that is rewritten goes as one."""
    server = rig.serve(rewrite_model="inner")
    with rig.client() as client:
        assert client.ask("POST", "/v1/completions", b'{"model":"x","model":"m"}').status == 200
        assert client.ask("POST", "/v1/completions", b'{"model":"m","model":"x"}').status == 404
        assert client.ask("POST", "/v1/completions", b'{"model":"m","n":' + b"9" * 5000 + b"}").status == 200
    assert server.requests[0]["body"] == '{"model":"inner"}'
    assert server.requests[1]["body"] == '{"model":"inner","n":' + "9" * 5000 + "}"


def part(name: str, value: bytes) -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"


FORM = b"multipart/form-data; boundary=b"


def test_forms() -> None:
    assert field_of(part("file", b"--b;x\r\n--") + part("model", b"m") + b"--b--\r\n", FORM).name == "m"
    assert field_of(b"preamble\r\n" + part("model", b"m\r\n") + b"--b--\r\n", FORM).name == "m\r\n"
    assert (
        field_of(b"--b\r\nContent-Disposition: form-data; filename=x; NAME=model; y\r\n\r\nm\r\n--b--", FORM).name
        == "m"
    )
    for senseless in (
        b"",
        b"--b",
        b"--b\r\n\r\n",
        part("models", b"m"),
        part("file", b"model") + b"--b--\r\n",
        part("model", b"m" * 2000),
        part("model", b"m") + part("model", b"m"),
        part("model", b"m") + part("x", b"") * 1000,
        part("x", b"") * 1000 + part("model", b"m"),
        b"--b\r\n" + b"x" * 5000 + part("model", b"m")[3:],
        b'--b\r\nx-content-disposition: form-data; name="model"\r\n\r\nm\r\n--b--',
    ):
        with pytest.raises(BadForm):
            field_of(senseless, FORM)


@pytest.mark.parametrize(
    "piece",
    [
        b"\r\n" + (b"content-disposition:;" * 190) + b"\r\n\r\nx\r\n--b",
        b"\r\ncontent-disposition: a;" + b" " * 1900 + b";name=x\r\n\r\nx\r\n--b",
        b"\r\n\r\n\r\n--b",
        b"\r\n--b",
    ],
)
def test_forms_made_to_be_searched_for_long(piece: bytes) -> None:
    """What is looked at has a bound, so a form of 32 MiB takes no longer than any other. Time of this process alone."""
    body = b"--b" + piece * ((32 << 20) // len(piece))
    began = time.process_time()
    with pytest.raises(BadForm):
        field_of(body, FORM)
    assert time.process_time() - began < 1.0


def test_who_reads_no_answers_is_read_no_requests_from(rig: Rig) -> None:
    """Answers of our own to pipelined requests aren't heaped up."""
    rig.serve()
    with reads_little(rig) as client:
        before = rss(rig.pid)
        client.socket.settimeout(2)
        block = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n" * 1000
        with pytest.raises(TimeoutError):
            client.socket.sendall(block * 2000)  # 66 MB, of which the answers would take five times as much
        assert rss(rig.pid) - before < 24 << 20
        client.socket.settimeout(60)
        reads_much(client)
        for _ in range(1000):
            assert client.answer().status == 200, "and it goes on as soon as they are read"
    with rig.client() as other:
        assert other.model("m").status == 200


def test_one_that_does_not_read_stops_nobody_elses_answer(rig: Rig) -> None:
    """The last bytes of an answer fill the client's buffer, so the server's connection isn't read: until the next request's."""
    rig.serve()
    for size in around_the_kernels_limit():
        with rig.client() as sleeper:
            sleeper.send(request("GET", f"/svc/bytes?{size}"))
            sleeper.until(b"\r\n\r\n")
            with rig.client() as client:
                assert client.model("m").status == 200


def test_a_slow_reader_gets_the_whole_of_a_connections_last_answer(rig: Rig) -> None:
    """It reads after longer than a closed connection is lingered for."""
    rig.serve()
    clients = []
    try:
        for size in around_the_kernels_limit():
            client = rig.client()
            client.send(request("GET", f"/svc/bytes?{size}", connection="close"))
            clients.append((client, size))
        deadline = time.monotonic() + 4.5
        while time.monotonic() < deadline:  # nothing tells when a linger would be over: the time is the test
            with rig.client() as other:
                assert other.ask("GET", "/health").status == 200
        for client, size in clients:
            assert len(client.answer().body) == size
    finally:
        for client, _ in clients:
            client.socket.close()


def test_bodies_in_flight_count_as_long_as_they_are_kept(rig: Rig, eventually: Eventually) -> None:
    """A body is kept until the answer begins, as it might have to be sent again."""
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), held_bytes_max=1 << 20)
    rig.open()
    body = b'{"model":"m","x":"' + b"x" * (600 << 10) + b'"}'
    with rig.client() as first:
        first.send(request("POST", "/v1/wait", body))
        eventually(lambda: server.control()["waiting"] == 1)
        with rig.client() as refused:
            answer = refused.ask("POST", "/v1/completions", body)
        assert (answer.status, answer.code) == (429, "held_full")
        assert answer.fields["retry-after"] == "1"
        with rig.client() as small:
            assert small.model("m").status == 200
        server.release()
        assert first.answer().status == 200
    with rig.client() as second:
        assert second.ask("POST", "/v1/completions", body).status == 200
        for _ in range(5):  # nothing stays booked, however a request ends
            assert eventually(lambda: status_of(rig, "/v1/hang-up", body) == 502)
            with rig.client() as leaves:
                leaves.send(request("POST", "/v1/wait", body)[:-1000])
            assert eventually(lambda: status_of(rig, "/v1/completions", body.replace(b'"m"', b'"n"')) == 404)
        rig.close()
        rig.agent.wait(Drained)
        for _ in range(5):
            assert eventually(lambda: status_of(rig, "/v1/completions", body, x_kybernate_max_wait="0.05") == 503)
            with rig.client() as leaves:
                leaves.send(request("POST", "/v1/completions", body))
                rig.agent.wait(Load, lambda load: load.waiting == 1)
            eventually(lambda: rig.agent.of(Load)[-1].waiting == 0)
        rig.open()
        assert eventually(lambda: status_of(rig, "/v1/completions", body) == 200)


def test_bodies_that_pass_through_count_while_they_are_held(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), held_bytes_max=80_000)
    # Of which 64 KiB at least are read ahead, in pieces of the kernel's choice: with the second's 20,000 too much in any case.
    head = b"POST /svc HTTP/1.1\r\nhost: a\r\ncontent-length: 90000\r\n\r\n"
    with rig.client() as first, rig.client() as second:
        first.send(head)
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        first.send(b"x" * 90_000)

        def refused() -> bool:
            answer = second.ask("POST", "/svc", b"x" * 20_000, x_kybernate_max_wait="0.05")
            return bool(answer.code == "held_full")

        deadline = time.monotonic() + 20
        while not refused():
            assert time.monotonic() < deadline
        rig.open()
        assert first.answer().json()["size"] == 90_000
        assert second.ask("POST", "/svc", b"x" * 20_000).status == 200


@pytest.fixture
def poor(rig: Rig) -> Rig:
    """A worker with few descriptors."""
    rig.start(limit_nofile=100)
    rig.serve()
    return rig


def answers(rig: Rig) -> bool:
    with rig.client() as client:
        return bool(client.ask("GET", "/svc").status == 200)


def test_connections_that_say_nothing_leave_room_for_requests(poor: Rig, eventually: Eventually) -> None:
    """With all descriptors taken by clients, no request would reach a model."""
    rig = poor
    with rig.client() as early:
        assert early.ask("GET", "/svc").status == 200
        silent = [rig.client() for _ in range(150)]
        answer = silent[-1].answer()
        assert (answer.status, answer.code) == (503, "too_many_connections")
        assert answer.fields["retry-after"] == "1"
        assert early.ask("POST", "/svc", b"x", connection="close").status == 200
        for client in silent:
            client.socket.close()
    eventually(lambda: answers(rig))


def test_a_worker_without_descriptors_goes_on_when_it_has_some(poor: Rig, eventually: Eventually) -> None:
    """Even if the limit is reached, accepting goes on afterwards."""
    rig = poor
    assert answers(rig)
    used = len(list(Path(f"/proc/{rig.pid}/fd").iterdir()))
    resource.prlimit(rig.pid, resource.RLIMIT_NOFILE, (used + 2, 100))
    clients = [rig.client() for _ in range(30)]
    for client in clients:
        client.socket.close()
    resource.prlimit(rig.pid, resource.RLIMIT_NOFILE, (100, 100))

    def goes_on() -> bool:
        try:
            return answers(rig)
        except (EOFError, ConnectionError):  # libuv closes all that wait to be accepted when it has no descriptor left
            return False

    eventually(goes_on)


def test_a_client_that_vanishes_is_found() -> None:
    """By the kernel: what is accepted inherits the listener's probes."""
    listener = _listener("127.0.0.1:0")
    with listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            listener.setblocking(True)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 120
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == UNREAD_S * 1000


def test_a_worker_leaves_no_core(rig: Rig) -> None:
    rig.serve()
    assert resource.prlimit(rig.pid, resource.RLIMIT_CORE) == (0, 0)


def test_pages_of_other_sites_do_not_ask_through_a_browser(rig: Rig) -> None:
    """By what a browser sends without asking first: a form, or a script's text."""
    server = rig.serve()
    body = b'{"model":"m"}'
    with rig.client() as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", ""):
            for origin in ("http://evil.example", "null", "http://here:81", "https://here.evil.example"):
                answer = client.ask("POST", "/v1/completions", body, content_type=kind, origin=origin)
                assert (answer.status, answer.code) == (403, "foreign_page"), (kind, origin)
        assert client.ask("OPTIONS", "/v1/completions", origin="http://evil.example").status == 404
        assert server.requests == []
        assert client.ask("POST", "/v1/completions", body, content_type="text/plain").status == 200
        assert (
            client.ask("POST", "/v1/completions", body, content_type="text/plain", origin="http://Here").status == 200
        )
        assert client.ask("POST", "/v1/completions", body, origin="http://evil.example").status == 200
        assert client.ask("POST", "/svc", body, content_type="text/plain", origin="http://evil.example").status == 200
    assert dict(server.requests[-1]["fields"])["origin"] == "http://evil.example", "services see to it themselves"


def test_names_that_are_not_ours_are_not_answered(rig: Rig, eventually: Eventually) -> None:
    """A page that comes by a name of its own, which leads here, is to a browser no foreign one: it could read the answers."""
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, hosts=("chat.example",)), hosts=("box", "chat.example", "127.0.0.1"))
    rig.open()
    body = b'{"model":"m"}'
    with rig.client() as client:
        for host in (
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "xlocalhost",
            "127.0.0.1.evil.example",
        ):
            for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/health"), ("GET", "/x")):
                answer = client.ask(method, path, body if method == "POST" else None, host=host)
                assert (answer.status, answer.code) == (421, "misdirected"), (host, path)
                assert repr(host) in answer.json()["error"]["message"]
        client.send(b"GET http://evil.example/v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert client.answer().status == 421, "the target is what counts"
        assert server.requests == []
        ours = (
            "localhost",
            "LocalHost:8080",
            "box",
            "Box.:1",
            "127.0.0.1:8080",
            "192.0.2.7",
            "[::1]:8080",
            "[2001:db8::1]",
            "",
        )
        for host in ours:
            assert client.ask("POST", "/v1/completions", body, host=host).status == 200, host
        assert client.ask("GET", "/any", host="chat.example").json()["target"] == "/any"
        client.send(b"GET /v1/models HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        assert client.answer().status == 200, "no browser leaves it out"
        rig.configure(Endpoint("m", server.port))
        eventually(lambda: client.ask("POST", "/v1/completions", body, host="evil.example").status == 200)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "a", "Model", "\n"]), inner),
    max_leaves=8,
)


@given(JSON, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_bodies_name_what_pythons_parser_finds(value: Any, indent: str | int | None, ascii_only: bool) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    name = value.get("model") if isinstance(value, dict) else None
    if isinstance(name, str):
        assert model_in(body) == name
        again = json.loads(with_model(body, "new"))
        assert again == {**value, "model": "new"}
    else:
        with pytest.raises(BadName):
            model_in(body)


@given(st.binary(max_size=200), st.sampled_from([b"", b'{"model":"m",', b'{"model":', b'{"a":[', b'"model":"m"}']))
@example(b'"\\u0000"}', b'{"model":')
@example(b'"\\ud83d\\ude00"}', b'{"model":')
def test_noise_names_nothing_that_pythons_parser_does_not_find(noise: bytes, before: bytes) -> None:
    body = before + noise
    try:
        name = model_in(body)
    except BadName:
        return
    assert json.loads(body)["model"] == name
    assert json.loads(with_model(body, "new"))["model"] == "new"


FIELD = st.sampled_from(["model", "file", "models", "x model", "MODEL"])
CONTENT = st.binary(max_size=40) | st.sampled_from([b"m", b"--XyZ", b"\r\n--Xy", b'\r\n\r\nname="model"', b"\r\n"])


@given(st.lists(st.tuples(FIELD, CONTENT), max_size=6), st.booleans(), st.sampled_from([b"", b"preamble\r\n"]))
def test_forms_name_what_their_field_holds(fields: list[tuple[str, bytes]], quoted: bool, preamble: bytes) -> None:
    whole = preamble
    for name, content in fields:
        shown = f'"{name}"' if quoted or " " in name else name
        whole += f"--XyZ\r\nContent-Disposition: form-data; name={shown}\r\n\r\n".encode() + content + b"\r\n"
    whole += b"--XyZ--\r\n"
    assume(all(b"\r\n--XyZ" not in b"\r\n" + content for _, content in fields))
    wanted = [content for name, content in fields if name == "model"]
    if len(wanted) != 1:
        with pytest.raises(BadForm):
            field_of(whole, b"multipart/form-data; boundary=XyZ")
    else:
        assert field_of(whole, b'multipart/form-data; charset=x; boundary="XyZ"').name == wanted[0].decode(
            errors="replace"
        )


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_forms_of_noise(noise: bytes, kind: bytes) -> None:
    with contextlib.suppress(BadForm):
        field_of(noise, b"multipart/" + kind)
    with contextlib.suppress(BadForm):
        field_of(noise, b"multipart/form-data; boundary=" + kind)
