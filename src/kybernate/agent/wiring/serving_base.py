"""Serving's lower parts: leases, what is known of workloads, and the gate that switching asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kybernate.agent.api.peer import caller_of
from kybernate.agent.orders.clones import Clones
from kybernate.agent.orders.images import Images
from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.records.database import Database
from kybernate.agent.records.events import Events
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.controller_state import ControllerState
from kybernate.agent.serving.gpu_usage import GpuUsage
from kybernate.agent.serving.lease_table import LeaseTable
from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.observe import Observations
from kybernate.agent.serving.policy_start import ActiveVictimPolicy
from kybernate.agent.serving.prefetching import HostPool
from kybernate.agent.serving.processes import WorkerPaths
from kybernate.agent.serving.readiness import Readiness
from kybernate.agent.serving.ready_watch import ReadyWatch
from kybernate.agent.serving.request_gate import ServingGate
from kybernate.agent.serving.shares import Shares
from kybernate.agent.serving.status_board import StatusBoard
from kybernate.agent.serving.surroundings import Demoter, LiveWorkloads, RunWorkload, StopWorkload, Switches
from kybernate.agent.serving.user_orders import UserOrders
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.serving.wake import Wake
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
class ServingBase:
    """What the rest of serving is made from."""

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


def wire_base(parts: AgentParts, current: CurrentConfiguration, vram: VramAccess) -> ServingBase:
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
    return ServingBase(
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
class GateParts:
    """What switching asks of serving, and who knows whether a server answers."""

    readiness: Readiness
    ready_watch: ReadyWatch
    gate: ServingGate


def wire_gate(parts: AgentParts, base: ServingBase, rooms: Rooms) -> GateParts:
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
    return GateParts(readiness, ready_watch, gate)
