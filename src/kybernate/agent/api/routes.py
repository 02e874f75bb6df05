"""The API's table of routes: what the router, the OpenAPI description and the tests agree on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import BaseModel

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Query:
    """One query parameter; `kind` is its JSON schema type."""

    name: str
    kind: str
    description: str
    least: float | None = None
    most: float | None = None
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
