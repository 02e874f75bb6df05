"""Tables and numbers of the pages that report.py makes. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 120

GIB = 1 << 30
MIB = 1 << 20


def where(content: dict[str, Any]) -> str:
    """GPU, driver, kernel, processor, day and commit of a result."""
    host = content["host"]
    commit = f", commit {content['commit']}" if content["commit"] else ""
    gpu = f"{host['gpu']}, driver {host['driver']}, CUDA {host['cuda']}, " if host["gpu"] else ""
    return f"{gpu}Linux {host['kernel']}, {host['cpu']}, {content['date'][:10]}{commit}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """The lines of a table; the columns of `right` are aligned there."""
    lines = ["| " + " | ".join(headings) + " |"]
    lines.append("|" + "|".join(" ---: " if k in right else " --- " for k in range(len(headings))) + "|")
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def wrapped(lines: Iterable[str]) -> str:
    """One text of lines that are no longer than `WIDTH`; tables and comments stay as they are."""
    made: list[str] = []
    for line in lines:
        if len(line) <= WIDTH or line.startswith(("|", "<!--")):
            made.append(line)
            continue
        indent = "  " if line.startswith("- ") else ""
        made += textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(made)


def quantity(value: float, unit: str) -> str:
    if unit == "B":
        return size(int(value))
    return f"{value:.3f}" if unit == "ratio" else f"{value:.2f} {unit}"


def digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.0f} MiB"
