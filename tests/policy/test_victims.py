"""Whom to pause for how many bytes on which GPU: states of the node in, choices out."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kybernate.model.types import GIB, GpuUuid
from kybernate.policy.node_state import Class, Cost, Member, Phase
from kybernate.policy.settings import PolicySettings
from kybernate.policy.victims import Candidate, Choice, choose_victims, cover, frees

from .node_states import GPU, NOW, OTHER_GPU, member, name, node_state

pytestmark = pytest.mark.unit

SETTINGS = PolicySettings(min_run=5.0)


def choose(
    members: list[Member],
    needed: float | Mapping[GpuUuid, float],
    *,
    requester: str | None = None,
    min_run: float | None = None,
    numbers: PolicySettings = SETTINGS,
) -> Choice:
    sizes = needed if isinstance(needed, Mapping) else {GPU: needed}
    return choose_victims(
        node_state(*members, capacity={GPU: 200, OTHER_GPU: 200}),
        requester=None if requester is None else name(requester),
        needed={gpu: int(size * GIB) for gpu, size in sizes.items()},
        settings=numbers,
        min_run=min_run,
    )


def test_whoever_was_idle_longest_goes_first() -> None:
    choice = choose([member("new", last_use=NOW - 10), member("old", last_use=NOW - 200)], 20)
    assert choice.victims == ("old",)


def test_whoever_is_cheaper_to_switch_goes_first() -> None:
    dear = member("dear", cost=Cost(leave=5, come=20, come_prefetched=2))
    assert choose([dear, member("cheap")], 20).victims == ("cheap",)


def test_one_that_suffices_is_better_than_two_that_are_idle_longer() -> None:
    members = [member("a", 24, last_use=NOW - 110), member("b", 24, last_use=NOW - 110), member("c", 40)]
    assert choose(members, 40).victims == ("c",)


def test_batch_goes_before_interactive_however_idle() -> None:
    training = member("training", klass=Class.BATCH, phase=Phase.RESIDENT, wanted=True, last_use=NOW)
    assert choose([member("idle", last_use=0.0), training], 20).victims == ("training",)


def test_lower_priority_goes_first() -> None:
    members = [member("high", priority=5, last_use=0.0), member("low", priority=1, last_use=NOW - 10)]
    asks = member("asks", priority=5, waiting=1)
    assert choose([*members, asks], 20, requester="asks").victims == ("low",)


def test_whoever_ranks_higher_gives_way_only_when_idle() -> None:
    training = member("training", 20, klass=Class.BATCH, phase=Phase.RESIDENT, wanted=True)
    numbers = PolicySettings(min_run=0, batch_idle=8)
    busy = member("server", last_use=NOW - 3)
    assert choose([training, busy], 10, requester="training", numbers=numbers) == Choice(wait_s=5.0)
    idle = member("server", last_use=NOW - 9)
    assert choose([training, idle], 10, requester="training", numbers=numbers).victims == ("server",)


def test_never_the_requester_nor_what_a_person_pinned() -> None:
    assert choose([member("me"), member("pinned", pinned=True)], 10, requester="me") == Choice()


def test_whoever_came_just_now_is_left_its_quantum() -> None:
    fresh = member("fresh", since=NOW - 2)
    assert choose([fresh], 10) == Choice(wait_s=3.0)
    assert choose([fresh], 10, min_run=0.0).victims == ("fresh",)


def test_requests_in_flight_are_waited_for() -> None:
    choice = choose([member("answers", in_flight=1)], 10)
    assert choice.victims == ()
    assert choice.wait_s is not None


def test_a_batch_server_in_flight_is_preempted_by_interactive_ones_alone() -> None:
    batch = member("batch", klass=Class.BATCH, in_flight=2, phase=Phase.RESIDENT)
    assert choose([batch], 10).victims == ("batch",)
    peer = member("peer", klass=Class.BATCH, phase=Phase.RESIDENT, priority=9)
    assert choose([batch, peer], 10, requester="peer").victims == ()
    assert choose([batch], 10, numbers=PolicySettings(preempt=frozenset())).victims == ()


def test_one_that_is_switching_is_waited_for() -> None:
    for settling in (member("x", phase=Phase.LEAVING), member("x", pausable=False, settling=True)):
        choice = choose([settling], 10)
        assert choice.victims == ()
        assert choice.wait_s is not None


def test_when_nobody_can_help_there_is_nothing_to_wait_for() -> None:
    assert choose([member("small", 1), member("refuses", 90, pausable=False)], 5) == Choice()


def test_every_gpu_is_covered() -> None:
    one, two = member("one", {GPU: 30}), member("two", {OTHER_GPU: 30})
    both = member("both", {GPU: 30, OTHER_GPU: 30}, last_use=NOW - 1)
    assert choose([one, two], {GPU: 10, OTHER_GPU: 10}).victims == ("one", "two")
    assert choose([one, both], {GPU: 10, OTHER_GPU: 10}).victims == ("both",)
    assert choose([one], {GPU: 10, OTHER_GPU: 10}) == Choice()


SIZES = st.dictionaries(st.sampled_from([GPU, OTHER_GPU]), st.integers(0, 40), min_size=1)


@settings(deadline=None)
@given(
    st.lists(st.tuples(SIZES, st.integers(0, 2), st.floats(0, 10)), max_size=14),
    SIZES,
)
def test_a_cover_frees_enough_with_nobody_needless_and_is_nothing_only_where_nothing_helps(
    others: list[tuple[dict[GpuUuid, int], int, float]], needed: dict[GpuUuid, int]
) -> None:
    candidates = [Candidate(member(f"m{k}", sizes), band, price) for k, (sizes, band, price) in enumerate(others)]
    lacking = {gpu: size * GIB for gpu, size in needed.items()}
    chosen = cover(candidates, lacking)
    if chosen is None:
        assert not frees(candidates, lacking)
        return
    assert frees(chosen, lacking)
    for one in chosen:
        assert not frees([c for c in chosen if c is not one], lacking)


@pytest.mark.parametrize("count", [9, 12])
def test_the_cheapest_goes_among_few_and_among_many(count: int) -> None:
    candidates = [Candidate(member(f"m{k}", 10), 0, float(k)) for k in range(count)]
    chosen = cover(candidates, {GPU: 15 * GIB})
    assert chosen is not None
    assert [c.member.name for c in chosen] == ["m0", "m1"]
