"""top: watch the node; drawn again whenever something changes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kybernate.cli.commands.looking import COLUMNS, event_line, header, ps, row
from kybernate.cli.common import Common
from kybernate.model.api import EventView, NodeView, WorkloadView

_COMMON = Common()
_EVENTS = 8
_DISPENSABLE = ("BACKEND", "DEPTH", "HOST COPY", "RESUME", "PAUSE", "EXIT")
"""In this order they are left out where the terminal is narrow; the command is shortened first."""
_COMMAND_LEAST = 16


def top(*, common: Common = _COMMON) -> None:
    """Watch the node. Where standard output is no terminal, or with --json, once."""
    console = Console()
    if common.json or not console.is_terminal:
        ps(common=common)
        return
    node: NodeView | None = None
    workloads: dict[str, WorkloadView] = {}
    events: list[EventView] = []
    with common.client() as client, Live(console=console, screen=True, auto_refresh=False) as live:
        for view in client.follow_node():
            if isinstance(view, NodeView):
                node = view
                alive = set(view.workloads)
                if not alive:
                    workloads.clear()
            elif isinstance(view, WorkloadView):
                workloads[view.name] = view
            else:
                events = [*events[-_EVENTS + 1 :], view]
                if view.kind == "removed" and view.workload is not None:
                    workloads.pop(view.workload, None)
            if node is not None:
                live.update(_picture(node, workloads, events, width=console.width), refresh=True)


def _picture(node: NodeView, workloads: dict[str, WorkloadView], events: list[EventView], *, width: int) -> Group:
    rows = [row(workloads[name]) for name in sorted(workloads)]
    shown = columns_for(rows, width=width)
    table = Table(box=None, pad_edge=False)
    for i in shown:
        table.add_column(COLUMNS[i], no_wrap=True, min_width=None if i == len(COLUMNS) - 1 else _width(rows, i))
    for cells in rows:
        table.add_row(*(Text(cells[i]) for i in shown))
    lines = [Text(event_line(event)) for event in events]
    return Group(Text(f"{time.strftime('%H:%M:%S')}  {header(node)}"), Text(""), table, Text(""), *lines)


def columns_for(rows: Sequence[Sequence[str]], *, width: int) -> list[int]:
    """Indexes of the columns that fit whole into `width`, besides the command's beginning."""
    shown = list(range(len(COLUMNS)))
    for name in _DISPENSABLE:
        if sum(_width(rows, i) + 1 for i in shown[:-1]) + _COMMAND_LEAST <= width:
            break
        shown.remove(COLUMNS.index(name))
    return shown


def _width(rows: Sequence[Sequence[str]], column: int) -> int:
    return max(len(cells[column]) for cells in [COLUMNS, *rows])
