"""top: watch the node; drawn again whenever something changes."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kybernate.cli.commands.looking import COLUMNS, event_line, header, ps, row
from kybernate.cli.common import Common
from kybernate.model.api import EventView, NodeView, WorkloadView

_COMMON = Common()
_EVENTS = 8


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
                live.update(_picture(node, workloads, events), refresh=True)


def _picture(node: NodeView, workloads: dict[str, WorkloadView], events: list[EventView]) -> Group:
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    for name in sorted(workloads):
        table.add_row(*(Text(cell) for cell in row(workloads[name])))
    lines = [Text(event_line(event)) for event in events]
    return Group(Text(f"{time.strftime('%H:%M:%S')}  {header(node)}"), Text(""), table, Text(""), *lines)
