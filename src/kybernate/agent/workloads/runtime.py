"""The GPU side, as those have it who pause, resume, park or end workloads. A node without a GPU has none: plain processes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kybernate.cuda.broker import Broker
from kybernate.cuda.driver import Gpu
from kybernate.engine.engine import Engine
from kybernate.model.errors import Unsupported


@dataclass(frozen=True, slots=True)
class GpuRuntime:
    gpus: Sequence[Gpu]
    broker: Broker
    engine: Engine


def need_gpu(gpu: GpuRuntime | None, *, so: str = "there is nothing to pause or resume") -> GpuRuntime:
    """Raises Unsupported: this agent has none, so ..."""
    if gpu is None:
        raise Unsupported(
            f"this agent has no GPU, so {so}",
            hint="`kybernate doctor` says what is missing; `kybernate up --simulated` needs none",
        )
    return gpu
