"""Values for tests of the agent's pure parts, in few words. Sizes in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kybernate.agent.records.ledger import Entry
from kybernate.cuda.driver import Gpu
from kybernate.model.types import (
    GIB,
    Backend,
    Depth,
    GpuUuid,
    StepTiming,
    SwitchReport,
    WorkloadName,
    WorkloadState,
)

GPU = GpuUuid("GPU-0")
OTHER_GPU = GpuUuid("GPU-1")
NOW = 1000.0
A, B, C = WorkloadName("a"), WorkloadName("b"), WorkloadName("c")


def entry(name: str = "a", state: WorkloadState = WorkloadState.RUNNING, **given: Any) -> Entry:
    """In that state for 100 s, used 50 s ago."""
    made = Entry(
        name=WorkloadName(name),
        state=state,
        since=NOW - 100,
        backend=Backend.BROKER,
        last_use=NOW - 50,
        argv=("/usr/bin/python3", "serve.py", "--key", "secret"),
        directory="/srv",
        uid=1000,
        gid=1000,
    )
    return replace(made, **given)


def paused(name: str = "a", gib: float | Mapping[GpuUuid, float] = 10, **given: Any) -> Entry:
    """A paused one that needs so many GiB back."""
    sizes = gib if isinstance(gib, Mapping) else {GPU: gib}
    evicted = {gpu: int(size * GIB) for gpu, size in sizes.items()}
    return entry(name, WorkloadState.PAUSED, **({"evicted": evicted, "depth": Depth.ZERO} | given))


def report(operation: str = "pause", seconds: float = 0.5, **given: Any) -> SwitchReport:
    made = SwitchReport(
        workload="a",
        operation=operation,
        depth=Depth.ZERO,
        backend=Backend.BROKER,
        seconds=seconds,
        bytes_total=10 * GIB,
        bytes_copied=6 * GIB,
        bytes_clean=3 * GIB,
        bytes_zero=1 * GIB,
        steps=(StepTiming("freeze", 0.1), StepTiming("copy", 0.4)),
    )
    return replace(made, **given)


@dataclass(frozen=True, slots=True, eq=False)
class SaidGpu(Gpu):
    """A GPU of which the test says how much is free: there is no driver to ask."""

    said_free: int = 0

    def free_bytes(self) -> int:
        return self.said_free


def gpu(uuid: GpuUuid = GPU, *, total: int = 100 * GIB, free: int | None = None, index: int = 0) -> SaidGpu:
    return SaidGpu(
        index=index,
        uuid=uuid,
        uuid_bytes=bytes(16),
        name="NVIDIA H200",
        total_bytes=total,
        simulated=False,
        compute_capability=(9, 0),
        context=None,
        said_free=total if free is None else free,
    )


class Held:
    """Who holds how much on which GPU, as the broker would say."""

    def __init__(self, sizes: Mapping[tuple[str, GpuUuid], int] | None = None) -> None:
        self.sizes = dict(sizes or {})

    def resident_bytes(self, workload: WorkloadName | None = None, gpu: Gpu | None = None) -> int:
        return sum(
            size
            for (name, uuid), size in self.sizes.items()
            if workload in (None, name) and (gpu is None or gpu.uuid == uuid)
        )


async def on_disk(*, refuse: bool = False) -> None:
    """Everything always is: there is no database."""


class Clock:
    """Time that passes when the test says so."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def changed(before: Entry, **given: Any) -> Entry:
    return replace(before, **given)
