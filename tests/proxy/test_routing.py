"""Where a request goes by its head alone: a host before a path, the longest path first, and nothing to a neighbour."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.messages import Endpoint
from kybernate.proxy.routing import BY_BODY, OneModel, Page, Routes, is_openais, text_of

pytestmark = pytest.mark.unit

BY_HOST = Endpoint("by-host", 1, hosts=("Chat.Example",), paths=("/hosted",))
SHORT = Endpoint("short", 2, paths=("/a/",))
LONG = Endpoint("long", 3, paths=("/a/b",), names=("org/long",))
ROUTES = Routes((BY_HOST, SHORT, LONG))


@pytest.mark.parametrize(
    ("path", "host", "to"),
    [
        pytest.param(b"/a", b"", SHORT, id="a prefix itself"),
        pytest.param(b"/a/x", b"", SHORT, id="what is below it"),
        pytest.param(b"/a/b", b"", LONG, id="the longest prefix wins"),
        pytest.param(b"/a/b/c", b"", LONG, id="likewise below it"),
        pytest.param(b"/a/bc", b"", SHORT, id="a neighbour of it isn't below it"),
        pytest.param(b"/ab", b"", None, id="nor is this"),
        pytest.param(b"/", b"", None, id="nobody's"),
        pytest.param(b"/A", b"", None, id="paths have cases"),
        pytest.param(b"/a/b", b"chat.example", BY_HOST, id="a host of its own wins"),
        pytest.param(b"/v1/models", b"CHAT.example:80", BY_HOST, id="whatever the path, case and port"),
        pytest.param(b"/hosted", b"other", BY_HOST, id="its paths lead to it, too"),
        pytest.param(b"/nothing", b"chat.example.evil", None, id="a host that begins as its own"),
    ],
)
def test_a_request_goes_by_host_and_then_by_the_longest_prefix(path: bytes, host: bytes, to: Endpoint | None) -> None:
    assert ROUTES.of(b"GET", path, host) == to


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        pytest.param(b"GET", b"/health", Page.ALIVE, id="alive"),
        pytest.param(b"GET", b"/healthz", Page.ALIVE, id="alive, as Kubernetes asks"),
        pytest.param(b"GET", b"/readyz", Page.READY, id="ready"),
        pytest.param(b"GET", b"/v1/models", Page.MODELS, id="the models"),
        pytest.param(b"HEAD", b"/v1/models", Page.MODELS, id="their head"),
        pytest.param(b"GET", b"/v1/models/a", OneModel("a"), id="one model"),
        pytest.param(b"GET", b"/v1/models/org/a", OneModel("org/a"), id="with a slash in its name"),
        pytest.param(b"GET", b"/v1/models/org%2Fa", OneModel("org/a"), id="or encoded"),
        pytest.param(b"GET", b"/v1/models/%ff", OneModel(None), id="no text"),
        pytest.param(b"GET", b"/v1/files", None, id="what OpenAI has and we don't"),
        pytest.param(b"POST", b"/v1/chat/completions", BY_BODY, id="the body decides"),
        pytest.param(b"POST", b"/v1", BY_BODY, id="even here"),
        pytest.param(b"POST", b"/v1//chat", None, id="slashes too many are another matter"),
        pytest.param(b"DELETE", b"/v1/models/a", None, id="nobody deletes models here"),
        pytest.param(b"POST", b"/v10", None, id="a path that begins so"),
    ],
)
def test_openais_paths_and_our_own_pages(method: bytes, path: bytes, found: object) -> None:
    assert ROUTES.of(method, path, b"") == found


def test_a_models_prefix_takes_a_page_of_ours_only_where_it_is_as_long() -> None:
    greedy = Endpoint("greedy", 1, paths=("/",))
    chosen = Endpoint("chosen", 2, paths=("/v1/audio", "/healthz"))
    routes = Routes((greedy, chosen))
    assert routes.of(b"GET", b"/anything", b"") == greedy
    assert routes.of(b"POST", b"/v1/chat/completions", b"") is BY_BODY
    assert routes.of(b"GET", b"/health", b"") is Page.ALIVE
    assert routes.of(b"POST", b"/v1/audio/speech", b"") == chosen
    assert routes.of(b"GET", b"/healthz", b"") == chosen


def test_who_claims_openais_own_prefix_gets_all_of_it() -> None:
    claims = Endpoint("claims", 1, paths=("/v1/",))
    assert Routes((claims,)).of(b"POST", b"/v1/chat/completions", b"") == claims
    assert Routes((claims,)).of(b"GET", b"/v1/models", b"") == claims


@pytest.mark.parametrize(
    ("name", "found"), [("long", LONG), ("org/long", LONG), ("short", SHORT), ("Long", None), ("", None)]
)
def test_a_name_leads_to_its_model(name: str, found: Endpoint | None) -> None:
    assert ROUTES.by_name(name) == found


def test_a_workloads_own_name_is_its_own_even_if_another_one_calls_itself_so() -> None:
    first, second = Endpoint("a", 1, names=("b",)), Endpoint("b", 2)
    assert Routes((first, second)).by_name("b") == second


@pytest.mark.parametrize(
    ("path", "is_"), [(b"/v1", True), (b"/v1/x", True), (b"/v1x", False), (b"/", False), (b"v1/", False)]
)
def test_which_paths_are_openais(path: bytes, *, is_: bool) -> None:
    assert is_openais(path) is is_


@given(st.text(max_size=30))
def test_any_text_in_a_path_is_read_as_it_was_meant(text: str) -> None:
    assert text_of(quote(text, safe="").encode()) == text
