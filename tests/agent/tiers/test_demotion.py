"""Which of those that are paused in RAM leaves it first."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tests.agent.building import GPU, NOW, OTHER_GPU, paused

from kybernate.agent.records.ledger import ARBITER, RECOVERY, USER, Entry
from kybernate.agent.tiers.demotion import idle_too_long, least_valuable

pytestmark = pytest.mark.unit


def one(name: str, gib: Any = 10, **given: Any) -> Entry:
    return paused(name, gib, **({"paused_by": USER} | given))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(
            one("z", last_use=NOW), one("a", paused_by=ARBITER, last_use=0.0), id="whoever waits for its turn stays"
        ),
        pytest.param(
            one("z", paused_by=RECOVERY, last_use=5), one("a", last_use=6), id="only the arbiter's wait for a turn"
        ),
        pytest.param(one("z", last_use=1), one("a", 90, last_use=2), id="the least recently used, however small"),
        pytest.param(
            one("z", {GPU: 6, OTHER_GPU: 6}, last_use=1),
            one("a", 10, last_use=1),
            id="of equals the larger, all GPUs together",
        ),
        pytest.param(one("a", last_use=1), one("b", last_use=1), id="of equals by name, so that it is always the same"),
    ],
)
def test_who_goes_first(first: Entry, second: Entry) -> None:
    assert least_valuable([first, second]) is first
    assert least_valuable([second, first]) is first, "whatever the order in which they are given"


def test_nobody_is_nobody() -> None:
    assert least_valuable([]) is None


def test_the_choice_does_not_depend_on_the_order_of_many() -> None:
    entries = [one(name, last_use=use) for name, use in (("a", 3), ("b", 1), ("c", 1), ("d", 2))]
    assert all(least_valuable(order) is entries[1] for order in itertools.permutations(entries))


def test_whoever_has_been_paused_for_so_long_leaves_the_longest_paused_first() -> None:
    entries = [
        one("new", since=NOW - 9),
        one("old", since=NOW - 30),
        one("older", since=NOW - 31),
        one("edge", since=NOW - 10),
    ]
    assert [entry.name for entry in idle_too_long(entries, now=NOW, idle_s=10)] == ["older", "old", "edge"]


def test_without_patience_everybody_leaves_and_with_endless_patience_nobody() -> None:
    entries = [one("a", since=NOW), one("b", since=NOW + 1)]
    assert [entry.name for entry in idle_too_long(entries, now=NOW, idle_s=0)] == ["a"], "not one of the future"
    assert idle_too_long(entries, now=NOW, idle_s=float("inf")) == []
