"""The REST API's part about workloads: started, paused, resumed, stopped; their output, and why they stand where they stand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from signal import Signals
from typing import Protocol

from aiohttp import web

from kybernate.agent.api import http
from kybernate.agent.api.access import Access, KnownWorkloads
from kybernate.agent.api.explain import explain
from kybernate.agent.api.routes import Query, route
from kybernate.agent.orders.external import ExternalSwitching
from kybernate.agent.orders.images import Images
from kybernate.agent.orders.switching import Switching
from kybernate.agent.orders.tiering import Tiering
from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.serving import Serving
from kybernate.agent.tiers.capture import DumpOptions
from kybernate.agent.workloads import logs
from kybernate.agent.workloads.ending import Ending
from kybernate.agent.workloads.starting import Starting
from kybernate.model.api import (
    ExplainView,
    ExternalPauseRequest,
    ExternalResumeRequest,
    PauseRequest,
    ResumeRequest,
    RunRequest,
    SignalRequest,
    SnapshotRequest,
    StoppedView,
    StopRequest,
    StoredView,
    SwitchView,
    WorkloadList,
    WorkloadView,
)
from kybernate.model.errors import Conflict

_ONE = "/v1/workloads/{name}"
_WAIT_MAX_S = 3600.0
_LINES_MAX = 1e9
_EXPLAIN_EVENTS = 20


class WorkloadsAgent(KnownWorkloads, Protocol):
    """What these handlers ask of the agent."""

    events: Events
    starting: Starting
    ending: Ending
    switching: Switching
    external: ExternalSwitching
    tiering: Tiering
    images: Images
    serving: Serving
    closing: asyncio.Event
    clock: Callable[[], float]


class WorkloadsApi:
    def __init__(self, agent: WorkloadsAgent, access: Access) -> None:
        self._agent = agent
        self._access = access

    @route("GET", "/v1/workloads", "All workloads", answer=WorkloadList)
    async def list_all(self, request: web.Request) -> web.Response:
        entries = sorted(self._agent.ledger.entries().values(), key=lambda entry: entry.name)
        return http.answer(WorkloadList(workloads=[self._access.view(request, entry) for entry in entries]))

    @route(
        "POST",
        "/v1/workloads",
        "Start a workload as the caller's user",
        body=RunRequest,
        answer=WorkloadView,
        status=201,
    )
    async def run(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, RunRequest)
        entry = await self._agent.starting.run(wanted, http.caller(request))
        return http.answer(self._access.view(request, entry), status=201)

    @route("GET", _ONE, "One workload", answer=WorkloadView)
    async def show(self, request: web.Request) -> web.Response:
        return http.answer(self._access.view(request, self._access.entry(request)))

    @route("DELETE", _ONE, "Forget an ended workload and its output", answer=StoppedView)
    async def remove(self, request: web.Request) -> web.Response:
        return http.answer(await self._agent.ending.remove(self._access.own(request)))

    @route("POST", f"{_ONE}/pause", "Give the GPU back", body=PauseRequest, answer=SwitchView)
    async def pause(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, PauseRequest)
        name = self._access.own(request)
        return http.answer(
            await self._agent.switching.pause(
                name,
                depth=wanted.depth,
                timeout_s=wanted.timeout_s,
                tier=wanted.tier,
                options=DumpOptions.of(wanted.connections, wanted.allow_changes),
            )
        )

    @route("POST", f"{_ONE}/resume", "Go on", body=ResumeRequest, answer=SwitchView)
    async def resume(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, ResumeRequest)
        name = await self._access.own_or_stored(request)
        return http.answer(
            await self._agent.switching.resume(name, timeout_s=wanted.timeout_s, take_over=wanted.take_over)
        )

    @route(
        "POST",
        f"{_ONE}/prefetch",
        "Read its content from the store into the pool, ahead of its resume",
        answer=StoredView,
    )
    async def prefetch(self, request: web.Request) -> web.Response:
        return http.answer(await self._agent.tiering.prefetch(await self._access.own_or_stored(request)))

    @route("POST", f"{_ONE}/snapshot", "Take an image of it", body=SnapshotRequest, answer=StoredView)
    async def snapshot(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, SnapshotRequest)
        return http.answer(await self._agent.images.snapshot(self._access.own(request), wanted))

    @route(
        "POST",
        f"{_ONE}/signal",
        "Send a signal to the process group of its first process; a paused one gets it when it goes on",
        body=SignalRequest,
        answer=WorkloadView,
    )
    async def signal(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, SignalRequest)
        name = self._access.own(request)
        entry, tree = self._agent.ledger.entry(name), self._agent.workloads.tree(name)
        if entry.ended:
            raise Conflict(f"workload {name} has ended")
        if tree is None:
            raise Conflict(
                f"no process of workload {name} is here", hint=f"`kybernate explain {name}` says where it lies"
            )
        tree.signal(Signals[wanted.signal])
        return http.answer(self._access.view(request, entry))

    @route("POST", f"{_ONE}/stop", "End it", body=StopRequest, answer=StoppedView)
    async def stop(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, StopRequest)
        orders, name = self._agent.serving.orders, http.name_of(request)
        if orders.is_unstarted(name):
            http.caller(request).require_owner(os.geteuid(), "what the configuration names")
        else:
            name = self._access.own(request)
        return http.answer(await orders.stop(name, grace_s=wanted.grace_s, remove=wanted.remove))

    @route(
        "GET",
        f"{_ONE}/wait",
        "The workload once it has ended, or as it is when the time is over",
        answer=WorkloadView,
        query=(Query("timeout_s", "number", "seconds, 20 if left out", minimum=0, maximum=_WAIT_MAX_S),),
    )
    async def wait(self, request: web.Request) -> web.Response:
        timeout_s = http.number(request, "timeout_s", default=20.0, maximum=_WAIT_MAX_S)
        entry = await self._agent.workloads.wait_ended(http.name_of(request), timeout_s)
        return http.answer(self._access.view(request, entry))

    @route(
        "GET",
        f"{_ONE}/logs",
        "Its output",
        media="application/octet-stream",
        query=(
            Query("lines", "integer", "only the last lines", minimum=0, maximum=_LINES_MAX),
            Query("follow", "boolean", "stay connected and send what comes, until it ends"),
        ),
    )
    async def logs(self, request: web.Request) -> web.StreamResponse:
        follow = http.flag(request, "follow")
        lines = int(http.number(request, "lines", default=-1.0, maximum=_LINES_MAX))
        entry = self._access.entry(request)
        http.caller(request).require_owner(entry.uid, f"the output of workload {entry.name}")
        run_directory = self._agent.workloads.run_directory(entry.name)
        descriptor = logs.open_output(run_directory, entry.name)
        response = web.StreamResponse(headers={"content-type": "application/octet-stream"})
        try:
            if lines >= 0:
                logs.seek_last_lines(descriptor, lines)
            else:
                logs.seek_first_line(descriptor)
            await response.prepare(request)
            # A successor of the same name has another output; the entry's own end is what counts.
            async for piece in logs.pieces(descriptor, more_may_come=lambda: follow and self._still_runs(entry)):
                await response.write(piece)
            await response.write_eof()
        except ConnectionResetError:
            pass  # the reader hung up
        finally:
            os.close(descriptor)
        return response

    @route("GET", f"{_ONE}/explain", "Why it is in its state", answer=ExplainView)
    async def explain(self, request: web.Request) -> web.Response:
        served, now, caller = self._agent.serving.views.served, self._agent.clock(), http.caller(request)
        if (unstarted := served.explain_unstarted(http.name_of(request), now, caller)) is not None:
            return http.answer(unstarted)
        entry = self._access.entry(request)
        events = await self._agent.events.last(_EXPLAIN_EVENTS, workload=entry.name)
        view = self._agent.workload_views.of(entry)
        return http.answer(
            explain(
                entry,
                events=events,
                resident_bytes=view.resident_bytes,
                now=now,
                prefetched=view.staged,
                waits_for=served.waits_for(entry, now, caller),
                is_model=served.is_model(entry.name),
            )
        )

    @route(
        "POST",
        "/v1/external/pause",
        "Pause a process that the agent did not start",
        body=ExternalPauseRequest,
        answer=SwitchView,
    )
    async def pause_external(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, ExternalPauseRequest)
        caller = http.caller(request)
        view = await self._agent.external.pause(wanted.pid, timeout_s=wanted.timeout_s, caller=caller)
        return http.answer(view)

    @route(
        "POST",
        "/v1/external/resume",
        "Resume such a process",
        body=ExternalResumeRequest,
        answer=SwitchView,
    )
    async def resume_external(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, ExternalResumeRequest)
        caller = http.caller(request)
        return http.answer(await self._agent.external.resume(wanted.pid, caller=caller))

    def _still_runs(self, entry: Entry) -> bool:
        known = self._agent.ledger.get(entry.name)
        return known is not None and not known.ended and not self._agent.closing.is_set()
