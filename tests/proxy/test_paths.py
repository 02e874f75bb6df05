"""Which paths lead to a model: OpenAI's with an encoded name, those of other servers, and what base URLs make of them."""

from __future__ import annotations

import hashlib

from tests.conftest import Eventually
from tests.proxy.rig import Rig, request

from kybernate.model.messages import Drained, Endpoint, Key, Load, Refuse, Status

JSON = b'{"model":"m"}'


def key(name: str, *models: str) -> Key:
    return Key(name, hashlib.sha256(f"secret-{name}".encode()).hexdigest(), models)


def test_the_page_of_a_model_by_an_encoded_name(rig: Rig) -> None:
    rig.configure(Endpoint("m", 1, names=("org/model:7b", "größe", "100%")))
    with rig.client() as client:
        for target, name in (
            ("org%2Fmodel:7b", "org/model:7b"),
            ("org%2fmodel%3A7b", "org/model:7b"),
            ("org/model:7b", "org/model:7b"),
            ("gr%C3%B6%C3%9Fe", "größe"),
            ("100%25", "100%"),
        ):
            answer = client.ask("GET", f"/v1/models/{target}")
            assert (answer.status, answer.json()["id"]) == (200, name), target
        for target in ("%FF%FE", "org%252Fmodel:7b", ""):
            assert client.ask("GET", f"/v1/models/{target}").code == "model_not_found"


def test_a_base_url_that_ends_in_a_slash(rig: Rig) -> None:
    """What is decided on is what the server sees."""
    server = rig.serve()
    with rig.client() as client:
        for path in ("//v1/chat/completions", "/v1//chat/completions", "///v1///chat/completions?x=//y"):
            answer = client.ask("POST", path, JSON)
            assert answer.status == 200, path
            assert answer.json()["target"].partition("?")[0] == "/v1/chat/completions"
        assert client.ask("GET", "//svc//x").json()["target"] == "/svc//x"
        for path in ("//v1/models", "/v1//models", "//v1//models/m", "//health"):
            assert client.ask("GET", path).status == 200, path
        assert client.ask("GET", "//nowhere").status == 404
    assert len(server.requests) == 4


def test_paths_of_other_servers_by_their_body(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        for path in ("/rerank", "/v2/rerank", "/tokenize", "/infill", "/api/chat"):
            assert client.ask("POST", path, JSON).json()["target"] == path
        form = b'--X\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--X--'
        assert client.ask("POST", "/asr", form, content_type="multipart/form-data; boundary=X").status == 200
        for body in (b"{}", b"[1]", b"", b'{"model":3}'):
            answer = client.ask("POST", "/nowhere", body)
            assert (answer.status, answer.code) == (404, "not_found"), body
        assert client.ask("POST", "/rerank", b'{"model":"other"}').code == "model_not_found"


def test_paths_by_a_model_in_the_query(rig: Rig, eventually: Eventually) -> None:
    server = rig.upstream()
    rig.configure(
        Endpoint("m", server.port, names=("org/model", "a&b"), rewrite_model="the real one"), Endpoint("plain", 1)
    )
    rig.open()
    with rig.client() as client:
        for query, seen in (
            ("model=org%2Fmodel", "model=the%20real%20one"),
            ("a=b&model=a%26b&c", "a=b&model=the%20real%20one&c"),
            ("mode%6c=org/model", "model=the%20real%20one"),
            ("model=the%20real%20one", None),
        ):
            answer = client.ask("GET", f"/props?{query}")
            if seen is None:
                assert answer.code == "model_not_found", "that is no name of ours"
            else:
                assert answer.json()["target"] == f"/props?{seen}"
        assert client.ask("POST", "/slots/0?action=save&model=m", b"\0\1").json()["size"] == 2, "no JSON is needed"
        assert client.ask("GET", "/props?model=m&model=plain").status == 400
        assert client.ask("GET", "/props?" + "a&" * 256 + "model=m").status == 400, "that is looked through by nobody"
        assert client.ask("GET", "/props?" + "a&" * 255 + "model=m").status == 200
        assert client.ask("GET", "/upstream/m/x?" + "a&" * 1000).status == 200, "its server may"
        assert client.ask("GET", "/v1/realtime?model=m").status == 200
        assert client.ask("GET", "/props?models=m").status == 404
    assert not rig.agent.of(Load, lambda load: load.model == "plain")


def test_all_of_a_models_server(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, names=("org/model", "org"), rewrite_model="real", health="/health"))
    rig.open()
    with rig.client() as client:
        for path, seen in (
            ("/upstream/m/metrics?x=y", "/metrics?x=y"),
            ("/upstream/m/", "/"),
            ("/upstream/m//v1/models", "/v1/models"),
            ("/upstream/org/model/slots", "/slots"),
            ("/upstream/org%2Fmodel/slots", "/slots"),
            ("/upstream/org/slots", "/slots"),
            ("//upstream/m/x", "/x"),
        ):
            assert client.ask("GET", path).json()["target"] == seen, path
        raw = client.ask("POST", "/upstream/m/v1/completions", b'{"model":"anything"}').json()
        assert (raw["target"], raw["body"]) == ("/v1/completions", '{"model":"anything"}'), "as it came"
        answer = client.ask("GET", "/upstream/m?a=b")
        assert (answer.status, answer.fields["location"]) == (308, "/upstream/m/?a=b"), "for relative links"
        for path in ("/upstream", "/upstream/", "/upstream/other/x", "/upstream/%FF/x"):
            assert client.ask("GET", path).status == 404, path
        for path in ("/upstream/m/../x", "/upstream/m/%2e%2e/x", "/upstream/../m"):
            with rig.client() as fresh:
                assert fresh.ask("GET", path).status == 400, path
        rig.close()
        rig.agent.wait(Drained)
        assert client.ask("GET", "/upstream/m/health").json() == {"status": "ok", "parked": True}, "it wakes nobody"
        assert not rig.agent.of(Load)[-1].waiting


def test_other_paths_need_their_key_too(rig: Rig) -> None:
    server = rig.upstream()
    endpoints = (Endpoint("m", server.port, names=("alias",), health="/health"), Endpoint("theirs", server.port))
    rig.configure(*endpoints, keys=(key("all"), key("ann", "theirs")))
    rig.open()
    asked = (
        ("GET", "/upstream/m/x"),
        ("GET", "/upstream/m"),
        ("GET", "/upstream/m/health"),
        ("GET", "/upstream/alias/x"),
        ("GET", "/props?model=m"),
        ("POST", "/rerank"),
        ("GET", "//upstream/m/x"),
    )
    with rig.client() as client:
        for method, path in asked:
            body = JSON if method == "POST" else None
            assert client.ask(method, path, body).code == "invalid_api_key", path
            shut_out = client.ask(method, path, body, x_api_key="secret-ann")
            unknown = client.ask(
                method, path.replace("alias", "nobody").replace("m/", "nobody/"), body, x_api_key="secret-ann"
            )
            assert (shut_out.status, shut_out.code) == (404, "model_not_found"), path
            assert shut_out.status == unknown.status, "as if it weren't there"
        assert server.requests == []
        for method, path in asked[:1] + asked[3:]:
            answer = client.ask(method, path, JSON if method == "POST" else None, x_api_key="secret-all")
            assert answer.status == 200, path
            assert "secret" not in str(answer.json()["fields"])


def test_no_page_of_another_site_gets_to_them(rig: Rig) -> None:
    """A model's own server may say yes to every page, as some do: it isn't asked."""
    server = rig.serve()
    foreign = {"origin": "http://evil.example"}
    with rig.client() as client:
        for method, path, fields in (
            ("GET", "/upstream/m/x", foreign),
            ("OPTIONS", "/upstream/m/v1/completions", {**foreign, "access-control-request-method": "POST"}),
            ("POST", "/upstream/m/v1/completions", foreign),
            ("POST", "/rerank", foreign),
            ("GET", "/props?model=m", foreign),
            ("GET", "/upstream/m/x", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}),
            ("GET", "/props?model=m", {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}),
            (
                "GET",
                "/upstream/m/",
                {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
            ),
        ):
            answer = client.ask(method, path, JSON if method == "POST" else None, **fields)
            assert (answer.status, answer.code) == (403, "foreign_page"), path
            assert "access-control-allow-origin" not in answer.fields
        assert server.requests == []
        for fields in (
            {"origin": "http://here"},
            {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
        ):
            assert client.ask("GET", "/upstream/m/x", **fields).status == 200, "itself, and a link that is followed"


def test_other_paths_can_be_closed(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), upstream=False)
    rig.open()
    with rig.client() as client:
        for path in ("/upstream/m/x", "/props?model=m"):
            assert client.ask("GET", path).status == 404
        assert client.ask("POST", "/rerank", JSON).status == 404
        assert client.ask("GET", "/svc").status == client.ask("POST", "//v1/completions", JSON).status == 200


def test_hidden_names_can_be_used_and_are_not_listed(rig: Rig) -> None:
    server = rig.upstream()
    rig.configure(Endpoint("m", server.port, names=("shown", "hidden"), hidden=("m", "hidden")))
    rig.open()
    with rig.client() as client:
        assert [entry["id"] for entry in client.ask("GET", "/v1/models").json()["data"]] == ["shown"]
        for name in ("m", "shown", "hidden"):
            assert client.model(name).status == 200
            assert client.ask("GET", f"/v1/models/{name}").status == 200
        assert '"m"' not in client.ask("GET", "/v1/models").body.decode(), "nor does the list tell them by the way"


def test_no_client_is_told_to_wait_so_long_that_it_gives_up(rig: Rig) -> None:
    rig.configure(Endpoint("m", 1, paths=("/svc",)))
    rig.agent.send(Status("m", "paused", tier="object", expected_s=500.0))
    with rig.client() as client:
        answer = client.model("m", x_kybernate_max_wait="0.01")
        assert (answer.code, answer.fields["retry-after"]) == ("hold_timeout", "120")
        client.send(request("GET", "/svc"))
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        rig.agent.send(Refuse("m", 503, "it doesn't start", retry_after_s=600.0))
        assert client.answer().fields["retry-after"] == "120"
