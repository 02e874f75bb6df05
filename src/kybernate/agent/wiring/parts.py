"""All parts of the agent, made from below and connected. See the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from kybernate.agent.records.history import History
from kybernate.agent.records.ledger import Observer
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.metrics import ServingCollector
from kybernate.agent.serving.policy_start import ActiveVictimPolicy
from kybernate.agent.serving.pool_content import PoolContent
from kybernate.agent.serving.serving import Serving
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.tiers.tier_maintenance import TierMaintenance
from kybernate.agent.tiers.workload_discovery import WorkloadDiscovery
from kybernate.agent.vram.admission import VramAdmission
from kybernate.agent.vram.auto_resume import AutoResumer
from kybernate.agent.vram.unmanaged import Unmanaged
from kybernate.agent.vram.vram_leaks import VramLeaks
from kybernate.agent.wiring.foundation import Foundation, GpuSide
from kybernate.agent.wiring.orders import OrderParts, wire_ending, wire_orders
from kybernate.agent.wiring.rooms import (
    ProcessParts,
    SwitchParts,
    TierParts,
    wire_processes,
    wire_switches,
    wire_tiers,
)
from kybernate.agent.wiring.serving import wire_serving
from kybernate.agent.wiring.serving_base import AgentParts, Early, Rooms
from kybernate.agent.workloads.ending import Ending
from kybernate.agent.workloads.process_watch import ProcessWatch
from kybernate.agent.workloads.starting import Starting
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.view import WorkloadViews
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import NodeView
from kybernate.model.api_history import LinkView
from kybernate.model.types import HostPid, WorkloadName
from kybernate.settings import AgentSettings


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
    auto_resumer: AutoResumer
    process_watch: ProcessWatch | None


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
    current = CurrentConfiguration()
    early = Early(current, ActiveVictimPolicy())
    processes = wire_processes(base, side, tasks, on_ended=lambda name, tree: ending.ended(name, tree))
    tiers = wire_tiers(base, side, tasks, processes, keeps_in_ram=current.keeps_in_ram, port_of=current.port_of)
    switches = wire_switches(base, side, processes, tiers, gate=lambda: serving.gate, policy=early.victim_policy)
    ending = wire_ending(
        base, side, processes, tiers, switches, before_stop=lambda name, grace_s: serving.before_stop(name, grace_s)
    )
    orders = wire_orders(base, side, processes, tiers, switches)
    rooms = _rooms(base, side, processes, tiers, switches, ending, orders)
    serving = _wire_serving(base, tasks, early, rooms=rooms, began_with=began_with, file=file)
    reports = _wire_reports(base, side, processes.workloads, serving, node=node, links=links)
    leaks = _vram_leaks(base, side, tasks, processes.workloads)
    base.ledger.observed_by(_observers(base, side, processes, tiers, switches, reports, serving, leaks))
    return Parts(
        workloads=processes.workloads,
        workload_views=reports.workload_views,
        starting=processes.starting,
        ending=ending,
        switching=switches.switching,
        external=orders.external,
        tiering=switches.tiering,
        discovery=tiers.discovery,
        catalog=orders.catalog,
        moving=orders.moving,
        images=orders.images,
        clones=orders.clones,
        store_check=orders.store_check,
        serving=serving,
        history=reports.history,
        metrics=reports.metrics,
        recovery=orders.recovery,
        tier_maintenance=tiers.maintenance,
        unmanaged=processes.unmanaged,
        admission=switches.admission,
        auto_resumer=switches.auto_resumer,
        process_watch=_process_watch(side, tasks),
    )


def _rooms(
    base: Foundation,
    side: GpuSide,
    processes: ProcessParts,
    tiers: TierParts,
    switches: SwitchParts,
    ending: Ending,
    orders: OrderParts,
) -> Rooms:
    gpu = side.runtime
    return Rooms(
        workloads=processes.workloads,
        run=processes.starting.run,
        stop=ending.stop,
        switches=switches.switching,
        catalog=orders.catalog,
        images=orders.images,
        clones=orders.clones,
        find_snapshot=lambda name: base.stores.find(name, one=True),
        demoter=tiers.pool_eviction,
        vram=VramAccess(
            gpus=() if gpu is None else [each.uuid for each in gpu.gpus], vram=side.vram, admission=switches.admission
        ),
        pool=_pool_content(side, switches.tiering),
    )


@dataclass(frozen=True, slots=True)
class _Reports:
    workload_views: WorkloadViews
    metrics: Metrics
    history: History


def _wire_reports(
    base: Foundation,
    side: GpuSide,
    workloads: Workloads,
    serving: Serving,
    *,
    node: Callable[[], NodeView],
    links: Callable[[], list[LinkView]],
) -> _Reports:
    views = WorkloadViews(workloads=workloads, gpu=side.runtime, jobs=base.jobs, resident_bytes=side.vram.held)
    metrics = Metrics(
        node=node,
        workloads=lambda: [views.of(entry) for entry in base.ledger.entries().values()],
        links=links,
        jobs=base.jobs.views,
    )
    metrics.register(ServingCollector(lambda: serving.views.view(base.clock())))
    history = History(
        database=base.database,
        clock=base.clock,
        keep_s=base.settings.history.keep,
        resident=side.vram.held,
        links=links,
        ended=metrics.stayed,
    )
    return _Reports(views, metrics, history)


def _observers(
    base: Foundation,
    side: GpuSide,
    processes: ProcessParts,
    tiers: TierParts,
    switches: SwitchParts,
    reports: _Reports,
    serving: Serving,
    leaks: VramLeaks | None,
) -> tuple[Observer, ...]:
    return (
        side.usage.changed,  # first: whoever decides asks what it counts
        switches.waiting.changed,
        switches.admission.changed,
        processes.workloads.changed,
        tiers.stale_snapshots.changed,
        *(() if leaks is None else (leaks.changed,)),
        base.records.write,
        reports.history.changed,  # before the metrics, which forget a removed workload: its last interval counts
        reports.metrics.changed,
        serving.on_changed,  # last: it decides by all of the above
    )


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
