"""Server-sent events: what happened and how the node stands, as it changes. Each stream ends with its reader or with the agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from aiohttp import web

from kybernate.agent.api import http
from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.model.api import EventView, GoneView, JobList, NodeView, WorkloadView
from kybernate.model.types import WorkloadName

_LOOK_S = 0.25
"""How often progress (pool, VRAM, running operations) is looked at: often enough to look alive."""
_KEEP_ALIVE_S = 10.0
"""A reader that has gone is noticed by writing to it."""


async def follow_events(
    request: web.Request, *, events: Events, closing: asyncio.Event, name: WorkloadName | None, count: int
) -> web.StreamResponse:
    """The last `count` events, then each that comes."""
    with events.subscribe() as queue:
        seen = 0
        past = await events.last(count, workload=name) if count else []
        response = await _prepare(request)
        with contextlib.suppress(ConnectionResetError):
            for event in past:
                await response.write(http.server_event("event", event))
                seen = event.id
            while not closing.is_set():
                found = await _next(queue, closing, _KEEP_ALIVE_S)
                if found is None:
                    await response.write(http.KEEP_ALIVE)
                elif found.id > seen and (name is None or found.workload == name):
                    await response.write(http.server_event("event", found))
            await response.write_eof()
    return response


async def follow_node(
    request: web.Request,
    *,
    ledger: Ledger,
    events: Events,
    closing: asyncio.Event,
    node_view: Callable[[], NodeView],
    workload_view: Callable[[Entry], WorkloadView],
    jobs: Callable[[], JobList],
) -> web.StreamResponse:
    """The node, every workload and the jobs at once, then each again whenever it differs from what was sent, and all events."""
    node: NodeView | None = None
    workloads: dict[str, WorkloadView] = {}
    under_way: JobList | None = None
    loop = asyncio.get_running_loop()
    heard = loop.time()
    with events.subscribe() as queue:
        response = await _prepare(request)
        with contextlib.suppress(ConnectionResetError):
            while not closing.is_set():
                if (now := node_view()) != node:
                    node = now
                    await response.write(http.server_event("node", node))
                for entry in ledger.entries().values():
                    view = workload_view(entry)
                    if workloads.get(view.name) != view:
                        workloads[view.name] = view
                        await response.write(http.server_event("workload", view))
                for name in workloads.keys() - ledger.entries().keys():
                    del workloads[name]
                    await response.write(http.server_event("gone", GoneView(workload=name)))
                if (listed := jobs()) != under_way:
                    under_way = listed
                    await response.write(http.server_event("jobs", listed))
                if loop.time() - heard > _KEEP_ALIVE_S:
                    heard = loop.time()
                    await response.write(http.KEEP_ALIVE)
                found = await _next(queue, closing, _LOOK_S)
                while found is not None:
                    await response.write(http.server_event("event", found))
                    found = None if queue.empty() else queue.get_nowait()
            await response.write_eof()
    return response


async def _prepare(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
    await response.prepare(request)
    return response


async def _next(queue: asyncio.Queue[EventView], closing: asyncio.Event, timeout_s: float) -> EventView | None:
    """The next event; None when the time is over or the agent goes down."""
    get = asyncio.ensure_future(queue.get())
    close = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait((get, close), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return get.result() if get.done() else None
    finally:
        get.cancel()
        close.cancel()
