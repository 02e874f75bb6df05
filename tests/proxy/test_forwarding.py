"""Requests of models that are there: where they go, what arrives, what comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.proxy.rig import Client, Rig, request

from kybernate.model.messages import Drained, Endpoint, Hello, Load, Status


def test_a_request_and_its_answer(rig: Rig) -> None:
    server = rig.serve()
    body = json.dumps({"messages": [{"content": "hé"}], "model": "m"}).encode()
    with rig.client() as client:
        for _ in range(3):  # on one connection
            answer = client.ask("POST", "/v1/chat/completions?x=1", body, x_other="kept", accept_encoding="gzip, br")
            assert answer.status == 200
            seen = answer.json()
            assert (seen["method"], seen["target"]) == ("POST", "/v1/chat/completions?x=1")
            assert seen["body"].encode("latin-1") == body
            fields = dict(seen["fields"])
            assert fields["x-other"] == "kept"
            assert fields["accept-encoding"] == "gzip, br"
            assert fields["host"] == "here"
            assert fields["x-forwarded-for"] == "127.0.0.1"
            assert fields["x-forwarded-proto"] == "http"
            assert fields["x-request-id"] == answer.fields["x-request-id"]
            assert answer.fields["x-kybernate-tier"] == "warm"
            assert answer.fields["x-kybernate-wait-ms"] == "0"
    assert len(server.control()["raw"]) == 1, "one kept-alive connection for all three"


def test_names_and_a_rewritten_model(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, names=("gpt", "org/model:tag"), rewrite_model="real"))
    rig.open()
    body = b'{ "a" : 1.10, "model":"org/model:tag",  "b":[1e400, "\\u00e9"] }'
    with rig.client() as client:
        seen = client.ask("POST", "/v1/completions", body).json()["body"]
    assert '"model":"real"' in seen
    assert "1.10" in seen
    assert "1e400" in seen
    assert "\\u00e9" in seen


def test_the_list_of_models_has_the_parked_ones(rig: Rig) -> None:
    rig.configure(Endpoint("a", 1, names=("alias",)), Endpoint("b", 1))
    rig.agent.send(Status("b", "paused", tier="nvme", expected_s=3.5))
    with rig.client() as client:
        listed = client.ask("GET", "/v1/models").json()
        assert [entry["id"] for entry in listed["data"]] == ["a", "alias", "b"]
        entry = client.ask("GET", "/v1/models/b").json()
        assert (entry["object"], entry["state"], entry["tier"], entry["expected_s"]) == ("model", "paused", "nvme", 3.5)
        assert client.ask("GET", "/v1/models/c").status == 404


BODIES = [
    (b'{"model":"other"}', 404, "model_not_found"),
    (b'{"messages":[]}', 400, "invalid_body"),
    (b'{"model":3}', 400, "invalid_body"),
    (b"[1]", 400, "invalid_body"),
    (b"", 400, "invalid_body"),
    (b'{"model":"m"', 400, "invalid_body"),
    (b'{"model":"\xff"}', 400, "invalid_body"),
]


def test_bodies_that_name_no_model_of_ours(rig: Rig) -> None:
    server = rig.serve()
    with rig.client() as client:
        for body, status, code in BODIES:
            answer = client.ask("POST", "/v1/chat/completions", body)
            assert (answer.status, answer.code) == (status, code), body
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert client.model("m").status == 200, "the connection goes on"
    assert len(server.requests) == 1


def test_audio_forms_are_routed_by_their_field(rig: Rig) -> None:
    rig.serve()
    form = (
        b'--XX\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n\0\1model\r\n'
        b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--XX--\r\n'
    )
    with rig.client() as client:
        answer = client.ask("POST", "/v1/audio/transcriptions", form, content_type="multipart/form-data; boundary=XX")
        assert answer.json()["body"].encode("latin-1") == form
        form = form.replace(b'"model"\r\n\r\nm', b'"other"\r\n\r\nm')
        assert (
            client.ask("POST", "/v1/audio/translations", form, content_type="multipart/form-data; boundary=XX").status
            == 400
        )


def test_by_host_and_by_path(rig: Rig) -> None:
    one, two = rig.upstream(), rig.upstream()
    rig.configure(
        Endpoint("one", one.port, hosts=("one.example",), paths=("/both",)),
        Endpoint("two", two.port, paths=("/both/two", "/two")),
    )
    rig.open("one")
    rig.open("two")
    with rig.client() as client:
        for path, host, server in (
            ("/v1/models", "One.Example:80", one),
            ("/both", "x", one),
            ("/both/twofold", "x", one),
            ("/both/two/x?y", "x", two),
            ("/two/", "x", two),
        ):
            assert client.ask("GET", path, host=host).json()["target"] == path
            assert server.requests[-1]["target"] == path
        for path in ("/", "/twofold", "/bot", "/v2/models"):
            assert client.ask("GET", path).status == 404


def test_chunked_request_bodies_that_name_a_model(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        client.send(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
            b'8\r\n{"model"\r\n5;x=y\r\n:"m"}\r\n0\r\n\r\n'
        )
        seen = client.answer().json()
        assert seen["body"] == '{"model":"m"}'
        assert dict(seen["fields"])["content-length"] == "13"


def test_old_clients(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        client.send(b"GET /svc/bytes?100000 HTTP/1.0\r\n\r\n")
        answer = client.answer()
        assert "transfer-encoding" not in answer.fields
        assert answer.body == b"0123456789abcdef" * 6250
    with rig.client() as client:
        for _ in range(2):
            client.send(b"GET /svc HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            assert client.answer().fields["connection"] == "keep-alive"


def test_pipelined_requests_are_answered_in_their_order(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        client.send(b"".join(request("POST", f"/svc/{n}", b"x" * n) for n in range(50)))
        assert [client.answer().json()["target"] for _ in range(50)] == [f"/svc/{n}" for n in range(50)]


@pytest.mark.root
def test_a_port_in_a_network_of_its_own(rig: Rig) -> None:
    server = rig.upstream("--own-network", "--port", "8000")
    rig.configure(Endpoint("m", 8000))
    rig.open(network_pid=server.pid)
    with rig.client() as client:
        for _ in range(2):
            assert client.model("m").status == 200
        rig.close()
        assert rig.agent.wait(Drained).epoch == rig.epoch
        rig.open(network_pid=server.pid)
        assert client.model("m").status == 200
    with pytest.raises(ConnectionRefusedError):
        Client(8000)


def test_health_of_the_activator(rig: Rig) -> None:
    rig.configure()
    with rig.client() as client:
        assert client.ask("GET", "/health").json() == {"status": "ok"}
        assert client.ask("HEAD", "/healthz").status == 200
        assert client.ask("GET", "/readyz").status == 200


def test_a_probe_of_a_parked_model_wakes_nobody(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",), health="/svc/health"))
    with rig.client() as client:
        assert client.ask("GET", "/svc/health").json()["parked"] is True
        assert client.model("x").status == 404
        assert rig.agent.of(Load) == []
        rig.open()
        assert client.ask("GET", "/svc").status == 200
        assert client.ask("GET", "/svc/health").json()["target"] == "/svc/health", "the model's own word while it runs"


def test_a_model_that_is_configured_away(rig: Rig) -> None:
    server = rig.serve()
    with rig.client() as client, rig.client() as waiting:
        assert client.model("m").status == 200
        rig.close()
        rig.agent.wait(Drained)
        waiting.send(request("POST", "/v1/completions", b'{"model":"m"}'))
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        rig.configure(Endpoint("n", server.port))
        assert waiting.answer().status == 404
        assert client.model("m").status == 404


def test_two_workers_share_a_port(rig: Rig, tmp_path: Path) -> None:
    server = rig.serve()
    (tmp_path / "second").mkdir()
    other = Rig(tmp_path / "second")
    other.port = rig.port
    try:
        other.start("--worker", "1", "--workers", "2")
        other.configure(Endpoint("m", server.port))
        other.open()
        other.agent.wait(Hello)
        ids = set()
        for _ in range(60):
            with Client(rig.port) as client:
                ids.add(client.model("m").fields["x-request-id"].partition("-")[0])
        assert len(ids) == 2
    finally:
        other.stop()


def test_a_bad_address_is_said_in_one_line(rig: Rig) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kybernate.proxy", "--agent", "/x", "--listen", "127.0.0.1:http"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "HOST:PORT" in done.stderr
