"""Tables of workloads that fit a terminal, and text that it doesn't obey. Widths are in characters."""

from __future__ import annotations

from collections.abc import Sequence

DISPENSABLE = (
    "COMMAND",
    "BACKEND",
    "DEPTH",
    "HOST COPY",
    "RESUME",
    "PAUSE",
    "EXIT",
    "FOR",
    "QUEUE",
    "VRAM",
    "TIER",
    "STATE",
)
"""In this order they are left out where the terminal is narrow. The command is shortened first. The name always stays: orders are
given by it."""
_COMMAND = "COMMAND"
_COMMAND_LEAST = 16


def plain(text: str) -> str:
    """Without anything that a terminal would obey, line ends among it."""
    return "".join(c if c.isprintable() else "·" for c in text)


def plain_lines(text: str) -> str:
    """The same of several lines, which stay apart."""
    return "\n".join(map(plain, text.split("\n")))


def shortened(text: str, most: int) -> str:
    """With an ellipsis where it is longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def columns_for(rows: Sequence[Sequence[str]], *, width: int, columns: Sequence[str], gap: int = 1) -> list[int]:
    """Indexes of the columns that fit whole into `width`, the command with its beginning at least. `gap`: between two of them."""

    def least(i: int) -> int:
        return min(_COMMAND_LEAST, width_of(rows, i, columns)) if columns[i] == _COMMAND else width_of(rows, i, columns)

    shown = list(range(len(columns)))
    for name in DISPENSABLE:
        if sum(least(i) + gap for i in shown) - gap <= width:
            break
        if name in columns:
            shown.remove(columns.index(name))
    return shown


def whole_columns(
    rows: Sequence[Sequence[str]], *, width: int, columns: Sequence[str], dispensable: Sequence[str], gap: int
) -> list[int]:
    """Indexes of the columns that fit whole into `width`, without the first few of the dispensable ones."""
    shown = list(range(len(columns)))
    for name in dispensable:
        if sum(width_of(rows, i, columns) + gap for i in shown) - gap <= width:
            break
        shown.remove(columns.index(name))
    return shown


def width_of(rows: Sequence[Sequence[str]], column: int, columns: Sequence[str]) -> int:
    return max(len(cells[column]) for cells in [columns, *rows])


def lines_for(parts: Sequence[str], *, width: int, between: str = " | ") -> list[str]:
    """The parts in as few lines as hold them; a part that is too long has a line of its own."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(between) + len(part) <= width:
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines
