"""Windows of the week, across midnight, weekends and the clock's changes."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kybernate.model.errors import BadInput
from kybernate.policy.schedule import in_window, next_change, parse_schedule

pytestmark = pytest.mark.unit

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN, *, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


@pytest.mark.parametrize(
    ("windows", "when", "inside"),
    [
        (["22:00-06:00"], "2026-11-23T23:00", True),
        (["22:00-06:00"], "2026-11-23T05:59:59", True),
        (["22:00-06:00"], "2026-11-23T06:00", False),
        (["22:00-06:00"], "2026-11-23T12:00", False),
        (["mon-fri 20:00-08:00"], "2026-11-28T07:00", True),  # Saturday morning belongs to Friday's window
        (["mon-fri 20:00-08:00"], "2026-11-28T21:00", False),
        (["mon-fri 20:00-08:00"], "2026-11-23T07:00", False),  # Monday morning would be Sunday's
        (["mon-fri 20:00-08:00", "sat,sun 00:00-24:00"], "2026-11-28T21:00", True),
        (["fri-mon 1:00-2:00"], "2026-11-29T01:30", True),
        (["fri-mon 1:00-2:00"], "2026-11-26T01:30", False),
        ([], "2026-11-26T01:30", True),
    ],
)
def test_inside_and_outside(windows: list[str], when: str, inside: bool) -> None:
    assert in_window(parse_schedule(windows, zone=BERLIN), at(when)) is inside


def test_the_next_change_is_the_end_inside_and_the_beginning_outside() -> None:
    schedule = parse_schedule(["mon-fri 20:00-08:00", "sat 08:00-12:00"], zone=BERLIN)
    assert next_change(schedule, at("2026-11-24T21:00")) == at("2026-11-25T08:00")
    assert next_change(schedule, at("2026-11-25T08:00")) == at("2026-11-25T20:00")
    assert next_change(schedule, at("2026-11-27T21:00")) == at("2026-11-28T12:00")  # two windows that touch are one
    assert next_change(schedule, at("2026-11-28T12:00")) == at("2026-11-30T20:00")


def test_what_never_changes_says_so() -> None:
    assert next_change(parse_schedule(["00:00-24:00"], zone=BERLIN), at("2026-11-24T21:00")) is None
    assert next_change(parse_schedule([]), 0.0) is None


def test_an_hour_that_comes_twice_is_one_window() -> None:
    schedule = parse_schedule(["22:00-02:30"], zone=BERLIN)  # 25 October 2026: 03:00 becomes 02:00
    first, second = at("2026-10-25T02:30"), at("2026-10-25T02:30", fold=1)
    assert second - first == 3600
    assert in_window(schedule, first)
    assert next_change(schedule, at("2026-10-24T23:00")) == second
    begins = parse_schedule(["02:30-05:00"], zone=BERLIN)
    assert next_change(begins, at("2026-10-24T23:00")) == first


def test_an_hour_that_never_comes_ends_and_begins_at_the_skip() -> None:
    skip = at("2026-03-29T03:00")  # 02:00 becomes 03:00
    assert next_change(parse_schedule(["22:00-02:30"], zone=BERLIN), at("2026-03-29T00:00")) == skip
    assert next_change(parse_schedule(["02:30-05:00"], zone=BERLIN), at("2026-03-29T00:00")) == skip
    assert next_change(parse_schedule(["02:15-02:45"], zone=BERLIN), at("2026-03-29T00:00")) == at("2026-03-30T02:15")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "22:00",
        "22:00-25:00",
        "10:61-11:00",
        "10:00-10:00",
        "24:00-01:00",
        "foo 10:00-11:00",
        "mon-tue-wed 1:00-2:00",
    ],
)
def test_nonsense_is_one_line(text: str) -> None:
    with pytest.raises(BadInput, match="bad window"):
        parse_schedule([text])


def test_a_zone_that_does_not_exist() -> None:
    with pytest.raises(BadInput, match="no time zone"):
        parse_schedule(["10:00-11:00"], zone="Mars/Olympus")


MINUTES = st.integers(0, 24 * 60 - 1)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "mon ", "sat-sun ", "tue,thu "]), MINUTES, MINUTES), min_size=1, max_size=3
    ),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC"]),
    st.integers(int(at("2026-01-01T00:00")), int(at("2027-01-01T00:00"))),
)
def test_the_answer_changes_exactly_when_it_says(windows: list[tuple[str, int, int]], zone: str, when: int) -> None:
    texts = [f"{days}{b // 60}:{b % 60:02}-{e // 60}:{e % 60:02}" for days, b, e in windows if b != e]
    schedule = parse_schedule(texts, zone=zone)
    change = next_change(schedule, when)
    if change is None:
        assert all(in_window(schedule, when + 3600 * k) == in_window(schedule, when) for k in range(7 * 24))
        return
    assert when < change
    inside = in_window(schedule, when)
    assert in_window(schedule, change) is not inside
    step = max(1.0, (change - when) / 20)
    assert all(in_window(schedule, when + step * k) is inside for k in range(20) if when + step * k < change)


def test_schedules_that_say_the_same_are_equal() -> None:
    assert parse_schedule(["22:00-06:00"]) == parse_schedule(["22:00-06:00"])
