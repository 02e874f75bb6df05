"""Where workloads were, drawn: what a slice shows, and the scale below."""

from __future__ import annotations

import time

import pytest

from kybernate.cli.chart import chart, rows
from kybernate.model.api_history import IntervalView

pytestmark = pytest.mark.unit


def interval(workload: str, place: str, began: float, ended: float | None) -> IntervalView:
    return IntervalView(id=1, workload=workload, place=place, began=began, ended=ended)


def test_a_slice_shows_where_most_of_it_was_spent() -> None:
    known = [
        interval("a", "vram", 100, 104),
        interval("a", "switching", 104, 104.4),
        interval("a", "ram", 104.4, None),
        interval("b", "switching", 102, 104.9),
        interval("b", "vram", 104.9, 106),
    ]
    assert rows(known, ["a", "b", "c"], since=100, until=108, width=8) == {
        "a": "████····",
        "b": "  ▒▒▒█  ",
        "c": "        ",
    }
    drawn = chart(known, ["a", "b"], since=100, until=108, width=8)
    assert drawn[0] == "a ████····"
    assert len(drawn) == 4


def test_a_chart_by_the_clock() -> None:
    noon = time.mktime((2026, 11, 25, 12, 0, 0, 0, 0, -1))
    known = [interval("a", "object", noon, None)]

    def scale(seconds: float, width: int) -> str:
        return chart(known, ["a"], since=noon, until=noon + seconds, width=width, clock=True)[1]

    assert scale(120, 40) == "  |12:00:00   |12:00:36   |12:01:12"
    assert scale(7200, 24) == "  |12:00      |13:00"
    assert scale(4 * 86400, 24) == "  |Wed 12:00  |Fri 12:00"
    assert scale(120, 20) == "  |12:00:00", "the next would stand out"
    assert chart(known, ["a"], since=noon, until=noon + 9, width=9, clock=True)[0] == "a ========="
