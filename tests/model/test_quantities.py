"""Sizes and durations as people write and read them: what is taken, what is refused, and that what is shown can be given back."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kybernate.model.errors import BadInput
from kybernate.model.quantities import format_seconds, format_size, parse_seconds, parse_size, together
from kybernate.model.types import GIB, MIB, GpuUuid

pytestmark = pytest.mark.unit

KIB, TIB = 1 << 10, 1 << 40

# -- sizes ---------------------------------------------------------------------------------------------------------------


@given(st.integers(min_value=0, max_value=1 << 60))
@example((1 << 53) + 1)
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_size(size) == parse_size(f"{size}B") == size


@pytest.mark.parametrize(
    ("text", "size"), [("40GiB", 40 * GIB), ("1.5 g", 3 * GIB // 2), ("2MB", 2_000_000), ("0", 0), (" 7 MiB ", 7 * MIB)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1e3", "-1", "1 2", "3XiB", "nan", "0x10", "9" * 400])
def test_no_sizes(text: str) -> None:
    with pytest.raises(BadInput, match="no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        (" 15 m ", 900),
        ("1.5H", 5400),
        ("2d", 172800),
        ("0.5", 0.5),
        ("0", 0),
        ("10m", 600),
        ("1h30m", 5400),
        ("1d 2h 3m 4s", 93784),
        ("2 h 10 min", 7800),
        ("500ms", 0.5),
        ("1s500ms", 1.5),
        (7, 7),
        (0.25, 0.25),
    ],
)
def test_times(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@given(st.integers(min_value=0, max_value=3600 * 24 * 400))
def test_a_time_as_it_is_shown_can_be_given(whole: int) -> None:
    shown = format_seconds(float(whole))
    assert abs(parse_seconds(shown) - whole) < (60 if "d" not in shown else 3600)


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "soon", "30m1h", "1h1h", "5 apples", "nan", "inf", "1e3", "9" * 400, True, False, float("nan"), -3],
)
def test_no_times(text: str | float) -> None:
    with pytest.raises(BadInput, match="no time"):
        parse_seconds(text)


def test_sizes_for_people() -> None:
    assert [format_size(n) for n in (0, 1023, 1536, 40 * GIB)] == ["0 B", "1023 B", "1.5 KiB", "40.0 GiB"]


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        pytest.param("B", 1, id="bytes"),
        pytest.param("K", KIB, id="a letter alone is binary"),
        pytest.param("KiB", KIB, id="binary in full"),
        pytest.param("KB", 1000, id="decimal with a B"),
        pytest.param("M", MIB, id="mebi by its letter"),
        pytest.param("MB", 10**6, id="mega"),
        pytest.param("G", GIB, id="gibi by its letter"),
        pytest.param("GB", 10**9, id="giga"),
        pytest.param("T", TIB, id="tebi by its letter"),
        pytest.param("TiB", TIB, id="tebi in full"),
        pytest.param("TB", 10**12, id="tera"),
    ],
)
def test_a_unit_means_one_number_of_bytes_however_it_is_cased(unit: str, size: int) -> None:
    for written in (unit, unit.lower(), unit.upper()):
        assert parse_size(f"3{written}") == 3 * size
        assert parse_size(f"3 {written}") == 3 * size


def test_a_fraction_is_exact_and_what_is_less_than_a_byte_is_dropped() -> None:
    assert parse_size("0.1KB") == 100
    assert parse_size("1.9999") == 1
    assert parse_size("8388607.999999999999TiB") == int((8388608 * 10**12 - 1) * TIB // 10**12), (
        "more than a double holds"
    )


@pytest.mark.parametrize("value", [True, False, None, 1.5, [1], b"1"])
def test_only_texts_and_whole_numbers_are_sizes(value: object) -> None:
    with pytest.raises(BadInput, match="is no size") as refused:
        parse_size(value)  # type: ignore[arg-type]
    assert refused.value.hint == "write a number with a unit, such as 40GiB"


def test_a_negative_number_is_refused_for_what_it_is() -> None:
    with pytest.raises(BadInput, match="-1 is no size: it is negative"):
        parse_size(-1)


def test_a_long_text_is_shown_short() -> None:
    with pytest.raises(BadInput) as refused:
        parse_size("x" * 10_000)
    assert len(refused.value.message) < 60


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        pytest.param(0, "0 B", id="nothing"),
        pytest.param(1023, "1023 B", id="the last that is shown in bytes"),
        pytest.param(KIB, "1.0 KiB", id="the first KiB"),
        pytest.param(MIB - 1, "1.0 MiB", id="what rounds up to the next unit is shown in that"),
        pytest.param(GIB - 1, "1.0 GiB", id="likewise"),
        pytest.param(TIB - 1, "1.0 TiB", id="likewise, to the last unit"),
        pytest.param(1023 * MIB, "1023.0 MiB", id="four digits before the point at most"),
        pytest.param(3 * TIB // 2, "1.5 TiB", id="a large one"),
        pytest.param(5000 * TIB, "5000.0 TiB", id="there is no larger unit"),
        pytest.param(-5 * MIB, "-5.0 MiB", id="a difference"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_of_which_there_is_one(size: int, shown: str) -> None:
    assert format_size(size) == shown


@given(st.integers(min_value=0, max_value=TIB * 1000))
def test_a_size_as_it_is_shown_can_be_given_and_is_off_by_its_last_digit_at_most(size: int) -> None:
    shown = format_size(size)
    unit = parse_size(f"1 {shown.split()[1]}")
    assert abs(parse_size(shown) - size) <= unit * 0.05 + 1
    assert unit == TIB or float(shown.split()[0]) < 1024


# -- times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        pytest.param(0.0, "0.00 s", id="nothing"),
        pytest.param(0.004, "0.00 s", id="less than is shown"),
        pytest.param(9.99, "9.99 s", id="the last with hundredths"),
        pytest.param(9.996, "10 s", id="what rounds up to ten has none"),
        pytest.param(10.4, "10 s", id="whole seconds"),
        pytest.param(59.6, "1 min 0 s", id="rounds up to a minute"),
        pytest.param(185.0, "3 min 5 s", id="minutes"),
        pytest.param(3599.7, "1 h 0 min", id="rounds up to an hour"),
        pytest.param(7800.0, "2 h 10 min", id="hours"),
        pytest.param(86399.9, "1 d 0 h", id="rounds up to a day"),
        pytest.param(273600.0, "3 d 4 h", id="days"),
    ],
)
def test_a_time_is_shown_by_its_two_largest_units(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


def test_infinity_is_no_time() -> None:
    with pytest.raises(BadInput, match="inf is no time"):
        parse_seconds(math.inf)


def test_units_come_in_order_and_once() -> None:
    assert parse_seconds("1d1h1m1s1ms") == 86400 + 3600 + 60 + 1 + 0.001
    for text in ("1s1m", "1m1m", "1ms1s"):
        with pytest.raises(BadInput):
            parse_seconds(text)


@given(st.text(max_size=30))
def test_any_text_is_a_time_that_isn_t_negative_or_one_line(text: str) -> None:
    message, seconds = "", 0.0
    try:
        seconds = parse_seconds(text)
    except BadInput as refused:
        message = refused.message
    assert 0 <= seconds < math.inf
    assert "\n" not in message


# -- sums by GPU ---------------------------------------------------------------------------------------------------------

A, B = GpuUuid("GPU-a"), GpuUuid("GPU-b")


def test_sums_are_by_gpu_and_have_every_gpu_that_any_of_them_has() -> None:
    assert together() == {}
    assert together({A: 1}, {}, {A: 2, B: 0}) == {A: 3, B: 0}


@given(st.lists(st.dictionaries(st.sampled_from([A, B]), st.integers(0, 1 << 50)), max_size=4))
def test_the_order_of_what_is_summed_does_not_matter(sizes: list[dict[GpuUuid, int]]) -> None:
    assert together(*sizes) == together(*reversed(sizes))
    assert sum(together(*sizes).values()) == sum(sum(each.values()) for each in sizes)
