"""ps, logs, events, explain: look, change nothing."""

from __future__ import annotations

import json as json_format
import shutil
import sys
import time
from typing import Annotated

from cyclopts import Parameter

from kybernate.cli.common import Common, print_json, print_json_line, table
from kybernate.cli.fitting import columns_for, lines_for, plain, plain_lines
from kybernate.cli.names import workloads
from kybernate.model.api import EventView, NodeView, SwitchView, WorkloadView
from kybernate.model.quantities import format_seconds, format_size
from kybernate.model.types import Backend, WorkloadState

_FOREVER = Common()


def ps(*, common: Common = _FOREVER) -> None:
    """List the workloads: state, tier, sizes, costs."""
    with common.client() as client:
        node, workloads = client.node(), client.workloads()
        again = {each.name: each.again_at for each in client.serving().served}
    if common.json:
        print_json({"node": node, "workloads": workloads})
        return
    rows = [[plain(cell) for cell in row(w, again_at=again.get(w.name))] for w in workloads]
    if not sys.stdout.isatty():
        print(plain(" | ".join(header(node))))
        table(COLUMNS, rows)
        _without_library(node)
        return
    width = shutil.get_terminal_size().columns
    for line in lines_for([plain(part) for part in header(node)], width=width):
        print(line)
    shown = columns_for(rows, width=width, columns=COLUMNS, gap=2)
    table([COLUMNS[i] for i in shown], [[cells[i] for i in shown] for cells in rows], width=width)
    _without_library(node)


def _without_library(node: NodeView) -> None:
    for name in node.without_library:
        print(
            plain(
                f"{name} uses the GPU without Kybernate's library: its command drops LD_PRELOAD; `kybernate explain {name}`"
            )
        )


def logs(
    name: Annotated[str, Parameter(completer=workloads())],
    /,
    *,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative=())] = False,
    lines: Annotated[int | None, Parameter(name=("--lines", "-n"))] = None,
    common: Common = _FOREVER,
) -> None:
    """Show a workload's output.

    Args:
        follow: Keep printing until the workload ends.
        lines: Print only the last N lines.
    """
    with common.client() as client:
        for piece in client.logs(name, lines=lines, follow=follow):
            if common.json:
                print(json_format.dumps({"output": piece.decode(errors="replace")}), flush=True)
            else:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()


def events(
    name: Annotated[str | None, Parameter(completer=workloads())] = None,
    /,
    *,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative=())] = False,
    count: Annotated[int, Parameter(name=("--count", "-n"))] = 50,
    common: Common = _FOREVER,
) -> None:
    """Show the log of events, of the node or of one workload.

    Args:
        follow: Keep printing new events.
        count: Number of past events.
    """
    with common.client() as client:
        if follow:
            for event in client.follow_events(name, count=count):
                print_json_line(event) if common.json else print(plain(event_line(event)), flush=True)
            return
        found = client.events(name, count=count)
    if common.json:
        print_json(found)
        return
    for event in found:
        print(plain(event_line(event)))


def explain(name: Annotated[str, Parameter(completer=workloads())], /, *, common: Common = _FOREVER) -> None:
    """Say why a workload is in its state, and what to do next."""
    with common.client() as client:
        view = client.explain(name)
    if common.json:
        print_json(view)
        return
    print(plain_lines(view.text))
    print(f"Next: {plain_lines(view.next_step)}.")
    if view.events:
        print("\nLast events:")
        for event in view.events[-8:]:
            print(f"  {plain(event_line(event))}")


COLUMNS = (
    "NAME",
    "STATE",
    "TIER",
    "DEPTH",
    "BACKEND",
    "VRAM",
    "HOST COPY",
    "FOR",
    "PAUSE",
    "RESUME",
    "EXIT",
    "COMMAND",
)


def header(node: NodeView) -> list[str]:
    """The node, piece by piece."""
    parts = [f"agent {node.version}, pid {node.pid}"]
    for gpu in node.gpus:
        simulated = " (simulated)" if gpu.simulated else ""
        parts.append(
            f"GPU {gpu.index} {gpu.name}{simulated}: {format_size(gpu.resident_bytes)} in workloads, "
            f"{format_size(gpu.free_bytes)} of {format_size(gpu.total_bytes)} free"
        )
    if not node.gpus:
        parts.append("no GPU: plain processes only")
    if node.pool is not None:
        pool = node.pool
        filling = "" if pool.ready_bytes >= pool.size_bytes else f", {format_size(pool.ready_bytes)} made so far"
        parts.append(f"host pool: {format_size(pool.free_bytes)} of {format_size(pool.size_bytes)} free{filling}")
    for tier in node.tiers:
        if tier.problem is not None:
            parts.append(f"tier {tier.tier} can't be used: {tier.problem}")
        elif tier.state == "ready":
            parts.append(f"tier {tier.tier}: {format_size(tier.used_bytes)}, snapshots: {tier.snapshots}")
    return parts


def row(w: WorkloadView, *, again_at: float | None = None) -> tuple[str, ...]:
    """A workload as the table shows it.

    Args:
        again_at: when one that ended starts again, seconds since 1970.
    """
    state = str(w.state)
    if again_at is not None and w.state is WorkloadState.EXITED:
        state += f" (again in {max(0.0, again_at - time.time()):.0f} s)"
    if w.operation and (w.state not in _STILL or w.operation.bytes_total):
        total = w.operation.bytes_total
        part = f", {100 * (w.operation.bytes_done or 0) // total} %" if total else ""
        state += f" ({w.operation.seconds:.1f} s{part})"
    return (
        w.name,
        state,
        (w.tier or "-") + (" (staged)" if w.staged else ""),
        str(w.depth or "-"),
        "no library" if w.unmanaged_bytes and w.backend is Backend.BROKER else str(w.backend),
        format_size(w.resident_bytes),
        format_size(w.host_copy_bytes),
        format_seconds(max(0.0, time.time() - w.since)),
        _seconds(w.last_pause),
        _seconds(w.last_resume),
        "-" if w.exit_status is None else str(w.exit_status),
        " ".join(w.argv)[:60],
    )


_STILL = frozenset({WorkloadState.RUNNING, WorkloadState.PAUSED, WorkloadState.EXITED, WorkloadState.LOST})


def _seconds(report: SwitchView | None) -> str:
    return "-" if report is None else f"{report.seconds:.2f} s"


def event_line(event: EventView) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(event.time)) + f".{int(event.time % 1 * 1000):03d}"
    return f"{clock}  {event.workload or '-'}  {event.said}"
