"""The agent of one node: runs its parts, serves the API until it is told to end, leaves the workloads running.

One agent a state directory, held by a lock. Order of start-up: lock, database, GPUs and pool, recovery, API; the pool goes on
filling in the background. Order of the end: no more orders, those under way are finished, doors closed. What is paused stays paused
in the pool, which outlives the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

import kybernate
from kybernate.agent.api.api import Api
from kybernate.agent.api.connection_limits import ConnectionLimits
from kybernate.agent.api.http_server import Runner
from kybernate.agent.api.tcp import Guard, Pages, TcpEndpoint, dress, open_endpoint
from kybernate.agent.api_side import ApiSide
from kybernate.agent.exclusive import api_listener, only_agent, raise_descriptor_limit
from kybernate.agent.records.database import Database
from kybernate.agent.records.views import gpu_view, pool_view
from kybernate.agent.service_manager import ServiceManager
from kybernate.agent.serving.configuration import Configured, configured
from kybernate.agent.serving.metrics import workers_text
from kybernate.agent.startup import Hardware, describe_pool
from kybernate.agent.state_watch import StateWatch
from kybernate.agent.vram.unmanaged import without_library
from kybernate.agent.wiring.foundation import GpuSide, lay_foundation, no_gpu_side, open_gpu_side
from kybernate.agent.wiring.parts import Parts, wire
from kybernate.agent.workloads.stopping import stop_all
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.threads import in_thread
from kybernate.doctor.links import look
from kybernate.model.api import GpuView, NodeView
from kybernate.model.api_history import LinkView
from kybernate.model.errors import KybernateError, Unsupported
from kybernate.model.layout import StateDirectory
from kybernate.model.quantities import format_size
from kybernate.model.types import Backend, TierName
from kybernate.settings import AgentSettings, Settings

log = logging.getLogger(__name__)

SWITCH_S = 0.0005
"""How long a Python thread computes before another gets its turn, in seconds. A switch makes hundreds of driver calls, each of
which gives up its turn; waiting Python's usual 5 ms to get it back doubled the time of freeing memory (measured)."""
_ASK_S = 10.0
_SHUTDOWN_S = 2.0
"""For requests that are being answered when the agent ends."""

Say = Callable[[str], None]
"""Where start-up tells what it does, one line each."""


def serve(settings: AgentSettings, *, whole: Settings, file: Path | None = None, say: Say, pages: Pages) -> None:
    """Run an agent until SIGTERM, SIGINT or a shutdown by the API; SIGHUP has it read its file again.

    Args:
        settings: of the agent itself, what the command line says included.
        whole: what the file says.
        file: where that was read.
        pages: files of the dashboard, for browsers that come over TCP.

    Raises:
        Conflict: another agent has this state directory.
        BadInput: the state directory can't be used.
    """
    state = StateDirectory(settings.state_dir.absolute()) if settings.state_dir else StateDirectory.default()
    manager = ServiceManager(os.environ)
    served = configured(whole)
    raise_descriptor_limit()
    with only_agent(state):
        database = Database(state.database)
        try:
            if not database.open():
                say(f"the agent's database was unreadable and was moved aside: {state.database}.broken")
            sys.setswitchinterval(SWITCH_S)
            agent = _Agent(
                settings=settings,
                state=state,
                database=database,
                say=say,
                manager=manager,
                pages=pages,
                served=served,
                file=file,
            )
            asyncio.run(agent.run())
        finally:
            database.close()


def _gpu_views(side: GpuSide) -> list[GpuView]:
    vram = side.vram
    return [
        gpu_view(gpu, limit_bytes=vram.capacity(gpu), resident_bytes=vram.resident(None, gpu))
        for gpu in vram.gpus.values()
    ]


class _Agent:
    """Its life; the parts are made in wiring/."""

    def __init__(
        self,
        *,
        settings: AgentSettings,
        state: StateDirectory,
        database: Database,
        say: Say,
        manager: ServiceManager,
        pages: Pages,
        served: Configured,
        file: Path | None,
    ) -> None:
        self._served = served
        self._file = file
        self._settings = settings
        self._state = state
        self._manager = manager
        self._ready = False
        """Every address answers."""

        def tell(line: str) -> None:
            say(line)
            manager.status(line)

        self._say = tell
        self._pages = pages
        self._endpoint: TcpEndpoint | None = None
        self._connection_limits: ConnectionLimits | None = None
        self._started = time.time()
        self._notes: list[str] = []
        self._base = base = lay_foundation(
            settings=settings, state=state, database=database, clock=time.time, tier_changed=self._tier_changed
        )
        self._ledger, self._events = base.ledger, base.events
        self._state_watch = StateWatch(
            state=state,
            database=database,
            events=base.events,
            log_bytes=settings.log.size,
            bounded=(state.root / "activator.log",),
        )
        self._links: list[LinkView] = []
        self._all_stopped = False

    async def run(self) -> None:
        """Until it is told to end."""
        self.closing = asyncio.Event()
        loop = self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask_to_end)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        self._endpoint = await open_endpoint(self._settings.api, self._state)
        self._side = side = await self._open_gpu_side()
        async with asyncio.TaskGroup() as group:
            tasks = self._tasks = Tasks(group, events=self._events, clock=self._base.clock)
            parts = self._parts = wire(
                self._base,
                side,
                tasks,
                began_with=self._served.settings.agent,
                file=self._file,
                node=self.node_view,
                links=lambda: self._links,
            )
            self._serve_allocations(parts)
            for line in await parts.recovery.run(self._base.records.load()):
                self._say(line)
            parts.history.settle(self._ledger.entries().values())
            await parts.serving.life.begin(self._served)
            for line in parts.serving.views.advice():
                self._say(f"look at {line}")
            runners = await self._answer(Api(ApiSide(self._base, parts, node=self)))
            tasks.keep(parts.tier_maintenance.run, name="tiers")
            tasks.keep(parts.history.run, name="history")
            tasks.keep(self._state_watch.run, name="state directory")
            if side.hardware is not None:
                tasks.start(self._report_pool(side.hardware), name="pool progress")
                tasks.keep(parts.auto_resumer.run, name="automatic resume")
                tasks.keep(parts.unmanaged.run, name="processes without the library")
            self._events.record("agent-up", f"agent {kybernate.__version__} is up", data={"pid": os.getpid()})
            tasks.keep(self._become_ready, name="readiness")
            await self.closing.wait()
            self._base.starts.close()
            self._manager.stopping()
            self._say(f"going down; {self._what_becomes()}")
            # No new client finds it, those connected are answered.
            self._state.socket.unlink(missing_ok=True)
            await parts.serving.life.end()
            await parts.workloads.drain()
            if self._connection_limits is not None:
                await self._connection_limits.stop()
            for runner in runners:
                await runner.cleanup()
            tasks.cancel()
        self._events.record("agent-down", f"agent is down; {self._what_becomes()}")
        await in_thread("close", self._close)

    def _serve_allocations(self, parts: Parts) -> None:
        """Before the first of the broker's sockets is opened."""
        requests, make_room = self._side.requests, parts.admission.make_room_for_allocation
        self._tasks.keep(lambda: requests.serve(make_room), name="allocations that wait")
        if parts.process_watch is not None:
            self._tasks.keep(parts.process_watch.run, name="processes that use CUDA")

    async def _become_ready(self) -> None:
        """Say so once every address answers."""
        await self._parts.serving.activator.wait_listening()
        self._ready = True
        address = self._parts.serving.activator.address
        addresses = [str(self._state.socket)]
        addresses += [] if self._endpoint is None else [self._endpoint.url]
        addresses += [] if address is None else [f"{address.listen} (models)"]
        self._say(f"ready on {' and '.join(addresses)}")
        self._manager.ready()

    async def stop_all(self, grace_s: float) -> None:
        """End all workloads, as workloads/stopping.py does. Raises Busy: not all of them could be ended, and the agent stays."""
        await stop_all(
            ledger=self._ledger,
            starts=self._base.starts,
            directory=self._state.workloads,
            stop=self._parts.serving.orders.stop,
            grace_s=grace_s,
        )
        self._all_stopped = True

    def _what_becomes(self) -> str:
        return "no workload runs any more" if self._all_stopped else "workloads run on"

    def ask_to_end(self) -> None:
        self.closing.set()

    def _reload_by_signal(self) -> None:
        async def reload() -> None:
            self._manager.reloading()
            try:
                await self._parts.serving.file.reload()
                await self._parts.serving.activator.wait_listening()
            except KybernateError as e:
                self._say(f"not reloaded, nothing was changed: {e}")
            finally:
                self._manager.ready()

        self._tasks.start(reload(), name="reload")

    def node_view(self) -> NodeView:
        hardware, serving = self._side.hardware, self._parts.serving
        entries = self._ledger.entries().values()
        return NodeView(
            version=kybernate.__version__,
            ready=self._ready,
            pid=os.getpid(),
            started=self._started,
            state_directory=str(self._state.root),
            simulated=any(gpu.simulated for gpu in self._side.vram.gpus.values()),
            driver_version=None if hardware is None else hardware.driver_version,
            gpus=_gpu_views(self._side),
            pool=None if hardware is None else pool_view(hardware.pool),
            notes=self._notes + ([] if hardware is None else list(hardware.pool.problems)),
            without_library=[entry.name for entry in entries if without_library(entry)],
            workloads=dict(Counter(str(entry.state) for entry in entries)),
            tiers=self._base.stores.views(),
            url=None if self._endpoint is None else self._endpoint.url,
            token_file=None if self._endpoint is None else str(self._endpoint.token.path),
            state=self._state_watch.view(),
            tasks=self._tasks.views(),
            workers_missing=serving.activator.missing(),
        )

    async def ask_tiers(self) -> None:
        """Whether they answer shows in `node_view` then; one that says nothing is waited for in the background."""
        asking = in_thread("ask the tiers", self._base.stores.ask)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asking, _ASK_S)

    def metrics(self) -> bytes:
        return self._parts.metrics.text() + workers_text(self._parts.serving.activator.metrics_directory)

    # -- start-up ------------------------------------------------------------------------------------------------

    async def _open_gpu_side(self) -> GpuSide:
        loop = asyncio.get_running_loop()
        self._say("opening the GPUs")
        try:
            side = await in_thread("open the GPUs", lambda: open_gpu_side(self._base, loop))
        except (Unsupported, ImportError) as e:
            text = e.message if isinstance(e, KybernateError) else str(e)
            hint = (e.hint if isinstance(e, KybernateError) else None) or "`kybernate doctor` says more"
            self._notes.append(f"no GPU is used: {text} ({hint}). Plain processes only.")
            self._say(self._notes[-1])
            return no_gpu_side(self._base, loop)
        for gpu in side.vram.gpus.values():
            simulated = " (simulated)" if gpu.simulated else ""
            self._say(f"GPU {gpu.index}: {gpu.name}{simulated}, {format_size(side.vram.capacity(gpu))} to hand out")
        if side.hardware is not None:
            side.hardware.pool.start()
        return side

    async def _answer(self, api: Api) -> list[web.AppRunner]:
        """Begin to answer: on the socket, and over TCP where that is wanted."""
        application = api.application()
        runners: list[web.AppRunner] = [Runner(application, shutdown_timeout=_SHUTDOWN_S)]
        await runners[0].setup()
        await web.SockSite(runners[0], api_listener(self._state, self._settings.api.group)).start()
        if (endpoint := self._endpoint) is not None:
            limits: ConnectionLimits  # it needs the server, whose application needs the guard
            guard = Guard(endpoint, self._pages, on_admitted=lambda transport: limits.admit(transport))
            application = api.application(guard.check)
            application.on_response_prepare.append(dress)
            runners.insert(0, Runner(application, shutdown_timeout=_SHUTDOWN_S))
            await runners[0].setup()
            server = runners[0].server
            assert server is not None
            maximum = self._settings.api.connections
            limits = self._connection_limits = ConnectionLimits(
                endpoint.listener, server, tls=endpoint.tls, maximum=maximum
            )
            limits.start(self._tasks.keep)
        return runners

    async def _report_pool(self, hardware: Hardware) -> None:
        pool = hardware.pool
        while pool.fill_seconds is None:
            await asyncio.sleep(1.0)
            self._say(describe_pool(pool))
        self._events.record(
            "pool-ready", f"{describe_pool(pool)} after {pool.fill_seconds:.1f} s", data={"problems": pool.problems}
        )
        self._links = await in_thread("look at the links", lambda: look(hardware.gpus))

    def _tier_changed(self, tier: TierName, problem: str | None) -> None:
        """In any thread."""
        kind, text = (
            ("tier-ready", f"tier {tier} is ready") if problem is None else ("tier-away", f"tier {tier}: {problem}")
        )
        self._loop.call_soon_threadsafe(lambda: self._events.record(kind, text, data={"tier": tier}))

    def _close(self) -> None:
        self._base.stores.close()
        hardware, runtime = self._side.hardware, self._side.runtime
        if hardware is None or runtime is None:
            return
        runtime.broker.close()
        runtime.engine.close()
        hardware.pool.close()
        ended = all(entry.ended or entry.backend is Backend.DRIVER for entry in self._ledger.entries().values())
        if ended and not self._parts.recovery.unclear:
            # Nothing in it means anything to a successor; the memory goes back to the machine.
            hardware.remove_pool()
