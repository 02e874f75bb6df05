"""How serving's parts are put together, in the order in which they need each other; parts.py calls `wire_serving`.

First leases and what is known of workloads, then the gate that switching asks, then who decides and who is started.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kybernate.agent.api.peer import caller_of
from kybernate.agent.orders.clones import Clones
from kybernate.agent.orders.images import Images
from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.records.database import Database
from kybernate.agent.records.events import Events
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.serving.action_runner import ActionRunner
from kybernate.agent.serving.activator import Activator
from kybernate.agent.serving.adoption import Adoption
from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.bringup import Bringup
from kybernate.agent.serving.collect_state import NodeStateCollector
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.controller import Controller
from kybernate.agent.serving.controller_state import ControllerState
from kybernate.agent.serving.demotions import Demotions
from kybernate.agent.serving.effects import BringEffect, Effects
from kybernate.agent.serving.failures import ActionFailures
from kybernate.agent.serving.gold_images import GoldImages
from kybernate.agent.serving.gpu_usage import GpuUsage
from kybernate.agent.serving.lease_table import LeaseTable
from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.ledger_watch import LedgerWatch
from kybernate.agent.serving.observe import Observations
from kybernate.agent.serving.periodic import Periodic
from kybernate.agent.serving.planner import Planner
from kybernate.agent.serving.policy_start import ActiveVictimPolicy, PolicyStart
from kybernate.agent.serving.prefetching import HostPool, Prefetching
from kybernate.agent.serving.processes import Processes, WorkerPaths
from kybernate.agent.serving.readiness import Readiness
from kybernate.agent.serving.ready_watch import ReadyWatch
from kybernate.agent.serving.refusals import Refusals
from kybernate.agent.serving.reload import Applying, Reload
from kybernate.agent.serving.removal import ModelLeases, Removal
from kybernate.agent.serving.request_gate import ServingGate
from kybernate.agent.serving.restarts import Restarts
from kybernate.agent.serving.serving import Serving, ServingLife
from kybernate.agent.serving.serving_orders import ServingOrders
from kybernate.agent.serving.shares import Shares
from kybernate.agent.serving.status_board import StatusBoard
from kybernate.agent.serving.surroundings import Demoter, LiveWorkloads, RunWorkload, StopWorkload, Switches
from kybernate.agent.serving.user_orders import UserOrders
from kybernate.agent.serving.victims import Victims
from kybernate.agent.serving.views import ServedViews, ServingViews
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.serving.wake import Wake
from kybernate.agent.serving.worker_events import WorkerEvents
from kybernate.agent.serving.worker_load import WorkerLoads
from kybernate.agent.serving.workers import Workers
from kybernate.agent.serving.workload_facts import WorkloadFacts
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.agent.workloads.starts import Starts
from kybernate.agent.workloads.tasks import Tasks
from kybernate.model.layout import StateDirectory
from kybernate.settings import AgentSettings


@dataclass(frozen=True, slots=True)
class AgentParts:
    """What all rooms of the agent share."""

    settings: AgentSettings
    directory: StateDirectory
    database: Database
    ledger: Ledger
    events: Events
    starts: Starts
    jobs: Jobs
    tasks: Tasks
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Rooms:
    """The other rooms, as far as serving needs them."""

    workloads: LiveWorkloads
    run: RunWorkload
    stop: StopWorkload
    switches: Switches
    catalog: SnapshotCatalog
    images: Images
    clones: Clones
    find_snapshot: Callable[[str], object]
    demoter: Demoter
    vram: VramAccess
    pool: HostPool | None


@dataclass(frozen=True, slots=True)
class Early:
    """What other rooms ask of serving, which is made after them."""

    current: CurrentConfiguration
    victim_policy: ActiveVictimPolicy


@dataclass(frozen=True, slots=True)
class _Base:
    paths: WorkerPaths
    wake: Wake
    current: CurrentConfiguration
    workers: Workers
    loads: WorkerLoads
    stats: WorkloadStats
    usage: GpuUsage
    state: ControllerState
    vram: VramAccess
    table: LeaseTable
    shares: Shares
    facts: WorkloadFacts
    board: StatusBoard
    leases: Leases
    backoff: Backoff
    observations: Observations
    user_orders: UserOrders


def _wire_base(parts: AgentParts, current: CurrentConfiguration, vram: VramAccess) -> _Base:
    root, clock = parts.directory.root, parts.clock
    paths = WorkerPaths(
        socket=root / "activator.sock",
        record=root / "activator.json",
        log=root / "activator.log",
        metrics=root / "activator-metrics",
    )
    wake, loads, state, table = Wake(), WorkerLoads(), ControllerState(), LeaseTable()
    workers = Workers(path=paths.socket, caller_of=caller_of)
    stats = WorkloadStats(parts.database)
    usage = GpuUsage(stats)
    shares = Shares(workers=workers, loads=loads)
    facts = WorkloadFacts(
        ledger=parts.ledger,
        configuration=current,
        stats=stats,
        loads=loads,
        vram=vram,
        leases=table,
        state=state,
        clock=clock,
    )
    board = StatusBoard(configuration=current, ledger=parts.ledger, facts=facts, leases=table, workers=workers)
    backoff = Backoff(clock)
    return _Base(
        paths=paths,
        wake=wake,
        current=current,
        workers=workers,
        loads=loads,
        stats=stats,
        usage=usage,
        state=state,
        vram=vram,
        table=table,
        shares=shares,
        facts=facts,
        board=board,
        leases=Leases(table=table, shares=shares, workers=workers, loads=loads, clock=clock, on_change=board.update),
        backoff=backoff,
        observations=Observations(
            ledger=parts.ledger,
            configuration=current,
            loads=loads,
            stats=stats,
            usage=usage,
            vram=vram,
            state=state,
            backoff=backoff,
        ),
        user_orders=UserOrders(
            configuration=current,
            starts=parts.starts,
            state=state,
            backoff=backoff,
            stats=stats,
            loads=loads,
            clock=clock,
            wake=wake,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Gate:
    readiness: Readiness
    ready_watch: ReadyWatch
    gate: ServingGate


def _wire_gate(parts: AgentParts, base: _Base, rooms: Rooms) -> _Gate:
    readiness = Readiness(
        ledger=parts.ledger,
        workloads=rooms.workloads,
        stop=rooms.stop,
        leases=base.leases,
        stats=base.stats,
        directory=parts.directory,
    )
    ready_watch = ReadyWatch(
        readiness=readiness, observations=base.observations, events=parts.events, tasks=parts.tasks, wake=base.wake
    )
    gate = ServingGate(
        configuration=base.current,
        leases=base.leases,
        readiness=readiness,
        ready_watch=ready_watch,
        observations=base.observations,
        user_orders=base.user_orders,
        actions=base.state.actions,
    )
    return _Gate(readiness, ready_watch, gate)


def wire_serving(
    parts: AgentParts, early: Early, rooms: Rooms, *, began_with: AgentSettings, file: Path | None
) -> Serving:
    """
    Args:
        began_with: what the file says of the agent itself, without the command line.
        file: what `reload` reads.
    """
    base = _wire_base(parts, early.current, rooms.vram)
    gate = _wire_gate(parts, base, rooms)
    prefetching = Prefetching(
        ledger=parts.ledger,
        events=parts.events,
        pool=rooms.pool,
        workloads=rooms.workloads,
        jobs=parts.jobs,
        tasks=parts.tasks,
        clock=parts.clock,
        wake=base.wake,
    )
    collector = NodeStateCollector(
        facts=base.facts,
        workloads=rooms.workloads,
        prefetching=prefetching,
        starts=parts.starts,
        backoff=base.backoff,
        stats=base.stats,
        vram=base.vram,
        auto_resume=parts.settings.arbiter.auto_resume,
    )
    planner = Planner(configuration=base.current, collector=collector, leases=base.table, backoff=base.backoff)
    refusals = Refusals(leases=base.leases, board=base.board, backoff=base.backoff, outcomes=base.state.outcomes)
    controller = _controller(parts, base, gate, rooms, prefetching, collector, planner, refusals)
    policy_start = PolicyStart(
        current=base.current,
        planner=planner,
        controller=controller,
        leases=base.leases,
        victim_policy=early.victim_policy,
        tasks=parts.tasks,
    )
    processes = Processes(
        paths=base.paths, workers=base.workers, events=parts.events, tasks=parts.tasks, clock=parts.clock
    )
    models = ModelLeases(table=base.table, shares=base.shares, leases=base.leases, board=base.board)
    applying = Applying(
        current=base.current,
        models=models,
        stats=base.stats,
        prefetching=prefetching,
        user_orders=base.user_orders,
        vram=base.vram,
        processes=processes,
    )
    removal = Removal(
        ledger=parts.ledger,
        events=parts.events,
        tasks=parts.tasks,
        stop=rooms.stop,
        stats=base.stats,
        models=models,
    )
    activator = _activator(parts, base, gate, processes)
    served_views = ServedViews(
        current=base.current,
        collector=collector,
        planner=planner,
        leases=base.table,
        backoff=base.backoff,
        usage=base.usage,
    )
    return Serving(
        life=ServingLife(
            stats=base.stats,
            ledger_watch=(watch := _ledger_watch(parts, base, prefetching)),
            applying=applying,
            observations=base.observations,
            activator=activator,
            policy_start=policy_start,
            removal=None if file is None else removal,
            adoption=Adoption(
                current=base.current,
                leases=base.leases,
                table=base.table,
                readiness=gate.readiness,
                ready_watch=gate.ready_watch,
                tasks=parts.tasks,
            ),
        ),
        on_changed=watch.on_changed,
        gate=gate.gate,
        before_stop=base.leases.close_before_stop,
        orders=ServingOrders(
            current=base.current,
            ledger=parts.ledger,
            starts=parts.starts,
            stop=rooms.stop,
            user_orders=base.user_orders,
            refusals=refusals,
        ),
        file=Reload(
            file=file,
            began_with=began_with,
            current=base.current,
            applying=applying,
            removal=removal,
            policy_start=policy_start,
            vram=base.vram,
            events=parts.events,
        ),
        views=ServingViews(
            current=base.current,
            collector=collector,
            planner=planner,
            served=served_views,
            usage=base.usage,
            prefetching=prefetching,
            activator=activator,
            vram=base.vram,
        ),
        activator=activator,
    )


def _activator(parts: AgentParts, base: _Base, gate: _Gate, processes: Processes) -> Activator:
    return Activator(
        paths=base.paths,
        current=base.current,
        workers=base.workers,
        events=WorkerEvents(
            board=base.board,
            leases=base.leases,
            loads=base.loads,
            shares=base.shares,
            readiness=gate.readiness,
            ready_watch=gate.ready_watch,
            clock=parts.clock,
            wake=base.wake,
        ),
        leases=base.leases,
        processes=processes,
    )


def _ledger_watch(parts: AgentParts, base: _Base, prefetching: Prefetching) -> LedgerWatch:
    return LedgerWatch(
        leases=base.leases,
        prefetching=prefetching,
        observations=base.observations,
        user_orders=base.user_orders,
        board=base.board,
        clock=parts.clock,
        wake=base.wake,
    )


def _controller(
    parts: AgentParts,
    base: _Base,
    gate: _Gate,
    rooms: Rooms,
    prefetching: Prefetching,
    collector: NodeStateCollector,
    planner: Planner,
    refusals: Refusals,
) -> Controller:
    actions = base.state.actions
    runner = ActionRunner(actions=actions, tasks=parts.tasks, clock=parts.clock, wake=base.wake)
    victims = Victims(
        configuration=base.current,
        leases=base.leases,
        readiness=gate.readiness,
        backoff=base.backoff,
        vram=base.vram,
    )
    failures = ActionFailures(
        ledger=parts.ledger,
        events=parts.events,
        starts=parts.starts,
        backoff=base.backoff,
        leases=base.leases,
        outcomes=base.state.outcomes,
        vram=base.vram,
    )
    bring = BringEffect(
        facts=base.facts,
        actions=actions,
        runner=runner,
        victims=victims,
        bringup=_bringup(parts, base, gate, rooms),
        prefetching=prefetching,
        ready_watch=gate.ready_watch,
        failures=failures,
    )
    periodic = Periodic(
        configuration=base.current,
        collector=collector,
        starts=parts.starts,
        user_orders=base.user_orders,
        refusals=refusals,
        victims=victims,
        restarts=Restarts(
            runner=runner,
            actions=actions,
            victims=victims,
            stop=rooms.stop,
            starts=parts.starts,
            events=parts.events,
            observations=base.observations,
            failures=failures,
        ),
        demotions=Demotions(runner=runner, demoter=rooms.demoter, backoff=base.backoff),
    )
    return Controller(
        planner=planner,
        effects=Effects(
            runner=runner,
            bring=bring,
            victims=victims,
            switches=rooms.switches,
            prefetching=prefetching,
            failures=failures,
        ),
        refusals=refusals,
        polled=(base.observations, prefetching, periodic),
        starts=parts.starts,
        tasks=parts.tasks,
        clock=parts.clock,
        wake=base.wake,
    )


def _bringup(parts: AgentParts, base: _Base, gate: _Gate, rooms: Rooms) -> Bringup:
    gold_images = GoldImages(
        images=rooms.images,
        clones=rooms.clones,
        catalog=rooms.catalog,
        find=rooms.find_snapshot,
        stats=base.stats,
        events=parts.events,
        vram=base.vram,
    )
    return Bringup(
        ledger=parts.ledger,
        run=rooms.run,
        switches=rooms.switches,
        gold_images=gold_images,
        readiness=gate.readiness,
        stats=base.stats,
        clock=parts.clock,
    )
