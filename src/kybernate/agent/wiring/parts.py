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
from kybernate.agent.wiring.rooms import wire_processes, wire_switches, wire_tiers
from kybernate.agent.wiring.serving import AgentParts, Early, Rooms, wire_serving
from kybernate.agent.workloads.ending import EndHooks, Ending
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
    ledger, clock, gpu = base.ledger, base.clock, side.runtime
    early = Early(CurrentConfiguration(), ActiveVictimPolicy())
    processes = wire_processes(base, side, tasks, on_ended=lambda name, tree: ending.ended(name, tree))
    workloads = processes.workloads
    tiers = wire_tiers(
        base,
        side,
        tasks,
        processes,
        keeps_in_ram=early.current.keeps_in_ram,
        port_of=early.current.port_of,
    )
    switches = wire_switches(base, side, processes, tiers, gate=lambda: serving.gate, policy=early.victim_policy)
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
        side.usage.changed,  # first: whoever decides asks what it counts
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
        auto_resumer=switches.auto_resumer,
        process_watch=_process_watch(side, tasks),
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
