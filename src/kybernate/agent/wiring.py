"""The agent's parts, made and connected: the only place that does so. agent.py has them run.

Parts are made from below, each with all that it needs. Where two need each other, the one that is made first gets a callable that
asks for the other when it is called (`gate`, `policy`, `on_ended` ...), or there is a queue between them (`AllocationRequests`).
None of these is called before `wire` has returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kybernate.agent.metrics import Metrics
from kybernate.agent.orders.clones import Clones
from kybernate.agent.orders.external import ExternalSwitching
from kybernate.agent.orders.images import Images
from kybernate.agent.orders.moving import Moving
from kybernate.agent.orders.recovery import Recovery
from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.orders.store_check import StoreCheck
from kybernate.agent.orders.switching import Switching
from kybernate.agent.orders.tiering import Tiering
from kybernate.agent.records.database import Database
from kybernate.agent.records.events import Events
from kybernate.agent.records.history import History
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Ledger, Observer
from kybernate.agent.records.ledger_rows import Records
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.metrics import ServingCollector
from kybernate.agent.serving.policy_start import ActiveVictimPolicy
from kybernate.agent.serving.pool_content import PoolContent
from kybernate.agent.serving.serving import Serving
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.startup import Hardware, open_hardware
from kybernate.agent.switching.failure_recovery import FailureRecovery
from kybernate.agent.switching.gate import RequestGate
from kybernate.agent.switching.pause_orders import PauseOrders
from kybernate.agent.switching.pausing import Pausing
from kybernate.agent.switching.resuming import Resuming
from kybernate.agent.tiers.capture import SnapshotCapture
from kybernate.agent.tiers.claims import Claims, agent_id
from kybernate.agent.tiers.cloning import ImageRestore
from kybernate.agent.tiers.fallback import StoredFallback
from kybernate.agent.tiers.parking import Parking
from kybernate.agent.tiers.pool_eviction import PoolEviction
from kybernate.agent.tiers.stale_snapshots import StaleSnapshots
from kybernate.agent.tiers.stored_state import StoredStates
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.tiers.tier_maintenance import IdleDemotion, TierMaintenance
from kybernate.agent.tiers.transfers import Transfers
from kybernate.agent.tiers.unparking import Unparking
from kybernate.agent.tiers.workload_discovery import WorkloadDiscovery
from kybernate.agent.vram.admission import VramAdmission
from kybernate.agent.vram.allocation_requests import AllocationRequests
from kybernate.agent.vram.auto_resume import AutoResume, AutoResumes
from kybernate.agent.vram.eviction import Eviction
from kybernate.agent.vram.out_of_memory import OutOfMemory
from kybernate.agent.vram.unmanaged import Unmanaged
from kybernate.agent.vram.victims import VictimPolicy
from kybernate.agent.vram.vram import Books, Vram
from kybernate.agent.vram.vram_leaks import VramLeaks
from kybernate.agent.vram.waiting import Waiting
from kybernate.agent.wiring_serving import AgentParts, Early, Rooms, wire_serving
from kybernate.agent.workloads.ending import EndHooks, Ending
from kybernate.agent.workloads.external import ExternalWatcher
from kybernate.agent.workloads.launching import Launcher
from kybernate.agent.workloads.process_watch import ProcessWatch
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.starting import Starting
from kybernate.agent.workloads.starts import Starts
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.view import WorkloadViews
from kybernate.agent.workloads.workloads import OnEnded, Workloads
from kybernate.cuda.broker import Broker
from kybernate.engine.engine import Engine
from kybernate.model.api import NodeView
from kybernate.model.api_history import LinkView
from kybernate.model.layout import StateDirectory
from kybernate.model.types import HostPid, TierName, WorkloadName
from kybernate.settings import AgentSettings


@dataclass(frozen=True, slots=True)
class Foundation:
    """What all others stand on."""

    settings: AgentSettings
    state: StateDirectory
    clock: Callable[[], float]
    database: Database
    records: Records
    ledger: Ledger
    events: Events
    stores: Stores
    jobs: Jobs
    starts: Starts


@dataclass(frozen=True, slots=True)
class GpuSide:
    """The GPUs, and what there is to hand out of them. Without a GPU nothing is."""

    hardware: Hardware | None
    runtime: GpuRuntime | None
    books: Books
    vram: Vram
    refusals: OutOfMemory
    requests: AllocationRequests


@dataclass(frozen=True, slots=True)
class _Processes:
    """Workloads as processes."""

    workloads: Workloads
    launcher: Launcher
    starting: Starting
    external: ExternalWatcher
    unmanaged: Unmanaged


@dataclass(frozen=True, slots=True)
class _Tiers:
    """Workloads below RAM."""

    stale_snapshots: StaleSnapshots
    transfers: Transfers
    capture: SnapshotCapture
    parking: Parking
    fallback: StoredFallback
    pool_eviction: PoolEviction
    unparking: Unparking
    image_restore: ImageRestore
    discovery: WorkloadDiscovery
    maintenance: TierMaintenance


@dataclass(frozen=True, slots=True)
class _Switches:
    """Pauses and resumes, and the VRAM for them."""

    waiting: Waiting
    admission: VramAdmission
    auto_resumes: AutoResumes
    tiering: Tiering
    switching: Switching


@dataclass(frozen=True, slots=True)
class Parts:
    """What is run, and what the API asks."""

    workloads: Workloads
    workload_views: WorkloadViews
    starting: Starting
    ending: Ending
    switching: Switching
    external: ExternalSwitching
    tiering: Tiering
    discovery: WorkloadDiscovery
    catalog: SnapshotCatalog
    moving: Moving
    images: Images
    clones: Clones
    store_check: StoreCheck
    serving: Serving
    history: History
    metrics: Metrics
    recovery: Recovery
    tier_maintenance: TierMaintenance
    unmanaged: Unmanaged
    admission: VramAdmission
    auto_resumes: AutoResumes
    process_watch: ProcessWatch | None


def lay_foundation(
    *,
    settings: AgentSettings,
    state: StateDirectory,
    database: Database,
    clock: Callable[[], float],
    tier_changed: Callable[[TierName, str | None], None],
) -> Foundation:
    """`tier_changed`: see `Stores`."""
    records = Records(database)
    return Foundation(
        settings=settings,
        state=state,
        clock=clock,
        database=database,
        records=records,
        ledger=Ledger(clock=clock, flush=records.flush),
        events=Events(database=database, clock=clock, keep=settings.events.keep),
        stores=Stores(settings=settings.store, state=state, changed=tier_changed),
        jobs=Jobs(),
        starts=Starts(),
    )


def open_gpu_side(base: Foundation, loop: asyncio.AbstractEventLoop) -> GpuSide:
    """Blocks; run it in a thread. The pool isn't filled yet.

    Raises:
        Unsupported: no driver or no GPU that can be used.
        KybernateError: the pool can't be made.
    """
    settings = base.settings
    hardware = open_hardware(settings=settings, state=base.state)
    books = Books(lambda workload, gpu: broker.resident_bytes(workload, gpu))
    side = _gpu_side(base, loop, hardware=hardware, books=books)
    broker = Broker(gpus=hardware.gpus, admission=side.requests, extent_bytes=settings.extent_size)
    engine = Engine(
        broker=broker,
        pool=hardware.pool,
        copiers=hardware.copiers,
        directory=hardware.manifests,
        scratch=base.stores.scratch,
        output_bytes=settings.log.output,
    )
    return replace(side, runtime=GpuRuntime(gpus=hardware.gpus, broker=broker, engine=engine))


def no_gpu_side(base: Foundation, loop: asyncio.AbstractEventLoop) -> GpuSide:
    return _gpu_side(base, loop, hardware=None, books=Books(lambda _workload, _gpu: 0))


def _gpu_side(base: Foundation, loop: asyncio.AbstractEventLoop, *, hardware: Hardware | None, books: Books) -> GpuSide:
    gpus = () if hardware is None else hardware.gpus
    vram = Vram(gpus=gpus, settings=base.settings.vram, holdings=books, clock=base.clock)
    refusals = OutOfMemory(vram=vram, events=base.events, clock=base.clock)
    requests = AllocationRequests(vram=vram, ledger=base.ledger, refusals=refusals, clock=base.clock, loop=loop)
    return GpuSide(hardware, None, books, vram, refusals, requests)


def wire(
    base: Foundation,
    side: GpuSide,
    tasks: Tasks,
    *,
    began_with: AgentSettings,
    file: Path | None,
    node: Callable[[], NodeView],
    links: Callable[[], list[LinkView]],
) -> Parts:
    """
    Args:
        began_with: what the file says of the agent itself, without the command line.
        file: what the settings were read from.
        node: for the metrics, once somebody asks.
        links: how fast the GPUs' links are, as far as it is known yet.
    """
    serving: Serving
    ending: Ending
    ledger, clock, gpu = base.ledger, base.clock, side.runtime
    early = Early(CurrentConfiguration(), ActiveVictimPolicy())
    processes = _wire_processes(base, side, tasks, on_ended=lambda name, tree: ending.ended(name, tree))
    workloads = processes.workloads
    tiers = _wire_tiers(
        base,
        side,
        tasks,
        processes,
        keeps_in_ram=early.current.keeps_in_ram,
        port_of=early.current.port_of,
    )
    switches = _wire_switches(base, side, processes, tiers, gate=lambda: serving.gate, policy=early.victim_policy)
    switching, admission = switches.switching, switches.admission

    def forget_vram(name: WorkloadName) -> None:
        admission.forget(name)
        side.requests.forget(name)

    hooks = EndHooks(
        resume_to_end=switching.resume_to_end,
        before_stop=lambda name, grace_s: serving.before_stop(name, grace_s),
        fall_back=lambda name: tiers.fallback.ended_in_ram(gpu, name),
        forget_snapshots=tiers.stale_snapshots.forget,
        forget_vram=forget_vram,
    )
    ending = Ending(
        ledger=ledger, events=base.events, gpu=gpu, workloads=workloads, launcher=processes.launcher, hooks=hooks
    )
    catalog = SnapshotCatalog(
        ledger=ledger, events=base.events, stores=base.stores, engine=None if gpu is None else gpu.engine
    )
    images = Images(
        gpu=gpu,
        ledger=ledger,
        events=base.events,
        clock=clock,
        catalog=catalog,
        workloads=workloads,
        switching=switching,
        capture=tiers.capture,
    )
    clones = Clones(
        gpu=gpu,
        ledger=ledger,
        clock=clock,
        starts=base.starts,
        workloads=workloads,
        switching=switching,
        catalog=catalog,
        image_restore=tiers.image_restore,
    )
    serving = _wire_serving(
        base,
        tasks,
        early,
        rooms=Rooms(
            workloads=workloads,
            run=processes.starting.run,
            stop=ending.stop,
            switches=switching,
            catalog=catalog,
            images=images,
            clones=clones,
            find_snapshot=lambda name: base.stores.find(name, one=True),
            demoter=tiers.pool_eviction,
            vram=VramAccess(
                gpus=() if gpu is None else [each.uuid for each in gpu.gpus], vram=side.vram, admission=admission
            ),
            pool=_pool_content(side, switches.tiering),
        ),
        began_with=began_with,
        file=file,
    )
    views = WorkloadViews(workloads=workloads, gpu=gpu, jobs=base.jobs, resident_bytes=side.vram.held)
    metrics = Metrics(
        node=node,
        workloads=lambda: [views.of(entry) for entry in ledger.entries().values()],
        links=links,
        jobs=base.jobs.views,
    )
    metrics.register(ServingCollector(lambda: serving.views.view(clock())))
    history = History(
        database=base.database,
        clock=clock,
        keep_s=base.settings.history.keep,
        resident=side.vram.held,
        links=links,
        ended=metrics.stayed,
    )
    leaks = _vram_leaks(base, side, tasks, workloads)
    observers: tuple[Observer, ...] = (
        side.books.changed,  # first: whoever decides asks what it counts
        switches.waiting.changed,
        admission.changed,
        workloads.changed,
        tiers.stale_snapshots.changed,
        *(() if leaks is None else (leaks.changed,)),
        base.records.write,
        history.changed,  # before the metrics, which forget a removed workload: its last interval counts
        metrics.changed,
        serving.on_changed,  # last: it decides by all of the above
    )
    ledger.observed_by(observers)
    return Parts(
        workloads=workloads,
        workload_views=views,
        starting=processes.starting,
        ending=ending,
        switching=switching,
        external=ExternalSwitching(
            gpu=gpu, ledger=ledger, workloads=workloads, external=processes.external, switching=switching
        ),
        tiering=switches.tiering,
        discovery=tiers.discovery,
        catalog=catalog,
        moving=Moving(
            gpu=gpu,
            ledger=ledger,
            clock=clock,
            tiering=switches.tiering,
            transfers=tiers.transfers,
            catalog=catalog,
        ),
        images=images,
        clones=clones,
        store_check=StoreCheck(ledger=ledger, events=base.events, jobs=base.jobs, stores=base.stores, catalog=catalog),
        serving=serving,
        history=history,
        metrics=metrics,
        recovery=Recovery(
            ledger=ledger,
            events=base.events,
            clock=clock,
            gpu=gpu,
            workloads=workloads,
            launcher=processes.launcher,
            external=processes.external,
            fallback=tiers.fallback,
        ),
        tier_maintenance=tiers.maintenance,
        unmanaged=processes.unmanaged,
        admission=admission,
        auto_resumes=switches.auto_resumes,
        process_watch=_process_watch(side, tasks),
    )


def _wire_processes(base: Foundation, side: GpuSide, tasks: Tasks, *, on_ended: OnEnded) -> _Processes:
    hardware, gpu = side.hardware, side.runtime
    simulation = None if hardware is None else hardware.simulation
    workloads = Workloads(ledger=base.ledger, jobs=base.jobs, state=base.state, tasks=tasks, on_ended=on_ended)
    launcher = Launcher(state=base.state, gpu=gpu, simulation=simulation, output_bytes=base.settings.log.output)
    return _Processes(
        workloads=workloads,
        launcher=launcher,
        starting=Starting(
            ledger=base.ledger,
            events=base.events,
            clock=base.clock,
            starts=base.starts,
            workloads=workloads,
            launcher=launcher,
        ),
        external=ExternalWatcher(
            ledger=base.ledger, events=base.events, clock=base.clock, gpu=gpu, workloads=workloads, tasks=tasks
        ),
        unmanaged=Unmanaged(
            ledger=base.ledger,
            events=base.events,
            gpu=gpu,
            vram=side.vram,
            processes=None if hardware is None else hardware.processes,
            simulated=simulation is not None,
            tree=workloads.tree,
        ),
    )


def _wire_tiers(
    base: Foundation,
    side: GpuSide,
    tasks: Tasks,
    processes: _Processes,
    *,
    keeps_in_ram: Callable[[WorkloadName], bool],
    port_of: Callable[[WorkloadName], int | None],
) -> _Tiers:
    """`keeps_in_ram`: see `PoolEviction`; `port_of`: see `SnapshotCapture`."""
    ledger, events, clock, stores, jobs = base.ledger, base.events, base.clock, base.stores, base.jobs
    gpu, workloads, settings = side.runtime, processes.workloads, base.settings.store
    engine = None if gpu is None else gpu.engine
    simulation = None if side.hardware is None else side.hardware.simulation
    me = agent_id(base.state.root)
    claims = Claims(stores, by=me)
    stale_snapshots = StaleSnapshots(ledger=ledger, stores=stores, engine=engine, by=me, idle=workloads.idle)
    transfers = Transfers(
        ledger=ledger, events=events, jobs=jobs, stores=stores, claims=claims, stale_snapshots=stale_snapshots
    )
    capture = SnapshotCapture(
        jobs=jobs,
        workloads=workloads,
        transfers=transfers,
        defaults=settings,
        gpu_directories=() if simulation is None else simulation.gpu_directories,
        port_of=port_of,
    )
    parking = Parking(ledger=ledger, events=events, stores=stores, workloads=workloads, capture=capture)
    pool_eviction = PoolEviction(
        gpu=gpu,
        ledger=ledger,
        stores=stores,
        workloads=workloads,
        parking=parking,
        under_pressure=settings.demote.pressure,
        keeps_in_ram=keeps_in_ram,
    )
    discovery = WorkloadDiscovery(ledger=ledger, events=events, stores=stores)
    return _Tiers(
        stale_snapshots=stale_snapshots,
        transfers=transfers,
        capture=capture,
        parking=parking,
        fallback=StoredFallback(ledger=ledger, events=events, stores=stores, workloads=workloads),
        pool_eviction=pool_eviction,
        unparking=Unparking(
            ledger=ledger,
            events=events,
            clock=clock,
            jobs=jobs,
            stores=stores,
            workloads=workloads,
            claims=claims,
            pool_eviction=pool_eviction,
        ),
        image_restore=ImageRestore(
            ledger=ledger,
            events=events,
            jobs=jobs,
            starts=base.starts,
            stores=stores,
            workloads=workloads,
            launcher=processes.launcher,
            pool_eviction=pool_eviction,
        ),
        discovery=discovery,
        maintenance=TierMaintenance(
            clock=clock,
            stores=stores,
            engine=engine,
            discovery=discovery,
            stale_snapshots=stale_snapshots,
            demotion=IdleDemotion(ledger=ledger, clock=clock, pool_eviction=pool_eviction, idle_s=settings.demote.idle),
            tasks=tasks,
        ),
    )


def _wire_switches(
    base: Foundation,
    side: GpuSide,
    processes: _Processes,
    tiers: _Tiers,
    *,
    gate: Callable[[], RequestGate],
    policy: Callable[[], VictimPolicy | None],
) -> _Switches:
    """`gate`: see `Switching`; `policy`: see `Eviction`."""
    ledger, clock, arbiter = base.ledger, base.clock, base.settings.arbiter
    gpu, vram, workloads = side.runtime, side.vram, processes.workloads
    recovery = FailureRecovery(
        ledger=ledger,
        events=base.events,
        clock=clock,
        workloads=workloads,
        starting=processes.starting,
        fallback=tiers.fallback,
    )
    pausing = Pausing(
        ledger=ledger,
        clock=clock,
        workloads=workloads,
        pool_space=tiers.pool_eviction,
        recovery=recovery,
        find_unmanaged=processes.unmanaged.look,
        gate=gate,
    )
    pause_orders = PauseOrders(gpu=gpu, workloads=workloads, pausing=pausing, settings=arbiter)
    eviction = Eviction(
        vram=vram,
        ledger=ledger,
        clock=clock,
        pauser=pause_orders,
        policy=policy,
        find_unmanaged=processes.unmanaged.look,
    )
    waiting = Waiting(
        vram=vram,
        ledger=ledger,
        clock=clock,
        idle=workloads.idle,
        refused_until=eviction.refused_until,
        rank=eviction.rank,
    )
    auto_resume = AutoResume(vram=vram, settings=arbiter, wanted=waiting.wanted)
    admission = VramAdmission(
        vram=vram,
        ledger=ledger,
        clock=clock,
        settings=arbiter,
        eviction=eviction,
        waiting=waiting,
        auto_resume=auto_resume,
        refusals=side.refusals,
    )
    resuming = Resuming(
        ledger=ledger,
        clock=clock,
        workloads=workloads,
        vram=vram,
        admission=admission,
        stored_state=StoredStates(unparking=tiers.unparking, stale_snapshots=tiers.stale_snapshots),
        recovery=recovery,
        gate=gate,
    )
    tiering = Tiering(
        gpu=gpu,
        ledger=ledger,
        clock=clock,
        workloads=workloads,
        parking=tiers.parking,
        unparking=tiers.unparking,
        transfers=tiers.transfers,
    )
    switching = Switching(
        gpu=gpu,
        ledger=ledger,
        starts=base.starts,
        workloads=workloads,
        pause_orders=pause_orders,
        resuming=resuming,
        tiering=tiering,
        gate=gate,
    )
    auto_resumes = AutoResumes(
        ledger=ledger,
        clock=clock,
        choosing=auto_resume,
        waiting=waiting,
        eviction=eviction,
        idle=workloads.idle,
        bring_back=switching.bring_back,
    )
    return _Switches(waiting, admission, auto_resumes, tiering, switching)


def _wire_serving(
    base: Foundation,
    tasks: Tasks,
    early: Early,
    *,
    rooms: Rooms,
    began_with: AgentSettings,
    file: Path | None,
) -> Serving:
    parts = AgentParts(
        settings=base.settings,
        directory=base.state,
        database=base.database,
        ledger=base.ledger,
        events=base.events,
        starts=base.starts,
        jobs=base.jobs,
        tasks=tasks,
        clock=base.clock,
    )
    return wire_serving(parts, early, rooms, began_with=began_with, file=file)


def _pool_content(side: GpuSide, tiering: Tiering) -> PoolContent | None:
    if side.hardware is None or side.runtime is None:
        return None
    return PoolContent(pool=side.hardware.pool, engine=side.runtime.engine, tiering=tiering)


def _vram_leaks(base: Foundation, side: GpuSide, tasks: Tasks, workloads: Workloads) -> VramLeaks | None:
    if side.hardware is None:
        return None

    def pids(name: WorkloadName) -> list[HostPid]:
        tree = workloads.tree(name)
        return [] if tree is None else tree.pids()

    return VramLeaks(
        ledger=base.ledger,
        events=base.events,
        vram=side.vram,
        tasks=tasks,
        simulation=side.hardware.simulation,
        pids=pids,
    )


def _process_watch(side: GpuSide, tasks: Tasks) -> ProcessWatch | None:
    if side.runtime is None:
        return None
    broker = side.runtime.broker
    return ProcessWatch(
        tasks=tasks,
        next_hello=side.requests.next_hello,
        take_back=lambda name, pid: broker.drop(broker.extents(name, pid)),
    )
