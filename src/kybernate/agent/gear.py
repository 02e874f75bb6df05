"""What the workloads' operations work with: made once by the agent at start-up and passed on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kybernate.agent.records.events import Events
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.workloads.environment import Simulation
from kybernate.agent.workloads.starts import Starts
from kybernate.model.errors import Unsupported
from kybernate.model.layout import StateDirectory
from kybernate.settings import AgentSettings

if TYPE_CHECKING:  # a node without a GPU never loads them
    from kybernate.agent.vram.admission import RoomKeeper
    from kybernate.cuda.broker import Broker
    from kybernate.cuda.driver import Gpu
    from kybernate.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class GpuGear:
    """There only where the agent found a GPU."""

    gpus: Sequence[Gpu]
    broker: Broker
    engine: Engine
    room: RoomKeeper


class Flush(Protocol):
    """See `Records.flush`."""

    def __call__(self, *, refuse: bool = False) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Gear:
    settings: AgentSettings
    state: StateDirectory
    ledger: Ledger
    events: Events
    clock: Callable[[], float]
    gpu: GpuGear | None
    """None: plain processes only."""
    simulation: Simulation | None
    stores: Stores
    jobs: Jobs
    starts: Starts
    flush: Flush
    """Returns once everything that the ledger says is on disk."""

    def need_gpu(self, *, so: str = "there is nothing to pause or resume") -> GpuGear:
        """Raises Unsupported: this agent has none, so ..."""
        if self.gpu is None:
            raise Unsupported(
                f"this agent has no GPU, so {so}",
                hint="`kybernate doctor` says what is missing; `kybernate up --simulated` needs none",
            )
        return self.gpu
