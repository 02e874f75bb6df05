"""history: who held VRAM when, drawn, and in numbers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from kybernate.cli.common import Common, Seconds, print_json, say, table
from kybernate.cli.names import workloads
from kybernate.model.errors import BadInput, NotFound
from kybernate.model.quantities import format_seconds, format_size

if TYPE_CHECKING:
    from kybernate.model.api_history import HistoryView, IntervalView, SwitchedView

_COMMON = Common()
_WIDTH_LEAST = 40
_VRAM = "vram"
_LEAST_S = 1.0
"""Less than that isn't drawn over the whole width."""


def history(
    name: Annotated[str | None, Parameter(completer=workloads())] = None,
    /,
    *,
    last: Seconds = 3600.0,
    stays: Annotated[bool, Parameter(negative=())] = False,
    common: Common = _COMMON,
) -> None:
    """Show which workload held VRAM when, and what switches cost. Of all workloads, or of one.

    Args:
        last: How far back: seconds, or with units, as in 90s, 15m, 1h30m, 1d. The agent keeps `agent.history.keep`.
        stays: Print one line for each stay in VRAM instead of the drawing.
    """
    span = last
    if not span:
        raise BadInput("--last must be more than 0", hint="as in 90s, 15m, 1h30m")
    with common.client() as client:
        asked = max(0.0, time.time() - span)
        view = client.history(asked)
    if name is not None:
        view = _of(view, name)
        if not view.intervals:
            raise NotFound(f"{name[:80]} was nowhere in the last {format_seconds(span)}", hint="try a longer --last")
    if common.json:
        print_json(view)
        return
    if not view.intervals:
        print(f"there was no workload in the last {format_seconds(span)}")
        return
    began = max(view.since, min(each.began for each in view.intervals))
    began = min(began, view.now - _LEAST_S)
    if stays:
        _print_stays(view)
    else:
        _draw(view, began)
        print()
        table(_COLUMNS, [_row(view, each, began) for each in _names(view)])
    if view.since > asked:
        say(
            f"kybernate: what was before {_moment(view.since, view.now)} is not known any more, or too much for one answer"
        )


_COLUMNS = ("NAME", "IN VRAM", "SHARE", "STAYS", "VRAM", "PAUSES", "PAUSE", "RESUMES", "RESUME")


def _of(view: HistoryView, name: str) -> HistoryView:
    return view.model_copy(
        update={
            "intervals": [each for each in view.intervals if each.workload == name],
            "switches": [each for each in view.switches if each.workload == name],
        }
    )


def _names(view: HistoryView) -> list[str]:
    """In the order in which they came."""
    return list(dict.fromkeys(each.workload for each in view.intervals))


def _draw(view: HistoryView, began: float) -> None:
    from kybernate.cli.chart import chart

    names = _names(view)
    width = max(_WIDTH_LEAST, shutil.get_terminal_size().columns - max(map(len, names)) - 1)
    for line in chart(view.intervals, names, since=began, until=view.now, width=width, clock=True):
        print(line)


def _row(view: HistoryView, name: str, began: float) -> tuple[str, ...]:
    own = [each for each in view.intervals if each.workload == name and each.place == _VRAM]
    held = sum(_seconds(each, view, began) for each in own)
    return (
        name,
        format_seconds(held),
        f"{held / (view.now - began):.0%}",
        str(len(own)),
        format_size(max((each.bytes for each in view.intervals if each.workload == name), default=0)),
        *_cost(view.switches, name, "pause"),
        *_cost(view.switches, name, "resume"),
    )


def _cost(switches: Sequence[SwitchedView], name: str, operation: str) -> Iterator[str]:
    """How many, and what one takes in the middle."""
    took = [each.seconds for each in switches if (each.workload, each.operation) == (name, operation)]
    yield str(len(took))
    yield f"{median(took):.2f} s" if took else "-"


def _seconds(interval: IntervalView, view: HistoryView, began: float) -> float:
    return max(0.0, (view.now if interval.ended is None else interval.ended) - max(began, interval.began))


def _print_stays(view: HistoryView) -> None:
    rows = [
        (
            _moment(each.began, view.now),
            "now" if each.ended is None else _moment(each.ended, view.now),
            format_seconds(_seconds(each, view, each.began)),
            each.workload,
            format_size(each.bytes),
        )
        for each in view.intervals
        if each.place == _VRAM
    ]
    table(("FROM", "UNTIL", "FOR", "NAME", "VRAM"), rows)


def _moment(at: float, now: float) -> str:
    then = time.localtime(at)
    same_day = then[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", then)
