"""pause and resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from cyclopts import Parameter

from kybernate.cli.common import Common, Seconds, print_json, working
from kybernate.model.api import OperationView, SwitchView
from kybernate.model.errors import BadInput
from kybernate.model.quantities import format_size
from kybernate.model.types import Depth, TierName

_COMMON = Common()


def pause(
    name: str | None = None,
    /,
    *,
    pid: int | None = None,
    depth: Depth = Depth.ZERO,
    timeout: Seconds = 30.0,
    tier: TierName = TierName.RAM,
    connections: Literal["refuse", "close"] | None = None,
    common: Common = _COMMON,
) -> None:
    """Give a workload's VRAM back, keeping its exact state: in host memory, on the disk or in a bucket.

    Args:
        pid: A process that was not started by Kybernate, instead of a name. Slower: the driver's own checkpoint.
        depth: zero leaves nothing in VRAM; warm keeps the CUDA context (some 0.5 GB) and is back sooner.
        timeout: How long to wait for the GPU work in flight before giving up: seconds, or with units, as in 2m.
        tier: ram: back in a second. nvme, object: in the store, no process of it is left; survives the machine's reboot.
        connections: Below ram, what to do about TCP connections that lead out of it, if not what the settings say.
    """
    _one_of(name, pid)
    if pid is not None and tier is not TierName.RAM:
        raise BadInput("a process that was not started by Kybernate stays in RAM", hint="leave out --tier")
    look = None if name is None else _looker(common, name)
    with common.client() as client, working(f"pausing {name or pid}", quiet=common.json, look=look):
        if pid is not None:
            report = client.pause_external(pid, timeout_s=timeout)
        else:
            assert name is not None
            report = client.pause(name, depth=depth, timeout_s=timeout, tier=tier, connections=connections)
    _print(report, common)


def resume(
    name: str | None = None,
    /,
    *,
    pid: int | None = None,
    timeout: Seconds = 30.0,
    take_over: Annotated[bool, Parameter(negative=())] = False,
    common: Common = _COMMON,
) -> None:
    """Let a paused workload go on where it stopped, from wherever it lies; others are paused if it needs their room.

    Args:
        pid: A process that was paused by its pid, instead of a name.
        timeout: How long to wait for room in VRAM: seconds, or with units, as in 10m.
        take_over: Also if another agent, which is gone for good, said that it resumes it from the bucket.
    """
    _one_of(name, pid)
    look = None if name is None else _looker(common, name)
    with common.client() as client, working(f"resuming {name or pid}", quiet=common.json, look=look):
        if pid is not None:
            report = client.resume_external(pid)
        else:
            assert name is not None
            report = client.resume(name, timeout_s=timeout, take_over=take_over)
    _print(report, common)


def _looker(common: Common, name: str) -> Callable[[], OperationView | None]:
    """Asks how far it is, by a connection of its own: the order's answer is awaited on the other."""

    def look() -> OperationView | None:
        with common.client() as client:
            return client.workload(name).operation

    return look


def _one_of(name: str | None, pid: int | None) -> None:
    if (name is None) == (pid is None):
        raise BadInput("give a workload's name or --pid, one of them", hint="`kybernate ps` lists the workloads")


def _print(report: SwitchView, common: Common) -> None:
    if common.json:
        print_json(report)
        return
    done = {"pause": "paused", "resume": "resumed"}.get(report.operation, report.operation)
    if report.already:
        print(f"{report.workload}: {report.note}")
        return
    words = [f"{report.workload}: {done} ({report.depth}) in {report.seconds:.2f} s"]
    if report.bytes_total:
        words.append(
            f"{format_size(report.bytes_total)}: {format_size(report.bytes_copied)} copied, "
            f"{format_size(report.bytes_clean)} clean, {format_size(report.bytes_zero)} zero"
        )
    if report.bytes_stored:
        words.append(f"{format_size(report.bytes_stored)} written")
    if report.note:
        words.append(report.note)
    print("; ".join(words))
