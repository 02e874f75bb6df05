"""What serving works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kybernate.agent.orders.clones import Clones
from kybernate.agent.orders.tiering import Tiering
from kybernate.agent.records.events import Events
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.vram.admission import VramAdmission
from kybernate.agent.vram.vram import Vram
from kybernate.agent.workloads.ending import Ending
from kybernate.agent.workloads.starting import Starting
from kybernate.agent.workloads.starts import Starts
from kybernate.agent.workloads.workloads import Workloads
from kybernate.cuda.driver import Gpu
from kybernate.engine.engine import Engine
from kybernate.model.layout import StateDirectory
from kybernate.settings import AgentSettings


@dataclass(frozen=True, slots=True)
class GpuGear:
    """There only where the agent found a GPU."""

    gpus: Sequence[Gpu]
    engine: Engine
    admission: VramAdmission
    vram: Vram


@dataclass(frozen=True, slots=True)
class Gear:
    settings: AgentSettings
    state: StateDirectory
    ledger: Ledger
    events: Events
    clock: Callable[[], float]
    gpu: GpuGear | None
    """None: plain processes only."""
    stores: Stores
    jobs: Jobs
    starts: Starts
    starting: Starting
    ending: Ending
    tiering: Tiering
    workloads: Workloads
    clones: Clones
