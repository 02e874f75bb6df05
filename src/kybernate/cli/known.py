"""What a configuration would find here: VRAM, sizes, costs, by its own words and by what the agent on this machine has measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kybernate.cli.common import Common
from kybernate.model.errors import BadInput, KybernateError
from kybernate.model.quantities import format_size, parse_size
from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.policy.node_state import Cost
from kybernate.settings import Settings
from kybernate.settings.specs import Served
from kybernate.settings.vram_hints import hinted, least_gpus


@dataclass(frozen=True, slots=True)
class Known:
    """Sizes in bytes, times in seconds."""

    capacity: Mapping[GpuUuid, int]
    needs: Mapping[WorkloadName, Mapping[GpuUuid, int]]
    costs: Mapping[WorkloadName, Cost]
    """As far as an agent here knows the workload."""
    service: Mapping[WorkloadName, float]
    """What a model works on a request, where that was measured."""

    @property
    def capacity_text(self) -> str:
        return " + ".join(format_size(size) for size in self.capacity.values())


@dataclass(frozen=True, slots=True)
class _Agent:
    limits: list[int] = field(default_factory=list)
    """By GPU."""
    sizes: dict[WorkloadName, int] = field(default_factory=dict)
    """On all GPUs together."""
    costs: dict[WorkloadName, Cost] = field(default_factory=dict)
    service: dict[WorkloadName, float] = field(default_factory=dict)


def known(settings: Settings, served: Mapping[WorkloadName, Served], *, vram: str | None, common: Common) -> Known:
    """
    Args:
        vram: what each GPU hands out; None: what the file says, or the agent.

    Raises:
        BadInput: nobody knows how much VRAM there is.
    """
    agent = _agent(common)
    limit = parse_size(vram) if vram is not None else settings.agent.vram.limit
    if limit is None and not agent.limits:
        raise BadInput("how much VRAM is there?", hint="give --vram SIZE, set agent.vram.limit, or start an agent here")
    count = len(agent.limits) or least_gpus(list(served.values()))
    each_gpu = agent.limits if limit is None else [limit] * count
    capacity = {GpuUuid(f"gpu {i}"): size for i, size in enumerate(each_gpu)}
    gpus = list(capacity)
    seen = {name: {gpus[0]: size} for name, size in agent.sizes.items()}
    needed = {name: hinted(each, gpus, None) or seen.get(name) for name, each in served.items()}
    return Known(
        capacity=capacity,
        needs={name: sizes for name, sizes in needed.items() if sizes},
        costs=agent.costs,
        service=agent.service,
    )


def limits_here(common: Common) -> list[int]:
    """What each GPU hands out: by the agent here, else what the driver here says that it has. Empty: there is none."""
    if limits := _agent(common).limits:
        return limits
    from kybernate.doctor.host_facts import driver_here

    driver = driver_here()
    return [] if driver is None or driver.simulated else [gpu.total_bytes for gpu in driver.gpus]


def _agent(common: Common) -> _Agent:
    try:
        with common.client() as client:
            gpus = client.node().gpus
            views = client.serving().served
    except KybernateError:
        return _Agent()
    return _Agent(
        limits=[gpu.limit_bytes for gpu in gpus],
        sizes={WorkloadName(each.name): each.bytes for each in views if each.bytes},
        costs={
            WorkloadName(each.name): Cost(each.cost.leave_s, each.cost.come_s, each.cost.come_staged_s)
            for each in views
            if each.bytes
        },
        service={WorkloadName(each.name): each.service_s for each in views if each.service_s},
    )
