"""What a switch takes: moving averages per workload, direction and tier, over priors that know only the size.

A workload's own switches count most: they contain its dirtiness, its processes and its residual. Before there are any, the guess
is a fixed part plus the bytes over the tier's bandwidth, and the bandwidth itself is learned from everybody's switches.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kybernate.model.types import GIB, SwitchReport, TierName, WorkloadName
from kybernate.policy.node_state import Cost


class Direction(enum.Enum):
    LEAVE = "leave"
    COME = "come"


Source = TierName | None
"""Where it went or came from. None: a cold start or a clone."""

WEIGHT = 0.3
"""Of the newest value: three switches make two thirds of the average, so that a workload that grew is believed soon."""


@dataclass(frozen=True, slots=True)
class Prior:
    fixed: float
    """Seconds without a byte moved."""
    bandwidth: float
    """Bytes a second."""

    def seconds(self, size: int) -> float:
        return self.fixed + size / self.bandwidth


PRIORS: Mapping[tuple[Direction, Source], Prior] = {
    (Direction.LEAVE, TierName.RAM): Prior(0.1, 50 * GIB),
    (Direction.COME, TierName.RAM): Prior(0.2, 50 * GIB),
    (Direction.LEAVE, TierName.NVME): Prior(2.0, 2 * GIB),
    (Direction.COME, TierName.NVME): Prior(2.0, 2 * GIB),
    (Direction.LEAVE, TierName.OBJECT): Prior(3.0, GIB / 2),
    (Direction.COME, TierName.OBJECT): Prior(3.0, GIB / 2),
    (Direction.COME, None): Prior(15.0, 2 * GIB),
}
"""A PCIe 5 link, one NVMe disk, a bucket behind 5 Gbit/s, a server that loads its weights. Wrong by a factor for any one machine,
right about which is slower; a few switches correct them."""

_LEAST_BANDWIDTH_BYTES = GIB
"""Smaller switches say nothing about bandwidth."""


@dataclass(frozen=True, slots=True)
class Costs:
    """All that was measured. Immutable: `observed` gives the next one."""

    seconds: Mapping[tuple[WorkloadName, Direction, Source], float] = field(default_factory=dict)
    bandwidth: Mapping[tuple[Direction, Source], float] = field(default_factory=dict)

    def observed(
        self, name: WorkloadName, direction: Direction, source: Source, *, seconds: float, size: int = 0
    ) -> Costs:
        """With one more switch: `size` bytes held, `seconds` all in all."""
        key = (name, direction, source)
        rates = self.bandwidth
        if size >= _LEAST_BANDWIDTH_BYTES:
            moving = max(seconds - PRIORS.get((direction, source), Prior(0.0, 1.0)).fixed, seconds / 10)
            rates = {**rates, (direction, source): _average(rates.get((direction, source)), size / max(moving, 1e-3))}
        return Costs(
            seconds={**self.seconds, key: _average(self.seconds.get(key), max(0.0, seconds))},
            bandwidth=rates,
        )

    def reported(self, report: SwitchReport, *, source: Source) -> Costs:
        """As `observed`, from the engine's report of a pause or resume."""
        direction = Direction.LEAVE if report.operation == "pause" else Direction.COME
        name = WorkloadName(report.workload)
        return self.observed(name, direction, source, seconds=report.seconds, size=report.bytes_total)

    def estimate(self, name: WorkloadName, direction: Direction, source: Source, *, size: int) -> float:
        """Seconds that the next one will take."""
        own = self.seconds.get((name, direction, source))
        if own is not None:
            return own
        prior = PRIORS.get((direction, source), PRIORS[Direction.COME, None])
        return replace(prior, bandwidth=self.bandwidth.get((direction, source), prior.bandwidth)).seconds(size)

    def cost(self, name: WorkloadName, *, size: int, source: Source, rest: TierName = TierName.RAM) -> Cost:
        """For the state of the node.

        Args:
            size: bytes of VRAM, all GPUs together.
            source: where it is now; `rest` while it is resident, None while it is absent.
            rest: where it goes when it is paused.
        """
        return Cost(
            leave=self.estimate(name, Direction.LEAVE, rest, size=size),
            come=self.estimate(name, Direction.COME, source, size=size),
            come_prefetched=self.estimate(name, Direction.COME, TierName.RAM, size=size),
        )


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)
