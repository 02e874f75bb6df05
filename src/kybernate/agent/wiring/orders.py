"""The parts of `orders/`: how a workload is ended, and what people and policies may ask for."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from kybernate.agent.orders.clones import Clones
from kybernate.agent.orders.external import ExternalSwitching
from kybernate.agent.orders.images import Images
from kybernate.agent.orders.moving import Moving
from kybernate.agent.orders.recovery import Recovery
from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.orders.store_check import StoreCheck
from kybernate.agent.wiring.foundation import Foundation, GpuSide
from kybernate.agent.wiring.rooms import ProcessParts, SwitchParts, TierParts
from kybernate.agent.workloads.ending import EndHooks, Ending
from kybernate.model.types import WorkloadName


@dataclass(frozen=True, slots=True)
class OrderParts:
    """Orders, besides those of `SwitchParts`."""

    catalog: SnapshotCatalog
    images: Images
    clones: Clones
    external: ExternalSwitching
    moving: Moving
    store_check: StoreCheck
    recovery: Recovery


def wire_ending(
    base: Foundation,
    side: GpuSide,
    processes: ProcessParts,
    tiers: TierParts,
    switches: SwitchParts,
    *,
    before_stop: Callable[[WorkloadName, float], Coroutine[Any, Any, None]],
) -> Ending:
    """`before_stop`: see `EndHooks`."""
    gpu = side.runtime

    def forget_vram(name: WorkloadName) -> None:
        switches.admission.forget(name)
        side.requests.forget(name)

    hooks = EndHooks(
        resume_to_end=switches.switching.resume_to_end,
        before_stop=before_stop,
        fall_back=lambda name: tiers.fallback.ended_in_ram(gpu, name),
        forget_snapshots=tiers.stale_snapshots.forget,
        forget_vram=forget_vram,
    )
    return Ending(
        ledger=base.ledger,
        events=base.events,
        gpu=gpu,
        workloads=processes.workloads,
        launcher=processes.launcher,
        hooks=hooks,
    )


def wire_orders(
    base: Foundation, side: GpuSide, processes: ProcessParts, tiers: TierParts, switches: SwitchParts
) -> OrderParts:
    ledger, events, clock = base.ledger, base.events, base.clock
    gpu, workloads, switching = side.runtime, processes.workloads, switches.switching
    catalog = SnapshotCatalog(
        ledger=ledger, events=events, stores=base.stores, engine=None if gpu is None else gpu.engine
    )
    return OrderParts(
        catalog=catalog,
        images=Images(
            gpu=gpu,
            ledger=ledger,
            events=events,
            clock=clock,
            catalog=catalog,
            workloads=workloads,
            switching=switching,
            capture=tiers.capture,
        ),
        clones=Clones(
            gpu=gpu,
            ledger=ledger,
            clock=clock,
            starts=base.starts,
            workloads=workloads,
            switching=switching,
            catalog=catalog,
            image_restore=tiers.image_restore,
        ),
        external=ExternalSwitching(
            gpu=gpu, ledger=ledger, workloads=workloads, external=processes.external, switching=switching
        ),
        moving=Moving(
            gpu=gpu,
            ledger=ledger,
            clock=clock,
            tiering=switches.tiering,
            transfers=tiers.transfers,
            catalog=catalog,
        ),
        store_check=StoreCheck(ledger=ledger, events=events, jobs=base.jobs, stores=base.stores, catalog=catalog),
        recovery=_recovery(base, side, processes, tiers),
    )


def _recovery(base: Foundation, side: GpuSide, processes: ProcessParts, tiers: TierParts) -> Recovery:
    return Recovery(
        ledger=base.ledger,
        events=base.events,
        clock=base.clock,
        gpu=side.runtime,
        workloads=processes.workloads,
        launcher=processes.launcher,
        external=processes.external,
        fallback=tiers.fallback,
    )
