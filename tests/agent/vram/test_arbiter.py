"""Whether there is room, who waits for it, and who comes back into it: no clock and no agent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.agent.vram.arbiter import (
    Asking,
    Fit,
    Holder,
    Parked,
    choose_resume,
    circle,
    deadlock_victim,
    hopeless,
    judge,
    outranked,
)
from kybernate.model.types import GpuUuid, WorkloadName

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("size", "own", "free", "handed_out", "reserved", "fit"),
    [
        pytest.param(40, 0, 100, 0, 0, Fit.FITS, id="fits"),
        pytest.param(40, 0, 30, 0, 0, Fit.LATER, id="others in the way"),
        pytest.param(40, 0, 100, 70, 0, Fit.LATER, id="over the limit for now"),
        pytest.param(40, 70, 100, 70, 0, Fit.NEVER, id="own memory and this exceed what there is"),
        pytest.param(101, 0, 200, 0, 0, Fit.NEVER, id="more than there is"),
        pytest.param(40, 0, 50, 0, 20, Fit.LATER, id="promised to another"),
    ],
)
def test_judge(size: int, own: int, free: int, handed_out: int, reserved: int, fit: Fit) -> None:
    assert judge(size=size, own=own, free=free, capacity=100, handed_out=handed_out, reserved=reserved) is fit


def parked(name: str, at: float, *, fits: bool = True, since: float = 0.0) -> Parked:
    return Parked(name=WorkloadName(name), paused_at=at, fits=fits, fits_since=since)


def test_the_longest_paused_that_fits_comes_back() -> None:
    waiting = [parked("late", 5), parked("early", 1), parked("first", 0, fits=False)]
    assert choose_resume(waiting, now=10, settle_s=1, somebody_waits=False) == "early"


def test_not_before_the_memory_has_been_free_for_a_while() -> None:
    assert choose_resume([parked("a", 1, since=9.5)], now=10, settle_s=1, somebody_waits=False) is None


def test_not_while_somebody_waits_for_room() -> None:
    assert choose_resume([parked("a", 1)], now=10, settle_s=1, somebody_waits=True) is None


# -- whether waiting makes sense, and who gives way --------------------------------------------------------------------------


def holder(name: str, size: int, **given: bool) -> Holder:
    return Holder(WorkloadName(name), size, (given.pop("interactive", False), 0), **given)


@pytest.mark.parametrize(
    ("holders", "hopeless_"),
    [
        pytest.param([holder("a", 50)], False, id="one that could give way"),
        pytest.param([holder("a", 5, moves=True)], False, id="one in a switch, whose bytes are in nobody's books"),
        pytest.param([holder("a", 5)], True, id="one that could give way, and would not help"),
        pytest.param([holder("a", 50, stays=True)], True, id="one that can't be paused"),
        pytest.param(
            [holder("a", 80, stays=True), holder("b", 5, moves=True)], True, id="it can't fit beside such a one"
        ),
        pytest.param([], True, id="nobody"),
    ],
)
def test_an_allocation_waits_as_long_as_anybody_could_give_way(holders: list[Holder], hopeless_: bool) -> None:
    assert hopeless(size=30, own=0, free=10, capacity=100, holders=holders) is hopeless_


def test_a_batch_job_is_outranked_by_interactive_ones_alone() -> None:
    chat, job = holder("chat", 50, interactive=True), holder("job", 50)
    assert outranked(size=30, free=10, rank=(False, 0), holders=[chat])
    assert not outranked(size=30, free=10, rank=(False, 0), holders=[chat, job])
    assert not outranked(size=30, free=10, rank=(True, 0), holders=[chat])
    assert not outranked(size=30, free=10, rank=(False, 0), holders=[])


GPU, OTHER_GPU = GpuUuid("GPU-0"), GpuUuid("GPU-1")


def asking(name: str, needed: int, held: int, *, since: float = 0.0, **given: Any) -> Asking:
    rank = (given.pop("interactive", False), given.pop("priority", 0))
    return Asking(WorkloadName(name), {GPU: needed}, {GPU: held}, rank, since, **given)


def test_two_that_wait_for_each_other_are_a_circle_and_the_younger_gives_way() -> None:
    old, young = asking("old", 10, 40, since=1), asking("young", 10, 40, since=2)
    assert circle([old, young], reachable={GPU: 5}) == [old, young]
    assert deadlock_victim([old, young], reachable={GPU: 5}) == "young"


def test_of_a_circle_the_lowest_rank_gives_way_however_old() -> None:
    batch, chat = asking("batch", 10, 40, since=1), asking("chat", 10, 40, since=2, interactive=True)
    assert deadlock_victim([batch, chat], reachable={GPU: 5}) == "batch"
    assert deadlock_victim([replace(batch, pausable=False), chat], reachable={GPU: 5}) == "chat"


def test_whoever_holds_nothing_that_others_need_does_not_give_way() -> None:
    elsewhere = Asking(WorkloadName("elsewhere"), {GPU: 10}, {OTHER_GPU: 40}, (False, 0), 9.0)
    assert deadlock_victim([asking("a", 10, 40), asking("b", 10, 40, since=1), elsewhere], reachable={GPU: 5}) == "b"
    assert deadlock_victim([asking("alone", 10, 40)], reachable={GPU: 5}) is None


def test_there_is_no_circle_where_somebody_goes_on_and_gives_way_to_the_next() -> None:
    """The first gets what is reachable, then all it holds is there for the second, and so on."""
    line = [asking("third", 90, 10), asking("first", 5, 40), asking("second", 40, 45)]
    assert circle(line, reachable={GPU: 5}) == []
    assert deadlock_victim(line, reachable={GPU: 5}) is None


def test_two_gpus_taken_in_opposite_order_are_a_circle() -> None:
    one = Asking(WorkloadName("one"), {OTHER_GPU: 10}, {GPU: 50}, (False, 0), 1.0)
    two = Asking(WorkloadName("two"), {GPU: 10}, {OTHER_GPU: 50}, (False, 0), 2.0)
    assert deadlock_victim([one, two], reachable={GPU: 0, OTHER_GPU: 0}) == "two"


SIZES = st.dictionaries(st.sampled_from([GPU, OTHER_GPU]), st.integers(1, 40), max_size=2)


@given(st.lists(st.tuples(SIZES, SIZES, st.booleans(), st.integers(0, 9)), max_size=8), SIZES)
def test_whatever_waits_goes_on_in_the_end_if_those_who_give_way_leave(
    given_: list[tuple[dict[GpuUuid, int], dict[GpuUuid, int], bool, int]], reachable: dict[GpuUuid, int]
) -> None:
    left = [
        Asking(WorkloadName(f"w{k}"), needed, held, (interactive, 0), float(since))
        for k, (needed, held, interactive, since) in enumerate(given_)
    ]
    total = dict(reachable)
    while (name := deadlock_victim(left, reachable=total)) is not None:
        stuck = circle(left, reachable=total)
        gone = next(one for one in left if one.name == name)
        assert gone in stuck
        left.remove(gone)
        for gpu, size in gone.held.items():
            total[gpu] = total.get(gpu, 0) + size
    # Nobody is left in a circle whose room the others hold: what they lack nobody has.
    for one in circle(left, reachable=total):
        others = [other for other in circle(left, reachable=total) if other is not one]
        assert not any(other.held.get(gpu, 0) for other in others for gpu in one.needed)
