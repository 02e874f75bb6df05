"""What is asked for next: probabilities that are probabilities, and that silence and habit change as a person would."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.policy.forecast import MEMORY_S, PRIOR_COUNT, SILENT, Stream, streams
from kybernate.policy.node_state import NodeState

from .node_states import NOW, member, name, node_state

pytestmark = pytest.mark.unit

A, B = name("a"), name("b")


def asked(*times: tuple[float, str], now: float = NOW) -> NodeState:
    return node_state(member("a"), member("b"), now=now, arrivals=tuple((when, name(who)) for when, who in times))


def test_without_requests_nothing_is_to_be_expected() -> None:
    assert streams(asked()) == {}
    assert SILENT.chance(1e9) == 0.0


def test_each_has_its_own_gaps_and_all_are_remembered_for_one_time() -> None:
    found = streams(asked((NOW - 50, "a"), (NOW - 30, "b"), (NOW - 20, "a"), (NOW - 5, "a")))
    assert found[A].gaps == (30, 15)
    assert (found[A].silence, found[B].silence) == (5, 30)
    assert found[B].gaps == ()
    assert found[A].span == found[B].span == 50


def test_the_time_that_is_remembered_is_never_shorter_than_the_rates_memory() -> None:
    assert streams(asked((NOW, "a")))[A].span == MEMORY_S


def test_who_is_no_member_any_more_and_what_is_yet_to_come_count_nothing() -> None:
    assert streams(asked((NOW - 5, "gone"), (NOW + 5, "a"))) == {}


def test_the_rate_is_of_the_last_moments() -> None:
    steady = streams(asked(*((NOW - second, "a") for second in range(200, -1, -1))))[A]
    assert steady.rate == pytest.approx(1.0, rel=0.05), "one a second"
    long_ago = streams(asked((NOW - 10 * MEMORY_S, "a")))[A]
    assert long_ago.rate == 0.0


def test_one_that_always_comes_back_after_a_pause_is_expected_then() -> None:
    habit = Stream(silence=1.0, gaps=(10.0,) * 20, span=200.0, rate=0.1)
    assert habit.chance(10.0) > 0.9
    assert habit.chance(5.0) < 0.3, "it never came so soon"


def test_after_a_silence_longer_than_any_before_only_the_steady_stream_is_left() -> None:
    silent = Stream(silence=50.0, gaps=(10.0,) * 20, span=200.0, rate=0.0)
    assert silent.chance(20.0) == pytest.approx(1 - math.exp(-20 / 200))


def test_few_observations_are_mixed_with_the_steady_stream() -> None:
    once = Stream(silence=1.0, gaps=(5.0,), span=100.0, rate=0.0)
    steady = 1 - math.exp(-2 * 10 / 100)
    assert once.chance(10.0) == pytest.approx((1 + PRIOR_COUNT * steady) / (1 + PRIOR_COUNT))


STREAMS = st.builds(
    Stream,
    silence=st.floats(0, 1e4),
    gaps=st.lists(st.floats(0, 1e4), max_size=30).map(tuple),
    span=st.floats(MEMORY_S, 1e5),
    rate=st.floats(0, 100),
)


@given(STREAMS, st.floats(0, 1e5), st.floats(0, 1e5))
def test_a_chance_is_a_probability_that_grows_with_the_horizon(stream: Stream, one: float, other: float) -> None:
    near, far = sorted((one, other))
    assert 0 <= stream.chance(near) <= stream.chance(far) <= 1
    assert stream.chance(0) == 0


@given(st.lists(st.tuples(st.floats(0, NOW), st.sampled_from("ab")), max_size=40))
def test_any_arrivals_make_streams_with_finite_numbers(times: list[tuple[float, str]]) -> None:
    for stream in streams(asked(*sorted(times))).values():
        assert math.isfinite(stream.rate)
        assert stream.silence >= 0
        assert all(gap >= 0 for gap in stream.gaps)
