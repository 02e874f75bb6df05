"""The agent of one node: wires the parts, serves the API until it is told to end, leaves the workloads running.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

import kybernate
from kybernate.agent.alone import api_listener, only_agent, raise_descriptor_limit
from kybernate.agent.api.api import Api
from kybernate.agent.api.connection_limits import Reception
from kybernate.agent.api.http_server import Runner
from kybernate.agent.api.tcp import Door, Guard, Pages, dress, open_door
from kybernate.agent.gear import Gear, GpuGear
from kybernate.agent.metrics import Metrics
from kybernate.agent.orders.images import Images
from kybernate.agent.orders.recovery import Recovery
from kybernate.agent.orders.snapshot_catalog import Library
from kybernate.agent.orders.store_check import Upkeep
from kybernate.agent.orders.switching import Switching
from kybernate.agent.records.database import Database
from kybernate.agent.records.events import Events
from kybernate.agent.records.history import History
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.records.ledger_rows import Records
from kybernate.agent.records.views import gpu_view, pool_view
from kybernate.agent.service_manager import ServiceManager
from kybernate.agent.serving.configuration import Configured, configured
from kybernate.agent.serving.metrics import ServingCollector, workers_text
from kybernate.agent.serving.serving import Serving
from kybernate.agent.serving.views import serving_view
from kybernate.agent.state_room import StateRoom
from kybernate.agent.tiers.claims import Claims, agent_id
from kybernate.agent.tiers.parking import Parking
from kybernate.agent.tiers.pool_eviction import PoolRoom
from kybernate.agent.tiers.stale_snapshots import Leftovers
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.tiers.tier_maintenance import Keeper
from kybernate.agent.tiers.transfers import Transfers
from kybernate.agent.tiers.unparking import Unparking
from kybernate.agent.vram.unmanaged import Unmanaged, without_library
from kybernate.agent.vram.vram import Books
from kybernate.agent.vram.vram_leaks import Holders
from kybernate.agent.workloads.external import ExternalWatcher
from kybernate.agent.workloads.process_watch import Guests
from kybernate.agent.workloads.starts import Starts
from kybernate.agent.workloads.stopping import stop_all
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import NodeView
from kybernate.model.api_history import LinkView
from kybernate.model.errors import KybernateError, Unsupported
from kybernate.model.layout import StateDirectory
from kybernate.model.quantities import format_size
from kybernate.model.types import Backend, HostPid, TierName, WorkloadName
from kybernate.settings import AgentSettings, Settings

if TYPE_CHECKING:
    from kybernate.agent.startup import Hardware
    from kybernate.agent.vram.admission import RoomKeeper
    from kybernate.cuda.driver import Gpu

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


@dataclass(frozen=True, slots=True)
class _Opened:
    hardware: Hardware
    room: RoomKeeper


class _Agent:
    """The parts together; see `Agent` in api/api.py for what the API may use."""

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
        self._door: Door | None = None
        self._reception: Reception | None = None
        self._started = time.time()
        self._notes: list[str] = []
        self.clock: Callable[[], float] = time.time
        self.ledger = Ledger(clock=self.clock)
        self.events = Events(database=database, clock=self.clock, keep=settings.events.keep)
        self._database = database
        self._records = Records(database)
        self._state_room = StateRoom(
            state=state,
            database=database,
            events=self.events,
            log_bytes=settings.log.size,
            bounded=(state.root / "activator.log",),
        )
        self._stores = Stores(settings=settings.store, state=state, changed=self._tier_changed)
        self._opened: _Opened | None = None
        self._links: list[LinkView] = []
        self._starts = Starts()
        self._all_stopped = False

    async def run(self) -> None:
        """Until it is told to end."""
        self.closing = asyncio.Event()
        loop = self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask_to_end)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        self._door = await open_door(self._settings.api, self._state)
        self._opened = await self._open_hardware()
        async with asyncio.TaskGroup() as group:
            tasks = self._tasks = Tasks(group, events=self.events, clock=self.clock)
            self._wire(tasks)
            await self._recover()
            self.history.settle(self.ledger.entries().values())
            await self.serving.start(self._served)
            for line in self.serving.advice():
                self._say(f"look at {line}")
            runners = await self._answer(Api(self))
            tasks.keep(self.keeper.run, name="tiers")
            tasks.keep(self.history.run, name="history")
            tasks.keep(self._state_room.run, name="state directory")
            if self._opened is not None:
                tasks.start(self._report_pool(self._opened.hardware), name="pool progress")
                tasks.keep(self._opened.room.watch, name="automatic resume")
                tasks.keep(self._unmanaged.run, name="processes without the library")
            self.events.record("agent-up", f"agent {kybernate.__version__} is up", data={"pid": os.getpid()})
            tasks.keep(self._become_ready, name="readiness")
            await self.closing.wait()
            self._starts.close()
            self._manager.stopping()
            self._say(f"going down; {self._what_becomes()}")
            # No new client finds it, those connected are answered.
            self._state.socket.unlink(missing_ok=True)
            await self.serving.end()
            await self.workloads.drain()
            if self._reception is not None:
                await self._reception.stop()
            for runner in runners:
                await runner.cleanup()
            tasks.cancel()
        self.events.record("agent-down", f"agent is down; {self._what_becomes()}")
        await in_thread("close", lambda: self._close(self._opened))

    async def _become_ready(self) -> None:
        """Say so once every address answers."""
        await self.serving.processes.wait_listening()
        self._ready = True
        address = self.serving.processes.address
        places = [str(self._state.socket)]
        places += [] if self._door is None else [self._door.url]
        places += [] if address is None else [f"{address.listen} (models)"]
        self._say(f"ready on {' and '.join(places)}")
        self._manager.ready()

    async def stop_all(self, grace_s: float) -> None:
        """End all workloads, as workloads/stopping.py does. Raises Busy: not all of them could be ended, and the agent stays."""
        await stop_all(gear=self._gear, stop=self.serving.stop, grace_s=grace_s)
        self._all_stopped = True

    def _what_becomes(self) -> str:
        return "no workload runs any more" if self._all_stopped else "workloads run on"

    def ask_to_end(self) -> None:
        self.closing.set()

    def _reload_by_signal(self) -> None:
        async def reload() -> None:
            self._manager.reloading()
            try:
                await self.serving.reload()
                await self.serving.processes.wait_listening()
            except KybernateError as e:
                self._say(f"not reloaded, nothing was changed: {e}")
            finally:
                self._manager.ready()

        self._tasks.start(reload(), name="reload")

    def node_view(self) -> NodeView:
        opened = self._opened
        entries = self.ledger.entries().values()
        return NodeView(
            version=kybernate.__version__,
            ready=self._ready,
            pid=os.getpid(),
            started=self._started,
            state_directory=str(self._state.root),
            simulated=opened is not None and any(gpu.simulated for gpu in opened.hardware.gpus),
            driver_version=None if opened is None else opened.hardware.driver_version,
            gpus=[] if opened is None else [gpu_view(gpu, opened.room.vram) for gpu in opened.hardware.gpus],
            pool=None if opened is None else pool_view(opened.hardware.pool),
            notes=self._notes + ([] if opened is None else list(opened.hardware.pool.problems)),
            without_library=[entry.name for entry in entries if without_library(entry)],
            workloads=dict(Counter(str(entry.state) for entry in entries)),
            tiers=self._stores.views(),
            url=None if self._door is None else self._door.url,
            token_file=None if self._door is None else str(self._door.token.path),
            state=self._state_room.view(),
            tasks=self._tasks.views(),
            workers_missing=self.serving.processes.missing(),
        )

    async def ask_tiers(self) -> None:
        """Whether they answer shows in `node_view` then; one that says nothing is waited for in the background."""
        asking = in_thread("ask the tiers", self._stores.ask)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asking, _ASK_S)

    def metrics(self) -> bytes:
        return self._metrics.text() + workers_text(self.serving.places.metrics)

    # -- start-up ------------------------------------------------------------------------------------------------

    async def _open_hardware(self) -> _Opened | None:
        try:
            # Imported here: a node without a GPU, or without the bindings, still runs plain processes.
            from kybernate.agent.startup import open_hardware
            from kybernate.agent.vram.admission import RoomKeeper

            loop = asyncio.get_running_loop()

            def room(gpus: Sequence[Gpu]) -> RoomKeeper:
                return RoomKeeper(
                    gpus=gpus,
                    ledger=self.ledger,
                    events=self.events,
                    vram=self._settings.vram,
                    arbiter=self._settings.arbiter,
                    clock=self.clock,
                    loop=loop,
                )

            self._say("opening the GPUs")
            hardware, keeper = await in_thread(
                "open the GPUs",
                lambda: open_hardware(
                    settings=self._settings, state=self._state, room=room, scratch=self._stores.scratch
                ),
            )
        except (Unsupported, ImportError) as e:
            text = e.message if isinstance(e, KybernateError) else str(e)
            hint = (e.hint if isinstance(e, KybernateError) else None) or "`kybernate doctor` says more"
            self._notes.append(f"no GPU is used: {text} ({hint}). Plain processes only.")
            self._say(self._notes[-1])
            return None
        for gpu in hardware.gpus:
            simulated = " (simulated)" if gpu.simulated else ""
            self._say(f"GPU {gpu.index}: {gpu.name}{simulated}, {format_size(keeper.vram.capacity(gpu))} to hand out")
        hardware.pool.start()
        return _Opened(hardware, keeper)

    def _wire(self, tasks: Tasks) -> None:
        gpu: GpuGear | None = None
        if self._opened is not None:
            hardware = self._opened.hardware
            gpu = GpuGear(gpus=hardware.gpus, broker=hardware.broker, engine=hardware.engine, room=self._opened.room)
        gear = Gear(
            settings=self._settings,
            state=self._state,
            ledger=self.ledger,
            events=self.events,
            clock=self.clock,
            gpu=gpu,
            simulation=None if self._opened is None else self._opened.hardware.simulation,
            stores=self._stores,
            jobs=Jobs(),
            starts=self._starts,
            flush=self._records.flush,
        )
        self._gear = gear
        self.workloads = Workloads(gear=gear, tasks=tasks)
        self._external = ExternalWatcher(gear=gear, workloads=self.workloads, tasks=tasks)
        processes = None if self._opened is None else self._opened.hardware.processes
        self._unmanaged = Unmanaged(gear=gear, processes=processes, tree=self.workloads.tree)
        me = agent_id(self._state.root)
        claims = Claims(self._stores, by=me)
        leftovers = Leftovers(gear, by=me)
        self.workloads.forget_snapshots = leftovers.forget
        transfers = Transfers(gear, claims=claims, leftovers=leftovers)
        parking = Parking(gear=gear, workloads=self.workloads, transfers=transfers)
        pool_room = PoolRoom(gear=gear, workloads=self.workloads, parking=parking)
        self.switching = Switching(
            gear=gear,
            workloads=self.workloads,
            external=self._external,
            parking=parking,
            unparking=Unparking(gear=gear, workloads=self.workloads, claims=claims, pool_room=pool_room),
            transfers=transfers,
            pool_room=pool_room,
            leftovers=leftovers,
            unmanaged=self._unmanaged,
        )
        self.keeper = Keeper(gear=gear, workloads=self.workloads, leftovers=leftovers, pool_room=pool_room, tasks=tasks)
        self.library = Library(gear=gear, switching=self.switching, transfers=transfers, leftovers=leftovers)
        self.images = Images(
            gear=gear,
            workloads=self.workloads,
            switching=self.switching,
            parking=parking,
            transfers=transfers,
            pool_room=pool_room,
            library=self.library,
        )
        self.upkeep = Upkeep(gear=gear, library=self.library)
        self.jobs = gear.jobs
        self._recovery = Recovery(gear=gear, workloads=self.workloads, external=self._external, parking=parking)
        if gpu is not None:
            broker = gpu.broker
            guests = Guests(tasks=tasks, take_back=lambda name, pid: broker.drop(broker.extents(name, pid)))
            self.ledger.observe(Holders(gear=gear, gpu=gpu, tasks=tasks, pids=self._pids).changed)
            gpu.room.attach(
                books=Books(broker), workloads=self.switching, watch_process=guests.watch, look=self._unmanaged.look
            )
        self.serving = Serving(
            gear=gear,
            workloads=self.workloads,
            switching=self.switching,
            library=self.library,
            images=self.images,
            pool_room=pool_room,
            database=self._database,
            tasks=tasks,
            pool=None if self._opened is None else self._opened.hardware.pool,
            file=self._file,
        )
        self._metrics = Metrics(
            node=self.node_view,
            workloads=lambda: [self.workloads.view(entry) for entry in self.ledger.entries().values()],
            links=lambda: self._links,
            jobs=self.jobs.views,
        )
        self._metrics.register(ServingCollector(lambda: serving_view(self.serving, self.clock())))
        self.history = History(
            database=self._database,
            clock=self.clock,
            keep_s=self._settings.history.keep,
            resident=lambda name: 0 if gpu is None else gpu.room.vram.held(name),
            links=lambda: self._links,
            ended=self._metrics.stayed,
        )
        self.ledger.observe(self._records.write)
        self.ledger.observe(self.history.changed)
        self.ledger.observe(self._metrics.changed)

    def _pids(self, name: WorkloadName) -> list[HostPid]:
        tree = self.workloads.tree(name)
        return [] if tree is None else tree.pids()

    async def _recover(self) -> None:
        for line in await self._recovery.run(self._records.load()):
            self._say(line)

    async def _answer(self, api: Api) -> list[web.AppRunner]:
        """Begin to answer: on the socket, and over TCP where that is wanted."""
        application = api.application()
        runners: list[web.AppRunner] = [Runner(application, shutdown_timeout=_SHUTDOWN_S)]
        await runners[0].setup()
        await web.SockSite(runners[0], api_listener(self._state, self._settings.api.group)).start()
        if (door := self._door) is not None:
            guard = Guard(door, self._pages)
            application = api.application(guard.check)
            application.on_response_prepare.append(dress)
            runners.insert(0, Runner(application, shutdown_timeout=_SHUTDOWN_S))
            await runners[0].setup()
            server = runners[0].server
            assert server is not None
            most = self._settings.api.connections
            self._reception = Reception(door.listener, server, tls=door.tls, most=most)
            guard.admit = self._reception.admit
            self._reception.start(self._tasks.keep)
        return runners

    async def _report_pool(self, hardware: Hardware) -> None:
        from kybernate.agent.startup import describe_pool

        pool = hardware.pool
        while pool.fill_seconds is None:
            await asyncio.sleep(1.0)
            self._say(describe_pool(pool))
        self.events.record(
            "pool-ready", f"{describe_pool(pool)} after {pool.fill_seconds:.1f} s", data={"problems": pool.problems}
        )
        from kybernate.doctor.links import look

        self._links = await in_thread("look at the links", lambda: look(hardware.gpus))

    def _tier_changed(self, tier: TierName, problem: str | None) -> None:
        """In any thread."""
        kind, text = (
            ("tier-ready", f"tier {tier} is ready") if problem is None else ("tier-away", f"tier {tier}: {problem}")
        )
        self._loop.call_soon_threadsafe(lambda: self.events.record(kind, text, data={"tier": tier}))

    def _close(self, opened: _Opened | None) -> None:
        self._stores.close()
        if opened is None:
            return
        opened.hardware.broker.close()
        opened.hardware.engine.close()
        opened.hardware.pool.close()
        ended = all(entry.ended or entry.backend is Backend.DRIVER for entry in self.ledger.entries().values())
        if ended and not self._recovery.unclear:
            # Nothing in it means anything to a successor; the memory goes back to the machine.
            opened.hardware.remove_pool()
