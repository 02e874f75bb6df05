"""pause and resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from kybernate.cli.common import Common, Seconds, print_json, say, say_notes, working
from kybernate.cli.names import paused, with_vram, workloads
from kybernate.cli.several import chosen, order
from kybernate.model.api import OperationView, SwitchView, WorkloadView
from kybernate.model.errors import BadInput
from kybernate.model.quantities import format_size
from kybernate.model.types import Depth, TierName

if TYPE_CHECKING:
    from kybernate.client import Client

_COMMON = Common()
TIERS = ("vram", "ram", "nvme", "object")
"""From the top down."""


def pause(
    *names: Annotated[str, Parameter(completer=workloads(with_vram))],
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    pid: int | None = None,
    depth: Depth = Depth.ZERO,
    timeout: Seconds = 30.0,
    tier: TierName = TierName.RAM,
    connections: Literal["refuse", "close"] | None = None,
    allow_changes: bool | None = None,
    common: Common = _COMMON,
) -> int:
    """Free the VRAM of workloads and keep their exact state: in RAM, on the disk or in a bucket.

    Args:
        all_: All running workloads; with --tier, also paused ones in a faster tier.
        pid: Instead of a name, a process that Kybernate did not start. Slower: the driver's own checkpoint moves its memory.
        depth: zero leaves nothing in VRAM; warm keeps the CUDA context there (about 0.5 GB) and resumes sooner.
        timeout: How long to wait for GPU work in flight before giving up: seconds, or with units, as in 2m.
        tier: ram resumes in a second. nvme (disk) and object (bucket) end the processes; their state survives a reboot.
        connections: Below RAM, TCP connections to the outside: refuse, or close them. Default: agent.store.connections.
        allow_changes: Below RAM, also if it may notice a change later, as of a NUMA policy. Default: agent.store.allow_changes.
    """
    _one_of(names, pid, all_=all_)
    if pid is not None:
        if tier is not TierName.RAM:
            raise BadInput("a process that was not started by Kybernate stays in RAM", hint="leave out --tier")
        return _external(pid, lambda client: client.pause_external(pid, timeout_s=timeout), "pausing", common)

    def meant(workload: WorkloadView) -> bool:
        return with_vram(workload) or (paused(workload) and TIERS.index(workload.tier or "ram") < TIERS.index(tier))

    return order(
        chosen(names, all_=all_, meant=meant, common=common),
        lambda client, name: client.pause(
            name, depth=depth, timeout_s=timeout, tier=tier, connections=connections, allow_changes=allow_changes
        ),
        _tell,
        doing="pausing",
        common=common,
        listed=all_,
        look=lambda name: _looker(common, name),
    )


def resume(
    *names: Annotated[str, Parameter(completer=workloads(paused))],
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False,
    pid: int | None = None,
    timeout: Seconds = 30.0,
    take_over: Annotated[bool, Parameter(negative=())] = False,
    common: Common = _COMMON,
) -> int:
    """Continue paused workloads where they stopped, from any tier. Other workloads are paused if their VRAM is needed.

    Args:
        all_: All paused workloads, one after the other. If they do not fit together, the later ones keep the VRAM.
        pid: Instead of a name, a process that was paused with --pid.
        timeout: How long to wait for VRAM: seconds, or with units, as in 10m.
        take_over: Resume from the bucket although another agent has claimed the workload. Only if that agent is gone for good.
    """
    _one_of(names, pid, all_=all_)
    if pid is not None:
        return _external(pid, lambda client: client.resume_external(pid), "resuming", common)
    wanted = chosen(names, all_=all_, meant=paused, common=common)
    status = order(
        wanted,
        lambda client, name: client.resume(name, timeout_s=timeout, take_over=take_over),
        _tell,
        doing="resuming",
        common=common,
        listed=all_,
        look=lambda name: _looker(common, name),
    )
    if len(wanted) > 1 and not status:
        _say_who_left(wanted, common)
    return status


def _say_who_left(wanted: Sequence[str], common: Common) -> None:
    """Who of them had to make room for the next ones."""
    with common.client() as client:
        left = [each.name for each in client.workloads() if each.name in wanted and paused(each)]
    if left:
        say(f"kybernate: not all of them fit into VRAM: {', '.join(left)} paused again")


def _external(pid: int, give: Callable[[Client], SwitchView], doing: str, common: Common) -> int:
    with common.client() as client, working(f"{doing} {pid}", quiet=common.json):
        report = give(client)
    print_json(report) if common.json else _tell(report)
    return 0


def _looker(common: Common, name: str) -> Callable[[], OperationView | None]:
    """Asks how far it is, by a connection of its own: the order's answer is awaited on the other."""

    def look() -> OperationView | None:
        with common.client() as client:
            return client.workload(name).operation

    return look


def _one_of(names: Sequence[str], pid: int | None, *, all_: bool) -> None:
    if (bool(names), pid is not None, all_).count(True) != 1:
        raise BadInput(
            "give names of workloads, --all or --pid, one of them", hint="`kybernate ps` lists the workloads"
        )


def _tell(report: SwitchView) -> None:
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
    say_notes(report.workload, report.notes)
