"""Parts of the demo that need no agent: traces, the chart, the size of a transformer."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from kybernate.cli.demo_chart import chart, rows
from kybernate.cli.demo_load import quantile, zipf
from kybernate.cli.demo_transformer import Transformer, shape_for
from kybernate.model.api_history import IntervalView
from kybernate.model.types import GIB, MIB


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


def test_a_trace_is_that_of_its_seed_and_follows_zipf() -> None:
    models = ["a", "b", "c", "d"]
    trace = zipf(models, count=4000, seconds=100, seed=1, tokens=4)
    assert trace == zipf(models, count=4000, seconds=100, seed=1, tokens=4)
    assert trace != zipf(models, count=4000, seconds=100, seed=2, tokens=4)
    assert [ask.at for ask in trace] == sorted(ask.at for ask in trace)
    assert math.isclose(trace[-1].at, 100, rel_tol=0.1)
    counted = Counter(ask.model for ask in trace)
    for rank, model in enumerate(models, 1):
        assert math.isclose(counted[model] * rank, counted["a"], rel_tol=0.15)
    assert len({ask.prompt for ask in trace}) == 8 * len(models)


def test_quantiles() -> None:
    values = [float(k) for k in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile([3.0], 0.99)) == (51.0, 100.0, 3.0)
    with pytest.raises(ValueError, match="nothing"):
        quantile([], 0.5)


@pytest.mark.parametrize("size", [256 * MIB, GIB, 4 * GIB, 24 * GIB, 70 * GIB])
def test_a_transformer_takes_what_it_may_and_no_more(size: int) -> None:
    shape = shape_for(size)
    assert shape.total_bytes <= size
    assert size - shape.total_bytes < shape.layer_bytes + shape.cache_bytes
    assert shape.layers < 200


def test_a_transformer_too_small() -> None:
    with pytest.raises(ValueError, match="smallest"):
        shape_for(16 * MIB)


def test_a_transformer_answers_the_same_with_and_without_its_cache() -> None:
    pytest.importorskip("torch", reason="left out: needs PyTorch")
    one, two, other = (Transformer(size=200 * MIB, seed=seed, device="cpu") for seed in (1, 1, 2))
    words = list(one.generate("some words to begin with", 6))
    assert words == list(two.generate("some words to begin with", 6))
    assert words[:3] == list(one.generate("some words to begin with", 3))
    assert words != list(other.generate("some words to begin with", 6))
