"""The OpenAPI 3.1 description, generated from the routes and the models. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

import kybernate
from kybernate.agent.api.routes import STREAM, Query, Route
from kybernate.model.api import ErrorView
from kybernate.model.snapshot_names import SNAPSHOT_NAME
from kybernate.model.types import WORKLOAD_NAME

_REFERENCE = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"{(\w+)}")


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document."""
    wanted: dict[type[BaseModel], JsonSchemaMode] = {ErrorView: "serialization"}
    for route in routes:
        if route.answer is not None:
            wanted[route.answer] = "serialization"
        if route.body is not None:
            wanted[route.body] = "validation"
        wanted.update((model, "serialization") for model in route.events.values())
    references, definitions = models_json_schema(
        sorted(wanted.items(), key=lambda pair: pair[0].__name__), ref_template=_REFERENCE
    )
    schemas = {model: references[model, mode] for model, mode in wanted.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kybernate agent",
            "version": kybernate.__version__,
            "description": "Pauses and resumes CUDA workloads of one node. Sizes in bytes, times in seconds.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _operation(route: Route, schemas: dict[type[BaseModel], Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"type": "string"} if route.answer is None else schemas[route.answer]
    if route.answer is None and route.media == "application/json":
        answer = {"type": "object"}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _operation_id(route),
        "responses": {
            str(route.status): {"description": "done", "content": {route.media: {"schema": answer}}},
            "default": {
                "description": "an error: what failed, on which object, what to do",
                "content": {"application/json": {"schema": schemas[ErrorView]}},
            },
        },
    }
    if route.events:
        operation["responses"][str(route.status)]["content"][STREAM] = _stream(route, schemas)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": _names(route)}}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [
        {"name": q.name, "in": "query", "required": False, "description": q.description, "schema": _query(q)}
        for q in route.query
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas[route.body]}}}
    return operation


def _names(route: Route) -> str:
    """What the name in its path may be, as a pattern."""
    return SNAPSHOT_NAME if route.path.startswith("/v1/snapshots/") else WORKLOAD_NAME


def _query(query: Query) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": query.kind}
    if query.minimum is not None:
        schema["minimum"] = query.minimum
    if query.maximum is not None:
        schema["maximum"] = int(query.maximum) if query.kind == "integer" else query.maximum
    if query.values:
        schema["enum"] = list(query.values)
    return schema


def _stream(route: Route, schemas: dict[type[BaseModel], Any]) -> dict[str, Any]:
    """Each event by the stream's own field names: `event` and, as JSON, `data`. OpenAPI 3.1 has no word for a sequence of them."""
    kinds = [
        {
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {"const": name},
                "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": schemas[model]},
            },
        }
        for name, model in route.events.items()
    ]
    when = "" if route.media == STREAM else "With `follow`: "
    text = f"{when}server-sent events without an end, each one of these; lines that begin with a colon keep the connection alive."
    return {"schema": {"type": "array", "description": text, "items": {"oneOf": kinds}}}


def _operation_id(route: Route) -> str:
    words = [word for word in route.path.split("/") if word and word != "v1" and not word.startswith("{")]
    return "_".join(
        [
            route.method.lower(),
            *(word.replace(".", "_") for word in words),
            *(["one"] if route.path.endswith("{name}") else []),
        ]
    )
