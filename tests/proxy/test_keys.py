"""With keys set, nothing without one reaches a workload, and nobody sees more than is theirs."""

from __future__ import annotations

import hashlib

from tests.proxy.rig import request

from kybernate.model.serving import Drained, Endpoint, Key, Load


def key(name: str, *models: str) -> Key:
    return Key(name, hashlib.sha256(f"secret-{name}".encode()).hexdigest(), models)


def test_keys(rig):
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


def test_other_authorization_is_the_workloads_own(rig):
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), keys=(key("all"),))
    rig.open()
    with rig.client() as client:
        fields = client.ask("GET", "/svc", x_api_key="secret-all", authorization="Basic eA==").json()["fields"]
    assert dict(fields)["authorization"] == "Basic eA=="


def test_without_keys_authorization_passes(rig):
    rig.serve()
    with rig.client() as client:
        fields = dict(client.ask("GET", "/svc", authorization="Bearer x", x_api_key="y").json()["fields"])
    assert (fields["authorization"], fields["x-api-key"]) == ("Bearer x", "y")


def test_a_key_that_is_taken_away(rig, eventually):
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
