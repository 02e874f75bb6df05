"""The API's description of itself says what the routes say: paths, parameters, bodies, answers, streams."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

import kybernate
from kybernate.agent.api.openapi import describe
from kybernate.agent.api.routes import STREAM, Query, Route
from kybernate.model.api import EventView, NodeView, PauseRequest, SwitchView
from kybernate.model.snapshot_names import SNAPSHOT_NAME
from kybernate.model.types import WORKLOAD_NAME

pytestmark = pytest.mark.unit


async def handler(request: web.Request) -> web.StreamResponse:
    """Never called: the description asks nobody."""
    raise AssertionError(request)


def route(method: str = "GET", path: str = "/v1/node", **given: Any) -> Route:
    return Route(method, path, handler, given.pop("summary", "what it does"), **given)


def operation(one: Route) -> dict[str, Any]:
    described: dict[str, Any] = describe([one])["paths"][one.path][one.method.lower()]
    return described


def test_the_document_says_which_version_it_is_of_and_in_what_units_it_counts() -> None:
    found = describe([])
    assert found["openapi"] == "3.1.0"
    assert found["info"]["version"] == kybernate.__version__
    assert "Sizes in bytes, times in seconds" in found["info"]["description"]
    assert set(found["components"]["schemas"]) == {"ErrorView"}, "what every route may answer"


def test_two_methods_of_one_path_stand_side_by_side() -> None:
    found = describe([route(), route("POST"), route(path="/v1/gpus")])
    assert {path: set(methods) for path, methods in found["paths"].items()} == {
        "/v1/node": {"get", "post"},
        "/v1/gpus": {"get"},
    }


def test_models_that_are_used_twice_are_described_once_and_all_their_parts_too() -> None:
    found = describe([route(answer=SwitchView), route("POST", answer=SwitchView)])
    parts = {"StepView", "Depth", "Backend", "TierName"}
    assert set(found["components"]["schemas"]) == {"SwitchView", "ErrorView"} | parts


@pytest.mark.parametrize(
    ("one", "media", "schema"),
    [
        pytest.param(
            route(answer=NodeView), "application/json", {"$ref": "#/components/schemas/NodeView"}, id="a model"
        ),
        pytest.param(route(), "application/json", {"type": "object"}, id="JSON without a model"),
        pytest.param(route(media="text/plain"), "text/plain", {"type": "string"}, id="text"),
    ],
)
def test_an_answer_is_described_by_its_model_and_media_type(one: Route, media: str, schema: dict[str, Any]) -> None:
    assert operation(one)["responses"]["200"]["content"] == {media: {"schema": schema}}


def test_another_status_than_200_takes_its_place_and_errors_are_always_there() -> None:
    responses = operation(route("POST", status=202))["responses"]
    assert set(responses) == {"202", "default"}
    assert responses["default"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorView"}


def test_a_body_is_required_and_described_as_it_is_taken() -> None:
    found = describe([route("POST", "/v1/workloads/{name}/pause", body=PauseRequest)])
    body = found["paths"]["/v1/workloads/{name}/pause"]["post"]["requestBody"]
    assert body == {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PauseRequest"}}},
    }
    assert found["components"]["schemas"]["PauseRequest"]["additionalProperties"] is False
    assert "requestBody" not in operation(route())


@pytest.mark.parametrize(
    ("path", "pattern"),
    [("/v1/workloads/{name}", WORKLOAD_NAME), ("/v1/snapshots/{name}", SNAPSHOT_NAME)],
)
def test_a_name_in_a_path_is_required_and_its_pattern_is_that_of_what_it_names(path: str, pattern: str) -> None:
    assert operation(route(path=path))["parameters"] == [
        {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "pattern": pattern}}
    ]


@pytest.mark.parametrize(
    ("query", "schema"),
    [
        pytest.param(Query("q", "boolean", "d"), {"type": "boolean"}, id="plain"),
        pytest.param(
            Query("q", "integer", "d", minimum=0, maximum=1e4),
            {"type": "integer", "minimum": 0, "maximum": 10000},
            id="whole",
        ),
        pytest.param(Query("q", "number", "d", maximum=0.5), {"type": "number", "maximum": 0.5}, id="a part of one"),
        pytest.param(
            Query("q", "string", "d", values=("a", "b")), {"type": "string", "enum": ["a", "b"]}, id="a choice"
        ),
    ],
)
def test_a_query_parameter_says_its_kind_and_its_borders(query: Query, schema: dict[str, Any]) -> None:
    (found,) = operation(route(query=(query,)))["parameters"]
    assert found == {"name": "q", "in": "query", "required": False, "description": "d", "schema": schema}
    assert isinstance(found["schema"].get("maximum", 0), int if query.kind == "integer" else float | int)


def test_a_border_of_zero_is_a_border() -> None:
    (found,) = operation(route(query=(Query("q", "number", "d", minimum=0.0, maximum=0.0),)))["parameters"]
    assert (found["schema"]["minimum"], found["schema"]["maximum"]) == (0.0, 0.0)


def test_without_parameters_none_are_listed() -> None:
    assert "parameters" not in operation(route())


# -- streams -------------------------------------------------------------------------------------------------------------


def test_a_stream_says_each_event_with_the_schema_of_its_data() -> None:
    one = route(media=STREAM, events={"event": EventView, "node": NodeView})
    content = operation(one)["responses"]["200"]["content"]
    assert set(content) == {STREAM}
    kinds = content[STREAM]["schema"]["items"]["oneOf"]
    assert [kind["properties"]["event"]["const"] for kind in kinds] == ["event", "node"]
    assert kinds[0]["properties"]["data"]["contentSchema"] == {"$ref": "#/components/schemas/EventView"}
    assert not content[STREAM]["schema"]["description"].startswith("With")


def test_what_streams_only_with_follow_says_so_beside_its_usual_answer() -> None:
    one = route(media="text/plain", events={"event": EventView}, query=(Query("follow", "boolean", "d"),))
    content = operation(one)["responses"]["200"]["content"]
    assert set(content) == {"text/plain", STREAM}
    assert content[STREAM]["schema"]["description"].startswith("With `follow`: server-sent events")


@pytest.mark.parametrize(
    ("one", "stays"),
    [
        pytest.param(route(), False, id="an answer"),
        pytest.param(route(media=STREAM), True, id="a stream"),
        pytest.param(route(query=(Query("follow", "boolean", "d"),)), True, id="may be followed"),
        pytest.param(route(query=(Query("since", "number", "d"),)), False, id="another parameter"),
    ],
)
def test_an_answer_may_stay_open_where_it_streams_or_can_be_followed(one: Route, *, stays: bool) -> None:
    assert one.may_stay is stays


# -- names of operations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/v1/workloads", "get_workloads"),
        ("GET", "/v1/workloads/{name}", "get_workloads_one"),
        ("POST", "/v1/workloads/{name}/pause", "post_workloads_pause"),
        ("DELETE", "/v1/snapshots/{name}", "delete_snapshots_one"),
        ("GET", "/v1/openapi.json", "get_openapi_json"),
        ("GET", "/metrics", "get_metrics"),
    ],
)
def test_an_operation_is_called_by_its_method_and_path(method: str, path: str, name: str) -> None:
    assert operation(route(method, path))["operationId"] == name
