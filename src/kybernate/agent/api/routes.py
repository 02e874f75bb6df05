"""The API's routes: each stands as a decorator at its handler, and the router, the OpenAPI description and the tests read it there.

class NodeApi:
    @route("GET", "/v1/node", "The agent, its GPUs and its pool", answer=NodeView)
    async def node(self, request: web.Request) -> web.Response: ...

routes_of(NodeApi(agent))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
F = TypeVar("F", bound=Callable[..., Awaitable[web.StreamResponse]])

STREAM = "text/event-stream"
_ROUTE = "__kybernate_route__"


@dataclass(frozen=True, slots=True)
class Query:
    """One query parameter; `kind` is its JSON schema type."""

    name: str
    kind: str
    description: str
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] = ()
    """All that there are; empty: any."""


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
    events: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    """What comes as server-sent events: the data of each, by its name. With another `media` than that, only with `follow`."""

    @property
    def may_stay(self) -> bool:
        """Whether its answer may have no end."""
        return self.media == STREAM or any(query.name == "follow" for query in self.query)


def route(
    method: str,
    path: str,
    summary: str,
    *,
    body: type[BaseModel] | None = None,
    answer: type[BaseModel] | None = None,
    media: str = "application/json",
    query: tuple[Query, ...] = (),
    status: int = 200,
    events: Mapping[str, type[BaseModel]] | None = None,
) -> Callable[[F], F]:
    """Make a method the handler of a route; see `Route` for what the arguments mean."""

    def mark(handler: F) -> F:
        made = Route(method, path, handler, summary, body, answer, media, query, status, events or {})
        setattr(handler, _ROUTE, made)
        return handler

    return mark


def routes_of(handlers: object) -> tuple[Route, ...]:
    """Those of an object's class, in the order in which they stand there, with its own methods as their handlers."""
    found = []
    for name, function in vars(type(handlers)).items():
        if isinstance(marked := getattr(function, _ROUTE, None), Route):
            found.append(replace(marked, handler=getattr(handlers, name)))
    return tuple(found)
