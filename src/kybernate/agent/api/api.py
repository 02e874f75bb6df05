"""The REST API: routes and handlers. Those about what is stored are in api_stored.py, about serving in api_served.py; reads, writes
and errors in http.py, what is special over TCP in tcp.py.

A client that hangs up cancels nothing: handlers are not cancelled by aiohttp, and operations belong to their owner tasks.
"""

from __future__ import annotations

import asyncio
import os
from signal import Signals
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from kybernate.agent.api import http
from kybernate.agent.api.api_served import Served, ServedApi
from kybernate.agent.api.api_stored import Stored, StoredApi
from kybernate.agent.api.explain import explain
from kybernate.agent.api.openapi import describe
from kybernate.agent.api.routes import STREAM, Handler, Query, Route
from kybernate.agent.api.streams import follow_events, follow_node
from kybernate.agent.orders.switching import Switching
from kybernate.agent.records.events import Events
from kybernate.agent.records.history import History
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.records.views import for_strangers
from kybernate.agent.serving.status_text import unstarted
from kybernate.agent.serving.views import reason
from kybernate.agent.tiers.tier_maintenance import Keeper
from kybernate.agent.workloads import logs
from kybernate.agent.workloads.peer import Caller
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model import api as words
from kybernate.model.api_history import HistoryView
from kybernate.model.errors import Conflict, NotFound
from kybernate.model.types import WorkloadName
from kybernate.process.preflight import Connections

_COUNT_MOST = 10_000
_AFTER_MOST = 1e15
_WAIT_MOST_S = 3600.0
_LINES_MOST = 1e9
_SINCE_MOST = 1e12
_COUNT = Query("count", "integer", "how many of the newest, 50 if left out", least=0, most=_COUNT_MOST)
_AFTER = Query("after", "integer", "only events with a larger id", least=0, most=_AFTER_MOST)
_FOLLOW = Query("follow", "boolean", "stay connected and send what comes, as server-sent events")
_EXPLAIN_EVENTS = 20
_HISTORY_S = 3600.0


class Agent(Stored, Served, Protocol):
    """What the API asks of the agent itself."""

    ledger: Ledger
    events: Events
    workloads: Workloads
    switching: Switching
    keeper: Keeper
    history: History
    closing: asyncio.Event

    def node_view(self) -> words.NodeView: ...

    async def ask_tiers(self) -> None: ...

    def metrics(self) -> bytes: ...

    async def stop_all(self, grace_s: float) -> None: ...

    def ask_to_end(self) -> None: ...


class Api:
    """The handlers; `application()` has them all."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.routes = (*self._routes(), *StoredApi(agent).routes(), *ServedApi(agent).routes())

    def application(self, *guards: Middleware) -> web.Application:
        """Guards see each request before its handler does, and may answer it or raise."""
        middlewares = [http.errors_in_our_words, *guards]
        application = web.Application(middlewares=middlewares, client_max_size=http.BODY_MAX)
        for route in self.routes:
            application.router.add_route(route.method, route.path, route.handler)
            if route.method == "GET":
                application.router.add_route("HEAD", route.path, self._head(route))
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
                self._entry(request)
            return web.Response(headers={"Content-Type": STREAM if route.events else route.media})

        return head

    def _routes(self) -> tuple[Route, ...]:
        one = "/v1/workloads/{name}"
        return (
            Route(
                "GET",
                "/v1/node",
                self.node,
                "The agent, its GPUs and its pool",
                answer=words.NodeView,
                query=(
                    Query("ask", "boolean", "ask the tiers below RAM whether they answer, for ten seconds at most"),
                ),
            ),
            Route(
                "POST",
                "/v1/node/shutdown",
                self.shutdown,
                "End the agent; workloads run on unless they are to be stopped",
                body=words.ShutdownRequest,
                answer=words.NodeView,
            ),
            Route("GET", "/v1/workloads", self.list_all, "All workloads", answer=words.WorkloadList),
            Route(
                "POST",
                "/v1/workloads",
                self.run,
                "Start a workload as the caller's user",
                body=words.RunRequest,
                answer=words.WorkloadView,
                status=201,
            ),
            Route("GET", one, self.show, "One workload", answer=words.WorkloadView),
            Route("DELETE", one, self.remove, "Forget an ended workload and its output", answer=words.StoppedView),
            Route(
                "POST",
                f"{one}/pause",
                self.pause,
                "Give the GPU back",
                body=words.PauseRequest,
                answer=words.SwitchView,
            ),
            Route("POST", f"{one}/resume", self.resume, "Go on", body=words.ResumeRequest, answer=words.SwitchView),
            Route(
                "POST",
                f"{one}/prefetch",
                self.prefetch,
                "Read its content from the store into the pool, ahead of its resume",
                answer=words.StoredView,
            ),
            Route(
                "POST",
                f"{one}/snapshot",
                self.snapshot,
                "Take an image of it",
                body=words.SnapshotRequest,
                answer=words.StoredView,
            ),
            Route(
                "POST",
                f"{one}/signal",
                self.signal,
                "Send a signal to the process group of its first process; a paused one gets it when it goes on",
                body=words.SignalRequest,
                answer=words.WorkloadView,
            ),
            Route("POST", f"{one}/stop", self.stop, "End it", body=words.StopRequest, answer=words.StoppedView),
            Route(
                "GET",
                f"{one}/wait",
                self.wait,
                "The workload once it has ended, or as it is when the time is over",
                answer=words.WorkloadView,
                query=(Query("timeout_s", "number", "seconds, 20 if left out", least=0, most=_WAIT_MOST_S),),
            ),
            Route(
                "GET",
                f"{one}/logs",
                self.logs,
                "Its output",
                media="application/octet-stream",
                query=(
                    Query("lines", "integer", "only the last lines", least=0, most=_LINES_MOST),
                    Query("follow", "boolean", "stay connected and send what comes, until it ends"),
                ),
            ),
            Route(
                "GET",
                f"{one}/events",
                self.workload_events,
                "What happened to it, oldest first",
                answer=words.EventList,
                query=(_COUNT, _AFTER, _FOLLOW),
                events={"event": words.EventView},
            ),
            Route("GET", f"{one}/explain", self.explain, "Why it is in its state", answer=words.ExplainView),
            Route(
                "POST",
                "/v1/external/pause",
                self.pause_external,
                "Pause a process that the agent did not start",
                body=words.ExternalPauseRequest,
                answer=words.SwitchView,
            ),
            Route(
                "POST",
                "/v1/external/resume",
                self.resume_external,
                "Resume such a process",
                body=words.ExternalResumeRequest,
                answer=words.SwitchView,
            ),
            Route(
                "GET",
                "/v1/events",
                self.all_events,
                "What happened on this node, oldest first",
                answer=words.EventList,
                query=(_COUNT, _AFTER, _FOLLOW),
                events={"event": words.EventView},
            ),
            Route(
                "GET",
                "/v1/history",
                self.history,
                "Who held VRAM when, and what each switch cost",
                answer=HistoryView,
                query=(
                    Query(
                        "since",
                        "number",
                        "seconds since the epoch; the last hour if left out",
                        least=0,
                        most=_SINCE_MOST,
                    ),
                ),
            ),
            Route(
                "GET",
                "/v1/stream",
                self.stream,
                "Node, workloads and events as they change",
                media=STREAM,
                events={
                    "node": words.NodeView,
                    "workload": words.WorkloadView,
                    "gone": words.GoneView,
                    "jobs": words.JobList,
                    "event": words.EventView,
                },
            ),
            Route("GET", "/metrics", self.metrics, "Prometheus metrics", media="text/plain"),
            Route("GET", "/openapi.json", self.openapi, "This description"),
        )

    # -- the node ------------------------------------------------------------------------------------------------

    async def node(self, request: web.Request) -> web.Response:
        if http.flag(request, "ask"):
            await self._agent.ask_tiers()
        return http.answer(self._agent.node_view())

    async def shutdown(self, request: web.Request) -> web.Response:
        http.caller(request).require_owner(os.geteuid(), "the agent")
        wanted = await http.body(request, words.ShutdownRequest)
        if wanted.stop:
            await self._agent.stop_all(wanted.grace_s)
        view = self._agent.node_view()
        self._agent.ask_to_end()
        return http.answer(view)

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._agent.metrics(), headers={"content-type": "text/plain; version=0.0.4"})

    async def history(self, request: web.Request) -> web.Response:
        since = http.number(request, "since", default=self._agent.clock() - _HISTORY_S, most=_SINCE_MOST)
        return http.answer(self._agent.history.view(since))

    async def openapi(self, _: web.Request) -> web.Response:
        return http.json_answer(describe(self.routes))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        agent, caller = self._agent, http.caller(request)
        return await follow_node(
            request,
            ledger=agent.ledger,
            events=agent.events,
            closing=agent.closing,
            node_view=agent.node_view,
            workload_view=lambda entry: self._seen_by(caller, entry),
            jobs=lambda: words.JobList(jobs=agent.jobs.views()),
        )

    # -- workloads -----------------------------------------------------------------------------------------------

    async def list_all(self, request: web.Request) -> web.Response:
        entries = sorted(self._agent.ledger.entries().values(), key=lambda entry: entry.name)
        return http.answer(words.WorkloadList(workloads=[self._view(request, entry) for entry in entries]))

    async def run(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.RunRequest)
        entry = await self._agent.workloads.run(wanted, http.caller(request))
        return http.answer(self._view(request, entry), status=201)

    async def show(self, request: web.Request) -> web.Response:
        return http.answer(self._view(request, self._entry(request)))

    async def remove(self, request: web.Request) -> web.Response:
        return http.answer(await self._agent.workloads.remove(self._own(request)))

    async def pause(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.PauseRequest)
        name = self._own(request)
        connections = None if wanted.connections is None else Connections(wanted.connections)
        return http.answer(
            await self._agent.switching.pause(
                name, depth=wanted.depth, timeout_s=wanted.timeout_s, tier=wanted.tier, connections=connections
            )
        )

    async def resume(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.ResumeRequest)
        name = await self._own_or_stored(request)
        return http.answer(
            await self._agent.switching.resume(name, timeout_s=wanted.timeout_s, take_over=wanted.take_over)
        )

    async def prefetch(self, request: web.Request) -> web.Response:
        return http.answer(await self._agent.switching.prefetch(await self._own_or_stored(request)))

    async def snapshot(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.SnapshotRequest)
        return http.answer(await self._agent.images.snapshot(self._own(request), wanted))

    async def stop(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.StopRequest)
        serving, name = self._agent.serving, http.name_of(request)
        if self._agent.ledger.get(name) is None and name in serving.controller.served:
            http.caller(request).require_owner(os.geteuid(), "what the configuration names")
        else:
            name = self._own(request)
        return http.answer(await serving.stop(name, grace_s=wanted.grace_s, remove=wanted.remove))

    async def signal(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.SignalRequest)
        name = self._own(request)
        entry, tree = self._agent.ledger.entry(name), self._agent.workloads.tree(name)
        if entry.ended:
            raise Conflict(f"workload {name} has ended")
        if tree is None:
            raise Conflict(
                f"no process of workload {name} is here", hint=f"`kybernate explain {name}` says where it lies"
            )
        tree.signal(Signals[wanted.signal])
        return http.answer(self._view(request, entry))

    async def wait(self, request: web.Request) -> web.Response:
        timeout_s = http.number(request, "timeout_s", default=20.0, most=_WAIT_MOST_S)
        entry = await self._agent.workloads.wait_ended(http.name_of(request), timeout_s)
        return http.answer(self._view(request, entry))

    async def explain(self, request: web.Request) -> web.Response:
        serving, now = self._agent.serving, self._agent.clock()
        name = http.name_of(request)
        served = serving.controller.served.get(name)
        if served is not None and self._agent.ledger.get(name) is None:
            why = reason(serving, name, None, now, caller=http.caller(request))
            refusal = serving.gates.refusal(name)
            for_good = refusal is not None and refusal.retry_after_s is None
            return http.answer(unstarted(name, served, why, for_good=for_good))
        entry, caller = self._entry(request), http.caller(request)
        events = await self._agent.events.last(_EXPLAIN_EVENTS, workload=entry.name)
        view = self._agent.workloads.view(entry)
        return http.answer(
            explain(
                entry,
                events=events,
                resident_bytes=view.resident_bytes,
                now=now,
                staged=view.staged,
                waits_for=(
                    reason(serving, entry.name, entry, now, caller=caller)
                    if entry.ended
                    else serving.controller.reason(entry.name, public=not caller.owns(entry.uid))
                ),
                is_model=served is not None and served.endpoint is not None,
            )
        )

    async def logs(self, request: web.Request) -> web.StreamResponse:
        follow = http.flag(request, "follow")
        lines = int(http.number(request, "lines", default=-1.0, most=_LINES_MOST))
        entry = self._entry(request)
        http.caller(request).require_owner(entry.uid, f"the output of workload {entry.name}")
        run_directory = self._agent.workloads.gear.state.run_directory(entry.name)
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

    # -- external processes --------------------------------------------------------------------------------------

    async def pause_external(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.ExternalPauseRequest)
        caller = http.caller(request)
        switching = self._agent.switching
        return http.answer(await switching.pause_external(wanted.pid, timeout_s=wanted.timeout_s, caller=caller))

    async def resume_external(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.ExternalResumeRequest)
        caller = http.caller(request)
        return http.answer(await self._agent.switching.resume_external(wanted.pid, caller=caller))

    # -- events --------------------------------------------------------------------------------------------------

    async def all_events(self, request: web.Request) -> web.StreamResponse:
        return await self._events(request, None)

    async def workload_events(self, request: web.Request) -> web.StreamResponse:
        name = http.name_of(request)
        if self._agent.ledger.get(name) is None and not await self._agent.events.last(1, workload=name):
            raise NotFound(f"no workload named {name!r}, and no event tells of one", hint="`kybernate ps` lists them")
        return await self._events(request, name)

    async def _events(self, request: web.Request, name: WorkloadName | None) -> web.StreamResponse:
        count = int(http.number(request, "count", default=50, most=_COUNT_MOST))
        after = int(http.number(request, "after", default=0, most=_AFTER_MOST))
        if http.flag(request, "follow"):
            return await follow_events(
                request, events=self._agent.events, closing=self._agent.closing, name=name, count=count
            )
        return http.answer(words.EventList(events=await self._agent.events.last(count, workload=name, after=after)))

    # -- helpers -------------------------------------------------------------------------------------------------

    def _view(self, request: web.Request, entry: Entry) -> words.WorkloadView:
        return self._seen_by(http.caller(request), entry)

    def _seen_by(self, caller: Caller, entry: Entry) -> words.WorkloadView:
        view = self._agent.workloads.view(entry)
        return view if caller.owns(entry.uid) else for_strangers(view)

    def _entry(self, request: web.Request) -> Entry:
        return self._agent.ledger.entry(http.name_of(request))

    def _own(self, request: web.Request) -> WorkloadName:
        """The name, if the caller may change that workload."""
        entry = self._entry(request)
        http.caller(request).require_owner(entry.uid, f"workload {entry.name}")
        return entry.name

    async def _own_or_stored(self, request: web.Request) -> WorkloadName:
        """The same; one that this agent doesn't know is looked for in its tiers."""
        name, caller = http.name_of(request), http.caller(request)
        known = self._agent.ledger.get(name)
        if known is None or known.ended:
            uid = None if caller.owns(-1) else caller.uid
            if known is None or caller.owns(known.uid):
                await self._agent.keeper.find(name, uid)
        return self._own(request)

    def _still_runs(self, entry: Entry) -> bool:
        now = self._agent.ledger.get(entry.name)
        return now is not None and not now.ended and not self._agent.closing.is_set()
