"""Who held VRAM when, as a chart of text: a row a workload, a column a slice of time. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from kybernate.model.api_history import IntervalView

MARKS: Mapping[str, str] = {"vram": "█", "switching": "▒", "ram": "·", "nvme": "-", "object": "="}
"""What a slice shows for the place where most of it was spent."""
LEGEND = "█ in VRAM  ▒ switching  · in RAM  - on the disk  = in the bucket"
_NOWHERE = " "


def rows(
    intervals: Iterable[IntervalView], names: Sequence[str], *, since: float, until: float, width: int
) -> dict[str, str]:
    """A string of `width` marks for each of `names`."""
    known = list(intervals)
    return {
        name: _row([i for i in known if i.workload == name], since=since, until=until, width=width) for name in names
    }


def _row(intervals: Sequence[IntervalView], *, since: float, until: float, width: int) -> str:
    step = (until - since) / width
    return "".join(_mark(intervals, since + k * step, since + (k + 1) * step) for k in range(width))


def _mark(intervals: Sequence[IntervalView], begins: float, ends: float) -> str:
    spent: dict[str, float] = {}
    for interval in intervals:
        inside = min(ends, ends if interval.ended is None else interval.ended) - max(begins, interval.began)
        if inside > 0:
            spent[interval.place] = spent.get(interval.place, 0.0) + inside
    if not spent:
        return _NOWHERE
    return MARKS.get(max(spent, key=lambda place: spent[place]), _NOWHERE)


def chart(
    intervals: Iterable[IntervalView],
    names: Sequence[str],
    *,
    since: float,
    until: float,
    width: int,
    clock: bool = False,
) -> list[str]:
    """Lines: the rows with their names, a scale, the legend. The scale is in seconds from the beginning, or by the clock."""
    label = max(map(len, names))
    lines = [
        f"{name:>{label}} {row}" for name, row in rows(intervals, names, since=since, until=until, width=width).items()
    ]
    scale = _clock_scale(since, until, width) if clock else _scale(until - since, width)
    return [*lines, f"{'':{label}} {scale}", f"{'':{label}} {LEGEND}"]


def _clock_scale(since: float, until: float, width: int) -> str:
    """Marks every twelve columns, of this machine's time; none that would stand out on the right."""
    span = until - since
    form = "%H:%M:%S" if span < 3600 else "%H:%M" if span < 86400 else "%a %H:%M"
    line = ""
    for column in range(0, width, 12):
        text = "|" + time.strftime(form, time.localtime(since + span * column / width))
        if column + len(text) <= width:
            line = line.ljust(column) + text
    return line


def _scale(seconds: float, width: int) -> str:
    """Marks every ten columns."""
    line = ""
    for column in range(0, width, 10):
        text = f"|{seconds * column / width:.0f}"
        line = line[:column].ljust(column) + text
    return f"{line[: width + 6]} s"
