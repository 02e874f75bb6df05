"""The parts of the rooms below `orders/`: workloads as processes, those below RAM, and switches with the VRAM for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kybernate.agent.orders.switching import Switching
from kybernate.agent.orders.tiering import Tiering
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
from kybernate.agent.tiers.tier_maintenance import IdleDemotion, TierMaintenance
from kybernate.agent.tiers.transfers import Transfers
from kybernate.agent.tiers.unparking import Unparking
from kybernate.agent.tiers.workload_discovery import WorkloadDiscovery
from kybernate.agent.vram.admission import VramAdmission
from kybernate.agent.vram.auto_resume import AutoResume, AutoResumer
from kybernate.agent.vram.eviction import Eviction
from kybernate.agent.vram.unmanaged import Unmanaged
from kybernate.agent.vram.victims import VictimPolicy
from kybernate.agent.vram.waiting import WaitingAllocations
from kybernate.agent.wiring.foundation import Foundation, GpuSide
from kybernate.agent.workloads.external import ExternalWatcher
from kybernate.agent.workloads.launching import Launcher
from kybernate.agent.workloads.starting import Starting
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.workloads import OnEnded, Workloads
from kybernate.engine.engine import Engine
from kybernate.model.types import WorkloadName


@dataclass(frozen=True, slots=True)
class ProcessParts:
    """Workloads as processes."""

    workloads: Workloads
    launcher: Launcher
    starting: Starting
    external: ExternalWatcher
    unmanaged: Unmanaged


@dataclass(frozen=True, slots=True)
class TierParts:
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
class SwitchParts:
    """Pauses and resumes, and the VRAM for them."""

    waiting: WaitingAllocations
    admission: VramAdmission
    auto_resumer: AutoResumer
    tiering: Tiering
    switching: Switching


def wire_processes(base: Foundation, side: GpuSide, tasks: Tasks, *, on_ended: OnEnded) -> ProcessParts:
    hardware, gpu = side.hardware, side.runtime
    simulation = None if hardware is None else hardware.simulation
    workloads = Workloads(ledger=base.ledger, jobs=base.jobs, state=base.state, tasks=tasks, on_ended=on_ended)
    launcher = Launcher(state=base.state, gpu=gpu, simulation=simulation, output_bytes=base.settings.log.output)
    return ProcessParts(
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


def wire_tiers(
    base: Foundation,
    side: GpuSide,
    tasks: Tasks,
    processes: ProcessParts,
    *,
    keeps_in_ram: Callable[[WorkloadName], bool],
    port_of: Callable[[WorkloadName], int | None],
) -> TierParts:
    """`keeps_in_ram`: see `PoolEviction`; `port_of`: see `SnapshotCapture`."""
    ledger, events, stores, jobs = base.ledger, base.events, base.stores, base.jobs
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
    return TierParts(
        stale_snapshots=stale_snapshots,
        transfers=transfers,
        capture=capture,
        parking=parking,
        fallback=StoredFallback(ledger=ledger, events=events, stores=stores, workloads=workloads),
        pool_eviction=pool_eviction,
        unparking=_unparking(base, processes, claims, pool_eviction),
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
        maintenance=_maintenance(base, engine, tasks, discovery, stale_snapshots, pool_eviction),
    )


def _unparking(base: Foundation, processes: ProcessParts, claims: Claims, pool_eviction: PoolEviction) -> Unparking:
    return Unparking(
        ledger=base.ledger,
        events=base.events,
        clock=base.clock,
        jobs=base.jobs,
        stores=base.stores,
        workloads=processes.workloads,
        claims=claims,
        pool_eviction=pool_eviction,
    )


def _maintenance(
    base: Foundation,
    engine: Engine | None,
    tasks: Tasks,
    discovery: WorkloadDiscovery,
    stale_snapshots: StaleSnapshots,
    pool_eviction: PoolEviction,
) -> TierMaintenance:
    demotion = IdleDemotion(
        ledger=base.ledger, clock=base.clock, pool_eviction=pool_eviction, idle_s=base.settings.store.demote.idle
    )
    return TierMaintenance(
        clock=base.clock,
        stores=base.stores,
        engine=engine,
        discovery=discovery,
        stale_snapshots=stale_snapshots,
        demotion=demotion,
        tasks=tasks,
    )


def wire_switches(
    base: Foundation,
    side: GpuSide,
    processes: ProcessParts,
    tiers: TierParts,
    *,
    gate: Callable[[], RequestGate],
    policy: Callable[[], VictimPolicy | None],
) -> SwitchParts:
    """`gate`: see `Switching`; `policy`: see `Eviction`."""
    ledger, clock, gpu, workloads = base.ledger, base.clock, side.runtime, processes.workloads
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
        find_unmanaged=processes.unmanaged.refresh,
        gate=gate,
    )
    pause_orders = PauseOrders(gpu=gpu, workloads=workloads, pausing=pausing, settings=base.settings.arbiter)
    room = _wire_vram(base, side, processes, pause_orders, policy=policy)
    resuming = Resuming(
        ledger=ledger,
        clock=clock,
        workloads=workloads,
        vram=side.vram,
        admission=room.admission,
        stored_state=StoredStates(unparking=tiers.unparking, stale_snapshots=tiers.stale_snapshots),
        recovery=recovery,
        gate=gate,
    )
    tiering = _tiering(base, side, processes, tiers)
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
    auto_resumer = AutoResumer(
        ledger=ledger,
        clock=clock,
        choosing=room.auto_resume,
        waiting=room.waiting,
        eviction=room.eviction,
        idle=workloads.idle,
        bring_back=switching.bring_back,
    )
    return SwitchParts(room.waiting, room.admission, auto_resumer, tiering, switching)


@dataclass(frozen=True, slots=True)
class _VramParts:
    eviction: Eviction
    waiting: WaitingAllocations
    auto_resume: AutoResume
    admission: VramAdmission


def _wire_vram(
    base: Foundation,
    side: GpuSide,
    processes: ProcessParts,
    pause_orders: PauseOrders,
    *,
    policy: Callable[[], VictimPolicy | None],
) -> _VramParts:
    ledger, clock, arbiter = base.ledger, base.clock, base.settings.arbiter
    vram, workloads = side.vram, processes.workloads
    eviction = Eviction(
        vram=vram,
        ledger=ledger,
        clock=clock,
        pauser=pause_orders,
        policy=policy,
        find_unmanaged=processes.unmanaged.refresh,
    )
    waiting = WaitingAllocations(
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
    return _VramParts(eviction, waiting, auto_resume, admission)


def _tiering(base: Foundation, side: GpuSide, processes: ProcessParts, tiers: TierParts) -> Tiering:
    return Tiering(
        gpu=side.runtime,
        ledger=base.ledger,
        clock=base.clock,
        workloads=processes.workloads,
        parking=tiers.parking,
        unparking=tiers.unparking,
        transfers=tiers.transfers,
    )
