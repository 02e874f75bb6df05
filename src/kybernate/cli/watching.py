"""What `top` shows: the tiers with their bars, the workloads with queues and costs, jobs, what happened. Pure: state in, lines out.

Sizes of the terminal are in characters. What comes from the agent is shown as plain text: control characters are made visible.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from kybernate.cli.commands.looking import COLUMNS, event_line, row
from kybernate.cli.fitting import columns_for, plain, shortened, width_of
from kybernate.model.api import EventView, JobView, NodeView, WorkloadView
from kybernate.model.api_serving import ServedView, ServingView
from kybernate.model.quantities import format_seconds, format_size

QUEUE = "QUEUE"
_EVENTS = 8
_TABLE_LEAST = 3
"""Lines."""
_NAME_LEAST = 20
_BAR = 24
_KEYS = (("↑↓", "choose"), ("p", "pause"), ("r", "resume"), ("f", "prefetch"), ("q", "quit"))
_FULL, _EMPTY = "█", "░"


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything at one moment."""

    node: NodeView | None = None
    workloads: Mapping[str, WorkloadView] = dataclasses.field(default_factory=dict)
    jobs: Sequence[JobView] = ()
    events: Sequence[EventView] = ()
    serving: ServingView | None = None
    chosen: str | None = None
    """The workload that keys mean."""
    said: str = ""
    """What became of the last order."""

    @property
    def names(self) -> list[str]:
        return sorted(self.workloads)

    def choose(self, by: int) -> Seen:
        """The workload so many rows further down; the nearest end where there is none."""
        names = self.names
        if not names:
            return self
        at = names.index(self.chosen) if self.chosen in names else (-1 if by > 0 else len(names))
        return dataclasses.replace(self, chosen=names[min(max(at + by, 0), len(names) - 1)])


def picture(seen: Seen, *, width: int, height: int) -> Group:
    """The whole screen; never more lines than it has."""
    if seen.node is None:
        return Group(Text("waiting for the agent"))
    top = [_title(seen.node, seen.serving), *tiers(seen.node, list(seen.workloads.values()), width=width), Text("")]
    jobs = [Text(line) for line in _jobs(seen.jobs)[:3]]
    bottom = [*([Text(seen.said, style="bold")] if seen.said else []), _keys()]
    if height - len(top) - len(jobs) - len(bottom) - 2 < _TABLE_LEAST:
        top, jobs = top[:1], []  # what keys mean has to be seen
    room = max(_TABLE_LEAST, height - len(top) - len(jobs) - len(bottom) - 2)
    events = min(_EVENTS, max(0, room - 2 - len(seen.workloads)), len(seen.events))
    shown = _window(seen, room - events - (1 if events else 0) - 1)
    lines = [Text(plain(event_line(event)), style="dim") for event in seen.events[len(seen.events) - events :]]
    parts: list[Text | Table] = [
        *top,
        table(seen, shown, width=width),
        *jobs,
        Text(""),
        *lines,
        *([Text("")] if lines else []),
        *bottom,
    ]
    for part in parts:
        if isinstance(part, Text):
            part.no_wrap = True
            part.overflow = "ellipsis"
    return Group(*parts)


def _window(seen: Seen, most: int) -> list[str]:
    """As many names as fit, the chosen one among them."""
    names, most = seen.names, max(1, most)
    at = names.index(seen.chosen) if seen.chosen in names else 0
    begin = min(max(0, at - most + 1), max(0, len(names) - most))
    return names[begin : begin + most]


def _title(node: NodeView, serving: ServingView | None) -> Text:
    gpus = ", ".join(f"{gpu.name}{' (simulated)' if gpu.simulated else ''}" for gpu in node.gpus) or "no GPU"
    parts = [time.strftime("%H:%M:%S"), gpus, f"agent {node.version}"]
    if serving is not None and serving.listen is not None:
        parts.append(f"models on {serving.listen}")
    return Text(plain("  ".join(parts)), style="bold")


def tiers(node: NodeView, workloads: Sequence[WorkloadView], *, width: int) -> list[Text]:
    """A line for each tier: its bar, how full it is, who lies there."""
    total = sum(gpu.total_bytes for gpu in node.gpus)
    lines = []
    if total:
        used = total - sum(gpu.free_bytes for gpu in node.gpus)
        lines.append(_tier("VRAM", used, total, _lying(workloads, "vram"), width=width))
    if node.pool is not None:
        used = node.pool.ready_bytes - node.pool.free_bytes
        lines.append(_tier("RAM", used, node.pool.size_bytes, _lying(workloads, "ram"), width=width))
    for tier in node.tiers:
        title = "NVMe" if tier.tier == "nvme" else "object"
        if tier.problem is not None:
            lines.append(Text(plain(f"{title:<7}can't be used: {tier.problem}"), style="red"))
            continue
        whole = tier.budget_bytes or (tier.used_bytes + tier.free_bytes if tier.free_bytes is not None else 0)
        if tier.state != "unused":
            lines.append(_tier(title, tier.used_bytes, whole, _lying(workloads, tier.tier), width=width))
    return lines


def _tier(title: str, used: int, total: int, lying: str, *, width: int) -> Text:
    size = min(_BAR, max(6, width // 5))
    full = min(size, -(-used * size // total)) if total else 0
    amount = f"{format_size(used)} of {format_size(total)}" if total else format_size(used)
    line = Text(f"{title:<7}")
    line.append(_FULL * full, style="cyan")
    line.append(_EMPTY * (size - full), style="dim")
    line.append(f" {amount:<24}")
    line.append(plain(lying))
    return line


def _lying(workloads: Sequence[WorkloadView], tier: str) -> str:
    return " ".join(sorted(workload.name for workload in workloads if workload.tier == tier))


def table(seen: Seen, names: Sequence[str], *, width: int) -> Table:
    """The workloads of these names; the chosen one stands out."""
    served = {one.name: one for one in seen.serving.served} if seen.serving is not None else {}
    with_queues = any(one.kind == "model" for one in served.values())
    columns = [*COLUMNS[:3], QUEUE, *COLUMNS[3:]] if with_queues else list(COLUMNS)
    rows = []
    for name in names:
        one = served.get(name)
        cells = [plain(cell) for cell in row(seen.workloads[name], again_at=None if one is None else one.again_at)]
        cells[0] = (
            f"{'›' if name == seen.chosen else ' '} {shortened(cells[0], min(max(_NAME_LEAST, width // 4), width - 2))}"
        )
        rows.append([*cells[:3], _queue(one), *cells[3:]] if with_queues else cells)
    shown = columns_for(rows, width=width, columns=columns)
    made = Table(box=None, pad_edge=False)
    for i in shown:
        least = None if columns[i] == "COMMAND" else width_of(rows, i, columns)
        made.add_column(columns[i], no_wrap=True, min_width=least)
    for name, cells in zip(names, rows, strict=True):
        made.add_row(*(Text(cells[i]) for i in shown), style="reverse" if name == seen.chosen else None)
    return made


def _queue(served: ServedView | None) -> str:
    if served is None or served.kind != "model":
        return "-"
    oldest = "" if served.oldest_wait_s is None else f" ({format_seconds(served.oldest_wait_s)})"
    return f"{served.in_flight}+{served.waiting}{oldest}"


def _jobs(jobs: Sequence[JobView]) -> list[str]:
    lines = []
    for job in jobs:
        done = "" if not job.bytes_total else f" {100 * (job.bytes_done or 0) // job.bytes_total} %"
        left = "" if job.seconds_left is None else f", {format_seconds(job.seconds_left)} left"
        lines.append(plain(f"{job.kind} {job.subject}{done}{left}"))
    return lines


def _keys() -> Text:
    line = Text()
    for key, word in _KEYS:
        line.append(f" {key} ", style="reverse")
        line.append(f" {word}  ")
    return line
