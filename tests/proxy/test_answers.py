"""The activator's own answers: errors as clients of OpenAI expect them, with what each status has to say beside it."""

from __future__ import annotations

import json
from typing import Any

import httptools
import pytest

from kybernate.model.messages import Endpoint, Status
from kybernate.proxy.answers import error, error_object, model, models, page, preflight
from kybernate.proxy.queueing import RETRY_MAX_S
from kybernate.proxy.refusals import Refusal

pytestmark = pytest.mark.unit


class Parsed:
    """An answer as a parser that isn't ours reads it."""

    def __init__(self, raw: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.body = b""
        self.complete = False
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(raw)
        self.status = parser.get_status_code()
        self.keeps = self.fields.get("connection") != "close"

    def on_header(self, name: bytes, value: bytes) -> None:
        assert name.decode().lower() not in self.fields, "no field stands twice"
        self.fields[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def refused(status: int, *, close: bool = False, extra: bytes = b"", retry: float | None = None) -> Parsed:
    return Parsed(error(Refusal(status, "a_code", "what is wrong", retry), extra=extra, close=close))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (502, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_error_is_an_object_as_openais_is(status: int, kind: str) -> None:
    found = refused(status)
    assert (found.status, found.complete) == (status, True)
    assert found.json == {"error": {"message": "what is wrong", "type": kind, "param": None, "code": "a_code"}}
    assert found.fields["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        pytest.param(None, None, id="nobody knows"),
        pytest.param(0.0, "1", id="never at once: clients would hammer"),
        pytest.param(0.2, "1", id="whole seconds"),
        pytest.param(4.1, "5", id="rounded up, so that nobody comes too early"),
        pytest.param(1e9, str(int(RETRY_MAX_S)), id="never so long that a client gives up"),
    ],
)
def test_when_to_try_again(seconds: float | None, said: str | None) -> None:
    assert refused(503, retry=seconds).fields.get("retry-after") == said


@pytest.mark.parametrize(
    ("status", "field", "words"),
    [
        pytest.param(401, "www-authenticate", "Bearer", id="how to show a key"),
        pytest.param(405, "allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS", id="which methods are passed on"),
        pytest.param(415, "accept-encoding", "gzip, deflate, zstd, br", id="which codings can be read"),
    ],
)
def test_some_statuses_say_what_would_be_right(status: int, field: str, words: str) -> None:
    assert refused(status).fields[field] == words
    assert field not in refused(400).fields


def test_further_lines_and_the_end_of_the_connection_are_said_in_the_head() -> None:
    found = refused(400, close=True, extra=b"x-request-id: 7\r\n")
    assert (found.fields["x-request-id"], found.fields["connection"], found.keeps) == ("7", "close", False)
    assert refused(400).keeps


def test_a_head_alone_says_the_length_of_what_it_leaves_out() -> None:
    whole = page(200, {"a": 1}, extra=b"", close=False)
    head = page(200, {"a": 1}, extra=b"", close=False, head_only=True)
    assert whole.startswith(head)
    assert whole[len(head) :] == b'{"a":1}'
    assert b"content-length: 7\r\n" in head


def test_a_status_that_has_no_name_is_sent_all_the_same() -> None:
    assert Parsed(page(499, {}, extra=b"", close=False)).status == 499


def test_a_message_in_any_language_is_counted_in_bytes() -> None:
    found = Parsed(error(Refusal(400, "c", "größere 😀\r\nx: y"), extra=b"", close=False))
    assert found.json["error"]["message"] == "größere 😀\r\nx: y"
    assert set(found.fields) == {"content-type", "content-length"}, "and adds no field of its own"


def test_the_object_alone_is_the_one_of_the_answer() -> None:
    assert error_object(Refusal(400, "a_code", "what is wrong")) == refused(400).json


# -- the list of models --------------------------------------------------------------------------------------------------

A = Endpoint("a", 8000, names=("a", "org/a-7b", "secret"), hidden=("secret",))
B = Endpoint("b", 8001, names=("b-public",), hidden=("b",))


def test_every_name_is_listed_once_but_those_that_are_hidden() -> None:
    found = models([A, B], {})
    assert found["object"] == "list"
    assert [entry["id"] for entry in found["data"]] == ["a", "org/a-7b", "b-public"]
    assert all(entry["object"] == "model" for entry in found["data"])


def test_a_hidden_name_is_not_given_away_by_another_one_of_its_model() -> None:
    found = models([A, B], {})["data"]
    assert [entry["workload"] for entry in found] == ["a", "a", "b-public"]


def test_how_a_model_stands_is_what_the_agent_said_last() -> None:
    found = model("org/a-7b", A, Status("a", "paused", tier="ram", expected_s=0.5))
    assert (found["state"], found["tier"], found["expected_s"]) == ("paused", "ram", 0.5)
    unheard = model("a", A, None)
    assert (unheard["state"], unheard["tier"], unheard["expected_s"]) == ("unknown", None, None)


def test_a_preflight_has_no_body() -> None:
    raw = preflight(b"access-control-max-age: 600\r\n", extra=b"x-request-id: 7\r\n", close=True)
    found = Parsed(raw)
    assert (found.status, found.body, found.keeps) == (204, b"", False)
    assert found.fields["access-control-max-age"] == "600"
    assert raw.endswith(b"\r\n\r\n")
