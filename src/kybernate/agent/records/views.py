"""From what the agent knows to what the API says. Pure, but that `gpu_view` asks the driver."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kybernate.agent.records.jobs import Job
from kybernate.agent.records.ledger import Entry
from kybernate.model.api import GpuView, OperationView, PoolView, StepView, SwitchView, WorkloadView
from kybernate.model.types import CHUNK_BYTES, GpuUuid, SwitchReport, TierName, WorkloadState


class Progress(Protocol):
    """How far a switch has come."""

    @property
    def total_bytes(self) -> int: ...

    @property
    def done_bytes(self) -> int: ...

    @property
    def bytes_per_s(self) -> float: ...

    @property
    def seconds_left(self) -> float | None: ...


class Gpu(Protocol):
    """What is shown of a GPU."""

    @property
    def index(self) -> int: ...

    @property
    def uuid(self) -> GpuUuid: ...

    @property
    def name(self) -> str: ...

    @property
    def total_bytes(self) -> int: ...

    @property
    def simulated(self) -> bool: ...

    def free_bytes(self) -> int: ...


class Pool(Protocol):
    """What is shown of the host pool."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def ready_bytes(self) -> int: ...

    @property
    def free_slots(self) -> int: ...


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What is done to a workload just now."""

    kind: str
    """As orders are called: `pause`, `resume`, `clone` ..."""
    began_at: float
    """Monotonic seconds."""


def switch_view(
    report: SwitchReport, *, already: bool = False, note: str | None = None, tier: TierName | None = None
) -> SwitchView:
    return SwitchView(
        workload=report.workload,
        operation=report.operation,
        depth=report.depth,
        backend=report.backend,
        seconds=report.seconds,
        bytes_total=report.bytes_total,
        bytes_copied=report.bytes_copied,
        bytes_clean=report.bytes_clean,
        bytes_zero=report.bytes_zero,
        steps=[StepView(step=step.step, seconds=step.seconds) for step in report.steps],
        already=already,
        note=note,
        tier=tier,
    )


def workload_view(
    entry: Entry,
    *,
    resident_bytes: int,
    pids: list[int],
    current: UnderWay | None,
    progress: Progress | None = None,
    job: Job | None = None,
    staged: bool = False,
) -> WorkloadView:
    pause = entry.last_pause
    here = pause is not None and not entry.ended and (entry.tier is TierName.RAM or staged)
    return WorkloadView(
        name=entry.name,
        state=entry.state,
        reason=entry.reason,
        since=entry.since,
        backend=entry.backend,
        depth=entry.depth,
        external=entry.external,
        argv=list(entry.argv),
        directory=entry.directory,
        uid=entry.uid,
        pids=pids,
        resident_bytes=resident_bytes,
        host_copy_bytes=0 if pause is None or not here else pause.bytes_total - pause.bytes_zero,
        held_bytes=sum(entry.held.values()),
        unmanaged_bytes=0 if entry.ended else sum(entry.unmanaged.values()),
        dirty_bytes=0 if pause is None else pause.bytes_copied,
        last_use=entry.last_use,
        paused_by=entry.paused_by,
        exit_status=entry.exit_status,
        ended_by=entry.ended_by,
        operation=None if current is None else _operation_view(entry, current, progress, job),
        last_pause=None if pause is None else switch_view(pause),
        last_resume=None if entry.last_resume is None else switch_view(entry.last_resume),
        tier=_tier(entry),
        snapshot=entry.snapshot if entry.tier is not TierName.RAM else None,
        staged=staged,
        image=entry.image,
    )


def _tier(entry: Entry) -> str | None:
    if entry.ended:
        return None
    return str(entry.tier) if entry.state is WorkloadState.PAUSED else "vram"


def for_strangers(view: WorkloadView) -> WorkloadView:
    """What users may see who are neither the workload's own nor root: a command line may hold secrets."""
    return view.model_copy(update={"argv": [program(view.argv)] if view.argv else [], "directory": ""})


def program(argv: Sequence[str]) -> str:
    """A command's program without its arguments, short."""
    return Path(argv[0]).name[:100]


def _operation_view(entry: Entry, current: UnderWay, progress: Progress | None, job: Job | None) -> OperationView:
    if job is not None and (progress is None or not progress.total_bytes):
        seconds = time.monotonic() - current.began_at
        return OperationView(**job.view().model_dump(exclude={"subject"}) | {"kind": current.kind, "seconds": seconds})
    last = {WorkloadState.PAUSING: entry.last_pause, WorkloadState.RESUMING: entry.last_resume}.get(entry.state)
    return OperationView(
        kind=current.kind,
        seconds=time.monotonic() - current.began_at,
        expected_seconds=None if last is None else last.seconds,
        **({} if progress is None or not progress.total_bytes else _numbers(progress)),
    )


def _numbers(progress: Progress) -> dict[str, Any]:
    return {
        "bytes_done": progress.done_bytes,
        "bytes_total": progress.total_bytes,
        "bytes_per_s": progress.bytes_per_s,
        "seconds_left": progress.seconds_left,
    }


def gpu_view(gpu: Gpu, *, limit_bytes: int, resident_bytes: int) -> GpuView:
    """`limit_bytes`: what is handed out there at most; `resident_bytes`: what workloads hold of it."""
    return GpuView(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.free_bytes(),
        limit_bytes=limit_bytes,
        resident_bytes=resident_bytes,
        simulated=gpu.simulated,
    )


def pool_view(pool: Pool) -> PoolView:
    return PoolView(size_bytes=pool.size_bytes, ready_bytes=pool.ready_bytes, free_bytes=pool.free_slots * CHUNK_BYTES)
