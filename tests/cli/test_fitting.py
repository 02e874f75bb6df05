"""Tables that fit a terminal, and text that it doesn't obey."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.cli.fitting import (
    DISPENSABLE,
    columns_for,
    lines_for,
    plain,
    plain_lines,
    shortened,
    whole_columns,
    width_of,
)

pytestmark = pytest.mark.unit

COLUMNS = ("NAME", "STATE", "VRAM", "COMMAND")
ROWS = [("train", "paused", "10.0 GiB", "python train.py --with many --other words")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abc", "abc"),
        ("a\x1b[31mb", "a·[31mb"),
        ("a\nb\r\tc", "a·b··c"),
        ("\x00\x7f\x9b", "···"),
        ("größer 😀", "größer 😀"),
        ("a\u202eb", "a·b"),
    ],
)
def test_nothing_is_left_that_a_terminal_would_obey(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text(max_size=50))
def test_plain_text_is_printable_and_as_long_as_it_was(text: str) -> None:
    assert plain(text).isprintable()
    assert len(plain(text)) == len(text)
    assert plain_lines(text).count("\n") == text.count("\n"), "but lines stay apart where they may"


@pytest.mark.parametrize(
    ("text", "most", "shown"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("abcd", 1, "…"), ("", 0, "")]
)
def test_what_is_too_long_ends_in_an_ellipsis(text: str, most: int, shown: str) -> None:
    assert shortened(text, most) == shown


@given(st.text(max_size=20), st.integers(1, 30))
def test_shortened_is_never_longer_than_it_may_be(text: str, most: int) -> None:
    assert len(shortened(text, most)) <= most


def names(width: int, *, gap: int = 2) -> list[str]:
    return [COLUMNS[i] for i in columns_for(ROWS, width=width, columns=COLUMNS, gap=gap)]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        pytest.param(200, ["NAME", "STATE", "VRAM", "COMMAND"], id="all of it"),
        pytest.param(5 + 6 + 8 + 16 + 6, ["NAME", "STATE", "VRAM", "COMMAND"], id="the command is shortened first"),
        pytest.param(5 + 6 + 8 + 16 + 5, ["NAME", "STATE", "VRAM"], id="and left out when too little of it is left"),
        pytest.param(5 + 6 + 8 + 3, ["NAME", "STATE"], id="then what can be missed"),
        pytest.param(3, ["NAME"], id="the name always stays"),
    ],
)
def test_columns_are_left_out_in_the_order_in_which_they_can_be_missed(width: int, shown: list[str]) -> None:
    assert names(width) == shown


@given(st.integers(1, 120), st.lists(st.lists(st.text(max_size=30), min_size=4, max_size=4), max_size=4))
def test_what_is_shown_fits_or_is_the_name_alone(width: int, rows: list[list[str]]) -> None:
    shown = columns_for(rows, width=width, columns=COLUMNS, gap=1)
    least = sum(min(16, width_of(rows, i, COLUMNS)) if i == 3 else width_of(rows, i, COLUMNS) for i in shown)
    assert shown[0] == 0
    assert least + len(shown) - 1 <= width or shown == [0]
    assert shown == sorted(shown)


def test_whole_columns_are_shortened_nowhere() -> None:
    shown = whole_columns(ROWS, width=30, columns=COLUMNS, dispensable=("COMMAND", "VRAM"), gap=2)
    assert [COLUMNS[i] for i in shown] == ["NAME", "STATE", "VRAM"]
    assert whole_columns(ROWS, width=500, columns=COLUMNS, dispensable=("COMMAND",), gap=2) == [0, 1, 2, 3]
    assert whole_columns(ROWS, width=1, columns=COLUMNS, dispensable=("COMMAND",), gap=2) == [0, 1, 2]


@given(st.lists(st.text("abc", min_size=1, max_size=12), max_size=12), st.integers(1, 40))
def test_parts_are_in_as_few_lines_as_hold_them_and_none_is_lost(parts: list[str], width: int) -> None:
    lines = lines_for(parts, width=width)
    assert " | ".join(lines).split(" | ") == (parts or [""])
    assert all(len(line) <= width or " | " not in line for line in lines)
    for one, other in itertools.pairwise(lines):
        assert len(one) + 3 + len(other.split(" | ")[0]) > width, "it would have fitted"


def test_every_column_that_can_be_missed_is_named_once() -> None:
    assert len(set(DISPENSABLE)) == len(DISPENSABLE)
    assert "NAME" not in DISPENSABLE
