"""Paths that mean a model all the same: slashes too many, `/upstream/NAME/...`, a model in the query."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.messages import Endpoint
from kybernate.proxy.detours import BadQuery, ByItsBody, Detour, NoModel, ToModel, WithSlash, detour, without_slashes
from kybernate.proxy.heads import parse_request
from kybernate.proxy.routing import Routes

pytestmark = pytest.mark.unit

PLAIN = Endpoint("plain", 1, names=("org/plain", "org"))
TOLD = Endpoint("told", 2, rewrite_model="its own/name")
ROUTES = Routes((PLAIN, TOLD))


def found(target: bytes, method: bytes = b"GET", *, body: bool = False) -> Detour:
    length = b"content-length: 3\r\n" if body else b""
    raw = method + b" " + target + b" HTTP/1.1\r\nhost: x\r\n" + length + b"\r\n"
    return detour(ROUTES, parse_request(raw))


@pytest.mark.parametrize(
    ("target", "plain"),
    [
        (b"/v1/chat", b"/v1/chat"),
        (b"//v1/chat", b"/v1/chat"),
        (b"/v1//chat", b"/v1/chat"),
        (b"///v1///chat?a=//", b"/v1/chat?a=//"),
        (b"//x//y", b"/x//y"),
        (b"/", b"/"),
        (b"//", b"/"),
        (b"/v1", b"/v1"),
        (b"*", b"*"),
        (b"/v1x//y", b"/v1x//y"),
    ],
)
def test_slashes_too_many_at_the_begin_of_a_path_are_one(target: bytes, plain: bytes) -> None:
    assert without_slashes(target) == plain


@given(st.from_regex(rb"(/|v1/|x/){0,6}[a-z]{0,3}", fullmatch=True).map(lambda tail: b"/" + tail))
def test_what_was_made_plain_stays_so_but_for_what_is_now_in_front(target: bytes) -> None:
    plain = without_slashes(target)
    assert plain.startswith(b"/")
    assert not plain.startswith((b"//", b"/v1//"))


# -- all of a model's server ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "method", "to"),
    [
        pytest.param(
            b"/upstream/plain/x/y?q=1", b"GET", ToModel(PLAIN, "plain", b"/x/y?q=1"), id="what is behind the name"
        ),
        pytest.param(b"/upstream/plain/", b"GET", ToModel(PLAIN, "plain", b"/"), id="its first page"),
        pytest.param(
            b"/upstream/plain", b"GET", WithSlash(PLAIN, "plain", b"/upstream/plain/"), id="once more, with a slash"
        ),
        pytest.param(
            b"/upstream/plain?q=1",
            b"HEAD",
            WithSlash(PLAIN, "plain", b"/upstream/plain/?q=1"),
            id="the query goes along",
        ),
        pytest.param(b"/upstream/plain", b"POST", ToModel(PLAIN, "plain", b"/"), id="no form is sent twice"),
        pytest.param(b"/upstream/org/plain/x", b"GET", ToModel(PLAIN, "org/plain", b"/x"), id="the longest name wins"),
        pytest.param(b"/upstream/org%2Fplain/x", b"GET", ToModel(PLAIN, "org/plain", b"/x"), id="encoded"),
        pytest.param(b"/upstream/org/other", b"GET", ToModel(PLAIN, "org", b"/other"), id="a shorter one else"),
        pytest.param(b"/upstream/plain//x", b"GET", ToModel(PLAIN, "plain", b"/x"), id="no path that names a host"),
        pytest.param(b"/upstream/nobody/x", b"GET", NoModel("nobody"), id="none of that name"),
        pytest.param(b"/upstream/%ff/x", b"GET", NoModel(""), id="no text"),
        pytest.param(b"/upstream/", b"GET", NoModel(""), id="no name"),
    ],
)
def test_all_of_a_models_server_is_below_its_name(target: bytes, method: bytes, to: Detour) -> None:
    assert found(target, method) == to


def test_a_name_of_very_many_parts_is_not_looked_for() -> None:
    assert found(b"/upstream/" + b"/".join([b"x"] * 5000)) == NoModel("x")


# -- a model in the query ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "to"),
    [
        pytest.param(b"/ws?model=plain&x=1", ToModel(PLAIN, "plain", b"/ws?model=plain&x=1"), id="as it stands"),
        pytest.param(b"/ws?model=org%2Fplain", ToModel(PLAIN, "org/plain", b"/ws?model=org%2Fplain"), id="encoded"),
        pytest.param(b"/ws?mod%65l=plain", ToModel(PLAIN, "plain", b"/ws?mod%65l=plain"), id="its key encoded"),
        pytest.param(
            b"/ws?a=1&model=told&b=2",
            ToModel(TOLD, "told", b"/ws?a=1&model=its%20own%2Fname&b=2"),
            id="its server's own name",
        ),
        pytest.param(b"/ws?model=nobody", NoModel("nobody"), id="none of that name"),
        pytest.param(b"/ws?model=", NoModel(""), id="no name"),
        pytest.param(b"/ws?model=plain&model=told", BadQuery("the query names two models"), id="two: servers disagree"),
        pytest.param(b"/ws?models=plain", None, id="another word"),
        pytest.param(b"/ws", None, id="no query"),
    ],
)
def test_a_model_in_the_query_is_taken_at_its_word(target: bytes, to: Detour) -> None:
    assert found(target) == to


def test_a_query_of_very_many_parameters_is_not_looked_through() -> None:
    assert isinstance(found(b"/ws?" + b"&".join([b"a=1"] * 256)), ToModel | BadQuery | None)
    assert found(b"/ws?" + b"&".join([b"a=1"] * 257)) == BadQuery("the query has more than 256 parameters")
    assert found(b"/ws?" + b"&".join([b"a=1"] * 255 + [b"model=plain"])) == ToModel(
        PLAIN, "plain", b"/ws?" + b"&".join([b"a=1"] * 255 + [b"model=plain"])
    )


@pytest.mark.parametrize(
    ("method", "body", "decides"),
    [(b"POST", True, True), (b"POST", False, False), (b"GET", True, False), (b"PUT", True, False)],
)
def test_else_the_body_of_a_post_may_name_it(method: bytes, *, body: bool, decides: bool) -> None:
    assert found(b"/somewhere", method, body=body) == (ByItsBody() if decides else None)
