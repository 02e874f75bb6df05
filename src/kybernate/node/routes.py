"""The API's table of routes: what the router, the OpenAPI description and the tests agree on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from pydantic import BaseModel

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Query:
    """One query parameter; `kind` is its JSON schema type."""

    name: str
    kind: str
    description: str


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    handler: Handler
    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    media: str = "application/json"
    """Of the answer; not JSON for logs, metrics and streams."""
    query: tuple[Query, ...] = ()
    status: int = 200
