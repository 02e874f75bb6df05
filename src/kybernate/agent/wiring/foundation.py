"""What all parts of the agent stand on: settings, records and tiers; and the GPUs with what there is to hand out of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from kybernate.agent.records.database import Database
from kybernate.agent.records.events import Events
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.records.ledger_rows import LedgerRows
from kybernate.agent.startup import Hardware, open_hardware
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.vram.allocation_requests import AllocationRequests
from kybernate.agent.vram.out_of_memory import OutOfMemoryEvents
from kybernate.agent.vram.vram import Vram, VramUsage
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.starts import Starts
from kybernate.cuda.broker import Broker
from kybernate.engine.engine import Engine
from kybernate.model.layout import StateDirectory
from kybernate.model.types import TierName
from kybernate.settings import AgentSettings


@dataclass(frozen=True, slots=True)
class Foundation:
    """What all others stand on."""

    settings: AgentSettings
    state: StateDirectory
    clock: Callable[[], float]
    database: Database
    records: LedgerRows
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
    usage: VramUsage
    vram: Vram
    refusals: OutOfMemoryEvents
    requests: AllocationRequests


def lay_foundation(
    *,
    settings: AgentSettings,
    state: StateDirectory,
    database: Database,
    clock: Callable[[], float],
    tier_changed: Callable[[TierName, str | None], None],
) -> Foundation:
    """`tier_changed`: see `Stores`."""
    records = LedgerRows(database)
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
    usage = VramUsage(lambda workload, gpu: broker.resident_bytes(workload, gpu))
    side = _gpu_side(base, loop, hardware=hardware, usage=usage)
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
    return _gpu_side(base, loop, hardware=None, usage=VramUsage(lambda _workload, _gpu: 0))


def _gpu_side(
    base: Foundation, loop: asyncio.AbstractEventLoop, *, hardware: Hardware | None, usage: VramUsage
) -> GpuSide:
    gpus = () if hardware is None else hardware.gpus
    vram = Vram(gpus=gpus, settings=base.settings.vram, usage=usage, clock=base.clock)
    refusals = OutOfMemoryEvents(vram=vram, events=base.events, clock=base.clock)
    requests = AllocationRequests(vram=vram, ledger=base.ledger, refusals=refusals, clock=base.clock, loop=loop)
    return GpuSide(hardware, None, usage, vram, refusals, requests)
