"""The REST API: all routes together, as an aiohttp application. The handlers are in api_node.py, api_workloads.py, api_events.py,
api_stored.py and api_served.py; reads, writes and errors in http.py, what is special over TCP in tcp.py.

A client that hangs up cancels nothing: handlers are not cancelled by aiohttp, and operations belong to their owner tasks.
"""

from __future__ import annotations

from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from kybernate.agent.api import http
from kybernate.agent.api.access import Access
from kybernate.agent.api.api_events import EventsAgent, EventsApi
from kybernate.agent.api.api_node import NodeAgent, NodeApi
from kybernate.agent.api.api_served import ServedApi, ServingAgent
from kybernate.agent.api.api_stored import StoredAgent, StoredApi
from kybernate.agent.api.api_workloads import WorkloadsAgent, WorkloadsApi
from kybernate.agent.api.openapi import describe
from kybernate.agent.api.routes import STREAM, Handler, Route, route, routes_of


class Agent(NodeAgent, WorkloadsAgent, EventsAgent, StoredAgent, ServingAgent, Protocol):
    """What the API asks of the agent itself."""


class Api:
    """`application()` has all handlers."""

    def __init__(self, agent: Agent) -> None:
        self._access = access = Access(agent)
        handlers = (
            NodeApi(agent, access),
            WorkloadsApi(agent, access),
            EventsApi(agent),
            StoredApi(agent),
            ServedApi(agent),
            self,
        )
        self.routes = tuple(each for owner in handlers for each in routes_of(owner))

    def application(self, *guards: Middleware) -> web.Application:
        """Guards see each request before its handler does, and may answer it or raise."""
        middlewares = [http.errors_in_our_words, *guards]
        application = web.Application(middlewares=middlewares, client_max_size=http.BODY_MAX)
        for each in self.routes:
            application.router.add_route(each.method, each.path, each.handler)
            if each.method == "GET":
                application.router.add_route("HEAD", each.path, self._head(each))
        return application

    def _head(self, route: Route) -> Handler:
        """As GET without the body; of an answer that may have no end only the head is made."""
        if not route.may_stay:
            return route.handler

        async def head(request: web.Request) -> web.StreamResponse:
            following = http.flag(request, "follow")
            if route.answer is not None and not following:
                return await route.handler(request)
            if "name" in request.match_info:
                self._access.entry(request)
            return web.Response(headers={"Content-Type": STREAM if route.events else route.media})

        return head

    @route("GET", "/openapi.json", "This description")
    async def openapi(self, _: web.Request) -> web.Response:
        return http.json_answer(describe(self.routes))
