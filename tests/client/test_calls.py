"""Every call as a value, every answer as a model or as the error that the agent raised; and the lines of a stream."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from kybernate.client import calls
from kybernate.client.calls import Call, ServerEvent, ServerEventParser, error_of, view_of
from kybernate.model import api, errors
from kybernate.model.caller import NotPermitted
from kybernate.model.errors import AgentAway, BadInput, Busy, Conflict, KybernateError, NoRoom, NotFound
from kybernate.model.types import Depth, TierName

pytestmark = pytest.mark.unit

RAM, NVME = TierName.RAM, TierName.NVME
DAY = 86400.0


@pytest.mark.parametrize(
    ("call", "method", "path", "query"),
    [
        pytest.param(calls.node(), "GET", "/v1/node", {}, id="the agent"),
        pytest.param(calls.node(ask=True), "GET", "/v1/node", {"ask": "1"}, id="its tiers are asked first"),
        pytest.param(calls.workload("a"), "GET", "/v1/workloads/a", {}, id="one workload"),
        pytest.param(
            calls.workload("a/../b"), "GET", "/v1/workloads/a%2F..%2Fb", {}, id="a name that leads nowhere else"
        ),
        pytest.param(calls.workload("a?x=1#y"), "GET", "/v1/workloads/a%3Fx%3D1%23y", {}, id="nor says anything else"),
        pytest.param(calls.remove("a"), "DELETE", "/v1/workloads/a", {}, id="remove"),
        pytest.param(
            calls.remove_snapshot("x.1", NVME),
            "DELETE",
            "/v1/snapshots/x.1",
            {"tier": "nvme"},
            id="one copy of a snapshot",
        ),
        pytest.param(calls.remove_snapshot("x.1", None), "DELETE", "/v1/snapshots/x.1", {}, id="all copies of it"),
        pytest.param(calls.events(None, 5, 7), "GET", "/v1/events", {"count": "5", "after": "7"}, id="events of all"),
        pytest.param(
            calls.events("a", 5, 0), "GET", "/v1/workloads/a/events", {"count": "5", "after": "0"}, id="of one"
        ),
        pytest.param(calls.history(None), "GET", "/v1/history", {}, id="all that is known of the past"),
        pytest.param(calls.history(1.5), "GET", "/v1/history", {"since": "1.500000"}, id="since a moment"),
        pytest.param(calls.wait("a", 20.0), "GET", "/v1/workloads/a/wait", {"timeout_s": "20"}, id="wait for an end"),
        pytest.param(calls.start("a/b"), "POST", "/v1/serving/served/a%2Fb/start", {}, id="start a model"),
    ],
)
def test_what_is_asked_for_and_where(call: Call[BaseModel], method: str, path: str, query: dict[str, str]) -> None:
    assert (call.method, call.path, dict(call.query), call.content) == (method, path, query, None)


@pytest.mark.parametrize(
    ("call", "body"),
    [
        (calls.resume("a", 5.0, take_over=True), {"timeout_s": 5.0, "take_over": True}),
        (calls.stop("a", 3.0, remove=True), {"grace_s": 3.0, "remove": True}),
        (calls.signal("a", signal.SIGUSR1), {"signal": "SIGUSR1"}),
        (calls.plan(["a", "b"]), {"models": ["a", "b"]}),
        (calls.verify(["x"], NVME, content=False), {"names": ["x"], "tier": "nvme", "content": False}),
        (calls.collect(None, dry_run=True, accept_loss=False), {"tier": None, "dry_run": True, "accept_loss": False}),
        (calls.clone("gold", "a", 3, 5.0), {"name": "a", "count": 3, "timeout_s": 5.0}),
        (calls.pause_external(4242, 5.0), {"pid": 4242, "timeout_s": 5.0}),
        (calls.shutdown(stop=True, grace_s=2.0), {"stop": True, "grace_s": 2.0}),
    ],
)
def test_what_is_said_with_it(call: Call[BaseModel], body: dict[str, Any]) -> None:
    assert call.body is not None
    assert call.body.model_dump(mode="json") == body
    assert call.content == call.body.model_dump_json().encode()


@pytest.mark.parametrize(
    ("call", "least"),
    [
        pytest.param(
            calls.pause("a", Depth.ZERO, 30.0, RAM, None, None), 30 + 60, id="what a pause may wait, and its copy"
        ),
        pytest.param(calls.pause("a", Depth.ZERO, 30.0, NVME, None, None), DAY, id="into a store it may take hours"),
        pytest.param(calls.resume("a", 30.0, take_over=False), DAY, id="and out of it"),
        pytest.param(calls.wait("a", 3600.0), 3601, id="longer than it was told to wait"),
        pytest.param(calls.stop("a", 3600.0, remove=False), 3601, id="longer than the patience of a stop"),
        pytest.param(calls.shutdown(stop=True, grace_s=3600.0), 3601, id="likewise of all of them"),
    ],
)
def test_the_client_waits_longer_than_the_order_may_take(call: Call[BaseModel], least: float) -> None:
    assert call.timeout_s >= least


def test_what_makes_no_sense_is_refused_before_it_is_sent() -> None:
    for make in (
        lambda: calls.pause("a", Depth.ZERO, -1.0, RAM, None, None),
        lambda: calls.clone("gold", "A!", None, 1.0),
        lambda: calls.signal("a", signal.SIGKILL),
        lambda: calls.pause_external(1, 1.0),
    ):
        with pytest.raises(BadInput):
            make()


# -- answers -------------------------------------------------------------------------------------------------------------


def test_an_answer_is_its_model_and_what_a_newer_agent_adds_is_left_out() -> None:
    found = calls.jobs().parse(200, b'{"jobs": [], "new": 1}')
    assert found == api.JobList(jobs=[])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"<html>", b'{"jobs": 3}'])
def test_an_answer_that_makes_no_sense_names_the_call_and_the_versions(content: bytes) -> None:
    with pytest.raises(KybernateError, match="the agent's answer to GET /v1/jobs makes no sense") as refused:
        calls.jobs().parse(200, content)
    assert refused.value.hint is not None
    assert "`kybernate version`" in refused.value.hint


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (NotFound, 404),
        (Conflict, 409),
        (Busy, 423),
        (NoRoom, 507),
        (AgentAway, 503),
        (NotPermitted, 403),
        (BadInput, 400),
    ],
)
def test_an_error_is_the_one_that_the_agent_raised(kind: type[KybernateError], status: int) -> None:
    view = api.ErrorView(code=kind.code, message="what", hint="do this", exit_status=None)
    with pytest.raises(KybernateError) as raised:
        calls.jobs().parse(status, view.model_dump_json().encode())
    assert type(raised.value) is kind
    assert (raised.value.message, raised.value.hint, raised.value.exit_status) == ("what", "do this", kind.exit_status)


def test_every_error_of_ours_has_its_way_through_the_api() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, KybernateError):
            view = api.ErrorView(code=kind.code, message="m")
            assert type(error_of(kind.http_status, view.model_dump_json().encode())) is kind


@pytest.mark.parametrize(
    ("status", "kind"), [(404, BadInput), (499, BadInput), (500, KybernateError), (302, KybernateError)]
)
def test_a_code_that_this_version_does_not_know_goes_by_its_status(status: int, kind: type[KybernateError]) -> None:
    found = error_of(status, b'{"code": "of_tomorrow", "message": "m", "exit_status": 9}')
    assert type(found) is kind
    assert (found.code, found.exit_status) == ("of_tomorrow", 9)
    assert kind.code != "of_tomorrow", "only that one error is called so"


@pytest.mark.parametrize("content", [b"", b"<html>proxy</html>", b"\xff" * 5000])
def test_what_is_no_error_of_an_agent_is_shown_short(content: bytes) -> None:
    found = error_of(502, content)
    assert found.message.startswith("the agent answered 502: ")
    assert len(found.message) < 1000


# -- streams -------------------------------------------------------------------------------------------------------------


def parsed(*lines: str) -> list[ServerEvent]:
    parser = ServerEventParser()
    return [event for line in lines if (event := parser.line(line)) is not None]


def test_an_event_ends_with_an_empty_line_and_the_next_begins_anew() -> None:
    assert parsed("event: node", 'data: {"a":', "data: 1}", "", "data: x", "") == [
        ServerEvent("node", '{"a":\n1}'),
        ServerEvent("message", "x"),
    ]


@pytest.mark.parametrize(
    ("lines", "events"),
    [
        pytest.param([": keep-alive", ""], [], id="a comment is none"),
        pytest.param(["", "", ""], [], id="nor are empty lines"),
        pytest.param(["event: node", ""], [], id="nor is a name without data"),
        pytest.param(["data:x", ""], [ServerEvent("message", "x")], id="the blank may be missing"),
        pytest.param(["data:  x", ""], [ServerEvent("message", " x")], id="only one is left out"),
        pytest.param(["data", ""], [ServerEvent("message", "")], id="a name without a colon"),
        pytest.param(
            ["id: 3", "retry: 5", "data: x", ""], [ServerEvent("message", "x")], id="others mean nothing here"
        ),
        pytest.param(["data: x"], [], id="one that isn't over yet"),
    ],
)
def test_lines_of_a_stream(lines: list[str], events: list[ServerEvent]) -> None:
    assert parsed(*lines) == events


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\r\n"), max_size=20), min_size=1, max_size=4))
def test_data_of_several_lines_comes_back_as_it_was(lines: list[str]) -> None:
    (event,) = parsed(*[f"data: {line}" for line in lines], "")
    assert event.data == "\n".join(lines)


def test_events_are_models_and_those_of_a_newer_agent_are_left_out() -> None:
    assert view_of(ServerEvent("gone", '{"workload": "a"}')) == api.GoneView(workload="a")
    assert view_of(ServerEvent("of_tomorrow", "{}")) is None


@pytest.mark.parametrize(
    ("stream", "path", "query"),
    [
        (calls.logs("a", lines=None, follow=False), "/v1/workloads/a/logs", {}),
        (calls.logs("a", lines=0, follow=True), "/v1/workloads/a/logs", {"lines": "0", "follow": "1"}),
        (calls.follow_events(None, 0), "/v1/events", {"count": "0", "follow": "1"}),
        (calls.follow_events("a/b", 3), "/v1/workloads/a%2Fb/events", {"count": "3", "follow": "1"}),
        (calls.follow_node(), "/v1/stream", {}),
    ],
)
def test_streams_are_asked_for_by_path_and_query(stream: calls.Stream, path: str, query: dict[str, str]) -> None:
    assert (stream.path, dict(stream.query)) == (path, query)
