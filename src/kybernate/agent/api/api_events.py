"""The REST API's part about events: of the node and of one workload, listed or followed."""

from __future__ import annotations

import asyncio
from typing import Protocol

from aiohttp import web

from kybernate.agent.api import http
from kybernate.agent.api.routes import Query, route
from kybernate.agent.api.streams import follow_events
from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Ledger
from kybernate.model.api import EventList, EventView
from kybernate.model.errors import NotFound
from kybernate.model.types import WorkloadName

_COUNT_MAX = 10_000
_AFTER_MAX = 1e15
_QUERY = (
    Query("count", "integer", "how many of the newest, 50 if left out", minimum=0, maximum=_COUNT_MAX),
    Query("after", "integer", "only events with a larger id", minimum=0, maximum=_AFTER_MAX),
    Query("follow", "boolean", "stay connected and send what comes, as server-sent events"),
)


class EventsAgent(Protocol):
    """What these handlers ask of the agent."""

    ledger: Ledger
    events: Events
    closing: asyncio.Event


class EventsApi:
    def __init__(self, agent: EventsAgent) -> None:
        self._agent = agent

    @route(
        "GET",
        "/v1/events",
        "What happened on this node, oldest first",
        answer=EventList,
        query=_QUERY,
        events={"event": EventView},
    )
    async def all_events(self, request: web.Request) -> web.StreamResponse:
        return await self._events(request, None)

    @route(
        "GET",
        "/v1/workloads/{name}/events",
        "What happened to it, oldest first",
        answer=EventList,
        query=_QUERY,
        events={"event": EventView},
    )
    async def workload_events(self, request: web.Request) -> web.StreamResponse:
        name = http.name_of(request)
        if self._agent.ledger.get(name) is None and not await self._agent.events.last(1, workload=name):
            raise NotFound(f"no workload named {name!r}, and no event tells of one", hint="`kybernate ps` lists them")
        return await self._events(request, name)

    async def _events(self, request: web.Request, name: WorkloadName | None) -> web.StreamResponse:
        count = int(http.number(request, "count", default=50, maximum=_COUNT_MAX))
        after = int(http.number(request, "after", default=0, maximum=_AFTER_MAX))
        if http.flag(request, "follow"):
            return await follow_events(
                request, events=self._agent.events, closing=self._agent.closing, name=name, count=count
            )
        return http.answer(EventList(events=await self._agent.events.last(count, workload=name, after=after)))
