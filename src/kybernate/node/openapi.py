"""The OpenAPI 3.1 description, generated from the routes and the models. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

import kybernate
from kybernate.model.api import ErrorView
from kybernate.node.routes import Route

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
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [
        {"name": q.name, "in": "query", "required": False, "description": q.description, "schema": {"type": q.kind}}
        for q in route.query
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas[route.body]}}}
    return operation


def _operation_id(route: Route) -> str:
    words = [word for word in route.path.split("/") if word and word != "v1" and not word.startswith("{")]
    return "_".join(
        [
            route.method.lower(),
            *(word.replace(".", "_") for word in words),
            *(["one"] if route.path.endswith("{name}") else []),
        ]
    )
