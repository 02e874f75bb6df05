"""Shapes of traffic: as many requests as were asked for, in order, at the rate that was asked for, and the same from one seed."""

from __future__ import annotations

import itertools
import random
import statistics
from collections import Counter

import pytest

from kybernate.policy.simulation import Request
from kybernate.policy.traffic import DAY_S, TRAFFIC, answer_s, around

from .node_states import name

pytestmark = pytest.mark.unit

MODELS = [name(text) for text in "abcde"]
COUNT = 4000


def drawn(kind: str, *, rate: float = 0.5, count: int = COUNT, models: int = 5, seed: int = 1) -> list[Request]:
    return TRAFFIC[kind](random.Random(seed), rate, count, MODELS[:models], answer_s)


def shares(requests: list[Request]) -> dict[str, float]:
    counted = Counter(request.model for request in requests)
    return {str(who): number / len(requests) for who, number in counted.items()}


@pytest.mark.parametrize("kind", TRAFFIC)
@pytest.mark.parametrize("models", [1, 2, 5])
def test_there_are_as_many_as_were_asked_for_in_order_of_time(kind: str, models: int) -> None:
    found = drawn(kind, count=300, models=models)
    assert len(found) == 300
    assert [r.at for r in found] == sorted(r.at for r in found)
    assert {r.model for r in found} <= set(MODELS[:models])
    assert all(r.seconds > 0 and r.at > 0 for r in found)


@pytest.mark.parametrize("kind", TRAFFIC)
def test_the_same_seed_draws_the_same_and_another_does_not(kind: str) -> None:
    assert drawn(kind, count=50) == drawn(kind, count=50)
    assert drawn(kind, count=50) != drawn(kind, count=50, seed=2)


@pytest.mark.parametrize("kind", TRAFFIC)
@pytest.mark.parametrize("rate", [0.05, 1.0])
def test_the_rate_is_that_of_all_models_together(kind: str, rate: float) -> None:
    found = drawn(kind, rate=rate)
    assert len(found) / found[-1].at == pytest.approx(rate, rel=0.2)


@pytest.mark.parametrize("kind", TRAFFIC)
def test_no_requests_are_none(kind: str) -> None:
    assert drawn(kind, count=0) == []


def test_by_zipf_the_first_is_asked_for_twice_as_often_as_the_second() -> None:
    found = shares(drawn("zipf"))
    assert found["a"] / found["b"] == pytest.approx(2.0, rel=0.15)
    assert found["a"] / found["e"] == pytest.approx(5.0, rel=0.25)


def test_two_are_hot_and_the_others_share_a_tenth() -> None:
    found = shares(drawn("two-hot"))
    assert found["a"] == pytest.approx(0.45, abs=0.03)
    assert found["b"] == pytest.approx(0.45, abs=0.03)
    assert found["c"] + found["d"] + found["e"] == pytest.approx(0.10, abs=0.02)


def test_in_bursts_the_next_request_is_mostly_of_the_same_model() -> None:
    def same(requests: list[Request]) -> float:
        return statistics.fmean(a.model == b.model for a, b in itertools.pairwise(requests))

    assert same(drawn("bursts", rate=0.05)) > 0.8
    assert same(drawn("zipf", rate=0.05)) < 0.5


def test_by_day_others_are_asked_for_than_by_night_and_the_day_is_busier() -> None:
    requests = drawn("day-night", rate=1.0, count=int(4 * DAY_S))
    day = [r for r in requests if r.at % DAY_S < DAY_S / 2]
    night = [r for r in requests if r.at % DAY_S >= DAY_S / 2]
    assert len(day) > 2 * len(night)
    assert shares(day)["a"] > 2 * shares(night)["a"]
    assert shares(night)["c"] > 2 * shares(day)["c"]


def test_answers_take_half_a_second_to_ten_half_of_them_below_two() -> None:
    rng = random.Random(3)
    found = [answer_s(rng, MODELS[0]) for _ in range(5000)]
    assert min(found) >= 0.5
    assert max(found) <= 10
    assert statistics.median(found) == pytest.approx(2.0, rel=0.1)


def test_what_was_measured_of_a_model_is_the_mean_of_its_answers() -> None:
    rng = random.Random(4)
    service = around({MODELS[0]: 6.0})
    assert statistics.fmean(service(rng, MODELS[0]) for _ in range(20_000)) == pytest.approx(6.0, rel=0.05)


def test_of_a_model_that_nobody_measured_answers_are_those_of_any() -> None:
    assert around({})(random.Random(5), MODELS[1]) == answer_s(random.Random(5), MODELS[1])
