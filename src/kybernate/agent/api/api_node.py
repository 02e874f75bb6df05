"""The REST API's part about the node: the agent, its GPUs, its history and metrics, everything as it changes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from kybernate.agent.api import http
from kybernate.agent.api.access import Access
from kybernate.agent.api.routes import STREAM, Query, route
from kybernate.agent.api.streams import follow_node
from kybernate.agent.records.events import Events
from kybernate.agent.records.history import History
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Ledger
from kybernate.model.api import EventView, GoneView, JobList, NodeView, ShutdownRequest, WorkloadView
from kybernate.model.api_history import HistoryView

_SINCE_MAX = 1e12
_HISTORY_S = 3600.0


class NodeAgent(Protocol):
    """What these handlers ask of the agent."""

    ledger: Ledger
    events: Events
    history: History
    jobs: Jobs
    closing: asyncio.Event
    clock: Callable[[], float]

    def node_view(self) -> NodeView: ...

    async def ask_tiers(self) -> None: ...

    def metrics(self) -> bytes: ...

    async def stop_all(self, grace_s: float) -> None: ...

    def ask_to_end(self) -> None: ...


class NodeApi:
    def __init__(self, agent: NodeAgent, access: Access) -> None:
        self._agent = agent
        self._access = access

    @route(
        "GET",
        "/v1/node",
        "The agent, its GPUs and its pool",
        answer=NodeView,
        query=(Query("ask", "boolean", "ask the tiers below RAM whether they answer, for ten seconds at most"),),
    )
    async def node(self, request: web.Request) -> web.Response:
        if http.flag(request, "ask"):
            await self._agent.ask_tiers()
        return http.answer(self._agent.node_view())

    @route(
        "POST",
        "/v1/node/shutdown",
        "End the agent; workloads run on unless they are to be stopped",
        body=ShutdownRequest,
        answer=NodeView,
    )
    async def shutdown(self, request: web.Request) -> web.Response:
        http.caller(request).require_owner(os.geteuid(), "the agent")
        wanted = await http.body(request, ShutdownRequest)
        if wanted.stop:
            await self._agent.stop_all(wanted.grace_s)
        view = self._agent.node_view()
        self._agent.ask_to_end()
        return http.answer(view)

    @route(
        "GET",
        "/v1/history",
        "Who held VRAM when, and what each switch cost",
        answer=HistoryView,
        query=(
            Query(
                "since",
                "number",
                "seconds since the epoch; the last hour if left out",
                minimum=0,
                maximum=_SINCE_MAX,
            ),
        ),
    )
    async def history(self, request: web.Request) -> web.Response:
        since = http.number(request, "since", default=self._agent.clock() - _HISTORY_S, maximum=_SINCE_MAX)
        return http.answer(self._agent.history.view(since))

    @route(
        "GET",
        "/v1/stream",
        "Node, workloads and events as they change",
        media=STREAM,
        events={
            "node": NodeView,
            "workload": WorkloadView,
            "gone": GoneView,
            "jobs": JobList,
            "event": EventView,
        },
    )
    async def stream(self, request: web.Request) -> web.StreamResponse:
        agent, caller = self._agent, http.caller(request)
        return await follow_node(
            request,
            ledger=agent.ledger,
            events=agent.events,
            closing=agent.closing,
            node_view=agent.node_view,
            workload_view=lambda entry: self._access.seen_by(caller, entry),
            jobs=lambda: JobList(jobs=agent.jobs.views()),
        )

    @route("GET", "/metrics", "Prometheus metrics", media="text/plain")
    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._agent.metrics(), headers={"content-type": "text/plain; version=0.0.4"})
