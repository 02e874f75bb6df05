"""With keys set, nothing without one reaches a workload, and nobody sees more than is theirs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tests.conftest import Eventually
from tests.proxy.rig import Rig, request

from kybernate.model.messages import Drained, Endpoint, Key, Load
from kybernate.proxy.keys import Keys, allows, fields_with_keys, token_of


def key(name: str, *models: str) -> Key:
    return Key(name, hashlib.sha256(f"secret-{name}".encode()).hexdigest(), models)


def test_keys(rig: Rig) -> None:
    one, two = rig.upstream(), rig.upstream()
    endpoints = (
        Endpoint("one", one.port, names=("uno",), paths=("/one",), health="/one/health"),
        Endpoint("two", two.port, hosts=("two.example",)),
    )
    rig.configure(*endpoints, keys=(key("all"), key("ann", "one")))
    rig.open("one")
    with rig.client() as client:
        for wrong in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic secret-all"},
            {"authorization": "secret-all"},
            {"authorization": "Bearer "},
            {"x_api_key": "secret-al"},
            {"x_api_key": "secret-all "[:-2], "authorization": "Bearer secret-all"},
        ):
            for method, path, host in (
                ("POST", "/v1/chat/completions", "h"),
                ("GET", "/one/x", "h"),
                ("GET", "/anything", "two.example"),
                ("GET", "/v1/models", "h"),
                ("GET", "/nowhere", "h"),
            ):
                with rig.client() as fresh:
                    answer = fresh.ask(
                        method, path, b'{"model":"one"}' if method == "POST" else None, host=host, **wrong
                    )
                    assert (answer.status, answer.code) == (401, "invalid_api_key"), (wrong, path)
        assert one.requests == two.requests == []

        everything, ann = {"x_api_key": "secret-all"}, {"authorization": "bearer secret-ann"}
        assert client.model("one", **everything).status == 200
        assert client.model("uno", **ann).status == 200
        for path, host in (("/v1/chat/completions", "h"), ("/x", "two.example")):
            assert client.ask("POST", path, b'{"model":"two"}', host=host, **ann).status == 404, (
                "as if it weren't there"
            )
        assert client.ask("GET", "/v1/models/two", **ann).status == 404
        ids = [entry["id"] for entry in client.ask("GET", "/v1/models", **ann).json()["data"]]
        assert ids == ["one", "uno"]
        assert len(client.ask("GET", "/v1/models", **everything).json()["data"]) == 3

        assert client.ask("GET", "/health").status == 200
        assert client.ask("GET", "/one/health").json() == {"status": "ok", "parked": False}, (
            "a probe has no key, and reaches nobody"
        )
        assert client.ask("GET", "/one/health", **ann).json()["target"] == "/one/health"
    assert two.requests == []
    for seen in one.requests:
        assert "secret" not in str(seen["fields"]), "no workload learns a key"


def test_other_authorization_is_the_workloads_own(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), keys=(key("all"),))
    rig.open()
    with rig.client() as client:
        fields = client.ask("GET", "/svc", x_api_key="secret-all", authorization="Basic eA==").json()["fields"]
    assert dict(fields)["authorization"] == "Basic eA=="


def test_without_keys_authorization_passes(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        fields = dict(client.ask("GET", "/svc", authorization="Bearer x", x_api_key="y").json()["fields"])
    assert (fields["authorization"], fields["x-api-key"]) == ("Bearer x", "y")


def test_a_key_that_is_taken_away(rig: Rig, eventually: Eventually) -> None:
    server = rig.upstream()
    endpoint = Endpoint("m", server.port)
    rig.configure(endpoint, keys=(key("old"),))
    rig.open()
    with rig.client() as client, rig.client() as held:
        assert client.model("m", x_api_key="secret-old").status == 200
        rig.close()
        rig.agent.wait(Drained)
        held.send(request("POST", "/v1/completions", b'{"model":"m"}', x_api_key="secret-old"))
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        rig.configure(endpoint, keys=(key("new"),))
        brief = {"x_kybernate_max_wait": "0.1"}
        eventually(lambda: client.model("m", x_api_key="secret-old", **brief).status == 401)
        assert client.model("m", x_api_key="secret-new", **brief).code == "hold_timeout"


def test_what_waits_with_a_key_that_is_taken_away_reaches_nobody(rig: Rig) -> None:
    """Also what is still being read then, and what came while nobody needed a key."""
    server = rig.upstream()
    endpoint = Endpoint("m", server.port, paths=("/svc",))
    rig.configure(endpoint, keys=(key("old"), key("less"), key("kept")))
    body = b'{"model":"m"}'
    half = request("POST", "/v1/completions", body, x_api_key="secret-old")
    with rig.client() as old, rig.client() as path, rig.client() as less, rig.client() as reading, rig.client() as kept:
        old.send(half)
        path.send(request("GET", "/svc/x", x_api_key="secret-old"))
        less.send(request("POST", "/v1/completions", body, x_api_key="secret-less"))
        kept.send(request("POST", "/v1/completions", body, x_api_key="secret-kept"))
        rig.agent.wait(Load, lambda load: load.waiting == 4)
        reading.send(half[:-1])
        rig.configure(endpoint, keys=(key("new"), key("less", "other"), key("kept", "m")))
        for shut_out in (old, path, less):
            answer = shut_out.answer()
            assert (answer.status, answer.code) == (401, "invalid_api_key")
        reading.send(half[-1:])
        assert reading.answer().status == 404, "as if it weren't there"
        rig.open()
        assert kept.answer().status == 200
    assert [dict(seen["fields"]).get("x-api-key") for seen in server.requests] == [None]


def test_what_came_before_keys_were_needed_needs_one_now(rig: Rig) -> None:
    server = rig.upstream()
    endpoint = Endpoint("m", server.port)
    rig.configure(endpoint)
    with rig.client() as held:
        held.send(request("POST", "/v1/completions", b'{"model":"m"}'))
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        rig.configure(endpoint, keys=(key("new"),))
        assert held.answer().status == 401
        rig.open()
        assert held.model("m", x_api_key="secret-new").status == 200
    assert len(server.requests) == 1


def test_no_key_is_written_anywhere(rig: Rig, tmp_path: Path) -> None:
    """Of whatever kind the request and its failure: not in logs, metrics, answers, the worker's arguments or environment."""
    server = rig.upstream()
    secret = "sk-UNMISTAKABLE-0123456789"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    rig.start("--metrics-directory", str(tmp_path / "metrics"))
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), keys=(Key("me", digest),))
    rig.open()
    answers = []
    bearer = {"authorization": f"Bearer {secret}"}
    for fields in (bearer, {"x_api_key": secret}, {**bearer, "x_api_key": secret}, {"x_api_key": secret + "wrong"}):
        for method, path, body in (
            ("POST", "/v1/completions", b'{"model":"m"}'),
            ("POST", "/v1/completions", b'{"model":"nobody"}'),
            ("POST", "/v1/completions", b"{"),
            ("GET", "/svc/hang-up", None),
            ("GET", "/svc/raw?" + b"nonsense\r\n\r\n".hex(), None),
            ("GET", "/v1/models/nobody", None),
            ("GET", "/nowhere", None),
        ):
            with rig.client() as client:
                answers.append(client.ask(method, path, body, **fields))
        with rig.client() as client:
            client.send(b"GET /svc HTTP/1.1\r\nhost: a\r\nx-api-key: " + secret.encode() + b"\r\nno field\r\n\r\n")
            answers.append(client.answer())
    proc = Path("/proc") / str(rig.pid)
    written = [rig.log.read_bytes(), (proc / "cmdline").read_bytes(), (proc / "environ").read_bytes()]
    written += [json.dumps(server.control()).encode()]
    rig.stop()  # what is in flight to the files is in them
    written += [path.read_bytes() for path in (tmp_path / "metrics").iterdir()]
    written += [answer.raw + answer.body for answer in answers]
    assert len(written) > len(answers) + 3
    for text in written:
        assert secret.encode() not in text
        assert digest.encode() not in text


# -- without a connection ------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("named", "token"),
    [
        pytest.param({b"authorization": b"Bearer s3cret"}, b"s3cret", id="as OpenAI's clients do"),
        pytest.param({b"authorization": b"bearer  s3cret "}, b"s3cret", id="in any case, with blanks"),
        pytest.param({b"x-api-key": b"s3cret"}, b"s3cret", id="as others do"),
        pytest.param({b"x-api-key": b"one", b"authorization": b"Bearer two"}, b"one", id="this one comes first"),
        pytest.param({b"x-api-key": b"", b"authorization": b"Bearer two"}, b"", id="even if it is empty"),
        pytest.param({b"authorization": b"Basic abc"}, None, id="another scheme is the workload's own"),
        pytest.param({b"authorization": b"Bearers3cret"}, None, id="no blank, no scheme"),
        pytest.param({}, None, id="nothing"),
    ],
)
def test_what_a_client_shows(named: dict[bytes, bytes], token: bytes | None) -> None:
    assert token_of(named) == token


@pytest.mark.unit
@pytest.mark.parametrize(
    ("named", "gone"),
    [
        ({b"authorization": b"Bearer x"}, {b"x-api-key", b"authorization"}),
        ({b"authorization": b"BEARER x"}, {b"x-api-key", b"authorization"}),
        ({b"authorization": b"Basic x"}, {b"x-api-key"}),
        ({}, {b"x-api-key"}),
    ],
)
def test_no_workload_learns_a_key_and_each_keeps_what_is_its_own(named: dict[bytes, bytes], gone: set[bytes]) -> None:
    assert fields_with_keys(named) == gone


@pytest.mark.unit
def test_a_key_is_found_by_its_hash_and_no_other_text_is_one() -> None:
    keys = Keys([key("ann", "one"), key("all")])
    found = keys.find(b"secret-ann")
    assert found is not None
    assert found.name == "ann"
    for wrong in (b"", b"secret-", b"SECRET-ann", found.sha256.encode()):
        assert keys.find(wrong) is None
    assert keys.needed
    assert not Keys([]).needed


@pytest.mark.unit
def test_a_key_of_an_earlier_configuration_may_do_what_it_may_now() -> None:
    before, now = key("ann", "one"), key("ann", "two")
    assert Keys([now]).present(before) == now
    assert Keys([]).present(before) is None
    assert Keys([now]).present(None) is None


@pytest.mark.unit
@pytest.mark.parametrize(
    ("who", "may"),
    [
        pytest.param(None, True, id="where nobody needs a key"),
        pytest.param(key("all"), True, id="a key for everything"),
        pytest.param(key("ann", "one"), True, id="by its workload's name"),
        pytest.param(key("ann", "uno"), True, id="by another of its names"),
        pytest.param(key("ann", "two"), False, id="a key for another"),
        pytest.param(key("ann", "ONE"), False, id="names have cases"),
    ],
)
def test_which_models_a_key_may_use(who: Key | None, *, may: bool) -> None:
    assert allows(who, Endpoint("one", 1, names=("uno",))) is may
