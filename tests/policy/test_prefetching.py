"""What is read into host memory ahead: the likeliest, by the time that it saves per byte, and never more than may be taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.types import GIB, TierName
from kybernate.policy.draft import Draft
from kybernate.policy.forecast import Stream
from kybernate.policy.node_state import Class, Cost, DropPrefetched, Member, Phase, Prefetch
from kybernate.policy.prefetching import prefetch_ahead
from kybernate.policy.settings import PolicySettings

from .node_states import NOW, member, name, node_state

pytestmark = pytest.mark.unit

SURE = Stream(silence=1.0, gaps=(5.0,) * 50, span=100.0, rate=0.2)
SLOW = Cost(leave=0.8, come=20.0, come_prefetched=1.0)


def stored(text: str, gib: float = 10, **given_: Any) -> Member:
    return member(text, gib, **({"phase": Phase.AWAY, "tier": TierName.NVME, "cost": SLOW} | given_))


def chance(share: float) -> Stream:
    """Of being asked within the default horizon, about."""
    gaps = (5.0,) * round(1000 * share) + (1e6,) * round(1000 * (1 - share))
    return Stream(silence=1.0, gaps=gaps, span=1e12, rate=0.0)


def drafted(*members: Member, gib: float = 10, streams: Mapping[str, Stream] | None = None, taken: str = "") -> Draft:
    made = Draft(node_state(*members, prefetch_free=int(gib * GIB)), PolicySettings())
    if taken:
        made.taken.add(name(taken))
    prefetch_ahead(made, {name(who): stream for who, stream in (streams or {}).items()})
    return made


def told(made: Draft) -> list[tuple[str, str]]:
    words = {Prefetch: "read", DropPrefetched: "drop"}
    return [
        (words[type(action)], action.name) for action in made.actions if isinstance(action, Prefetch | DropPrefetched)
    ]


@pytest.mark.parametrize(
    ("one", "streams", "why"),
    [
        pytest.param(stored("a", waiting=2), {}, "requests wait for it", id="somebody waits for it"),
        pytest.param(stored("a", klass=Class.BATCH, wanted=True), {}, "its schedule wants it", id="it has work to do"),
        pytest.param(
            stored("a", klass=Class.BATCH, wanted_at=NOW + 300),
            {},
            "its schedule wants it",
            id="it will have, within the horizon",
        ),
        pytest.param(stored("a"), {"a": chance(0.5)}, "likely asked for soon (50%)", id="it is likely asked for"),
    ],
)
def test_who_is_read_ahead_and_why(one: Member, streams: dict[str, Stream], why: str) -> None:
    made = drafted(one, streams=streams)
    assert told(made) == [("read", "a")]
    assert made.actions[0].why == why


@pytest.mark.parametrize(
    ("one", "streams"),
    [
        pytest.param(stored("a"), {}, id="nobody asks for it"),
        pytest.param(stored("a"), {"a": chance(0.04)}, id="it is too unlikely"),
        pytest.param(stored("a", klass=Class.BATCH, wanted_at=NOW + 301), {}, id="its schedule is beyond the horizon"),
        pytest.param(stored("a", tier=TierName.RAM), {"a": SURE}, id="it lies in RAM already"),
        pytest.param(stored("a", phase=Phase.RESIDENT), {"a": SURE}, id="it is there"),
        pytest.param(stored("a", phase=Phase.ABSENT, tier=None), {"a": SURE}, id="there is nothing to read"),
        pytest.param(stored("a", 0), {"a": SURE}, id="nothing of it was in VRAM"),
        pytest.param(stored("a", pinned=True), {"a": SURE}, id="a person said that it stays as it is"),
        pytest.param(stored("a", prefetched=True), {"a": SURE}, id="it has been read"),
        pytest.param(stored("a", 10.1), {"a": SURE}, id="there is too little room"),
    ],
)
def test_who_is_not(one: Member, streams: dict[str, Stream]) -> None:
    assert told(drafted(one, streams=streams)) == []


def test_what_comes_by_another_action_is_not_read_ahead() -> None:
    assert told(drafted(stored("a", waiting=1), taken="a")) == []


def test_what_saves_most_time_for_each_byte_goes_first() -> None:
    members = (stored("large", 20, waiting=1), stored("small", 10, waiting=1), stored("quick", 10, waiting=1,
               cost=Cost(leave=0.8, come=2.0, come_prefetched=1.0)))  # fmt: skip
    assert told(drafted(*members, gib=20)) == [("read", "small"), ("read", "quick")], (
        "the large one doesn't fit any more"
    )
    assert told(drafted(*members, gib=30)) == [("read", "small"), ("read", "large")]


def test_what_is_not_to_be_expected_any_more_gives_its_room_to_the_next() -> None:
    members = (stored("old", prefetched=True), stored("new", waiting=1))
    made = drafted(*members, gib=0)
    assert told(made) == [("drop", "old"), ("read", "new")]
    assert made.actions[0].why == "is not to be expected any more"


def test_what_is_half_as_likely_as_it_had_to_be_stays_and_less_goes() -> None:
    """Guesses change: it must not be read and dropped in turns."""
    one = stored("a", prefetched=True)
    assert told(drafted(one, streams={"a": chance(0.03)})) == []
    assert told(drafted(one, streams={"a": chance(0.02)})) == [("drop", "a")]


@pytest.mark.parametrize(
    ("share", "exchanged"), [pytest.param(0.45, True, id="more than twice"), pytest.param(0.55, False, id="less")]
)
def test_it_is_exchanged_only_for_what_is_worth_more_than_twice_as_much(share: float, *, exchanged: bool) -> None:
    made = drafted(stored("old", prefetched=True), stored("new", waiting=1), gib=0, streams={"old": chance(share)})
    assert told(made) == ([("drop", "old"), ("read", "new")] if exchanged else [])
    if exchanged:
        assert made.actions[0].why == "new is likelier"


def test_nothing_is_dropped_for_one_that_does_not_fit_all_the_same() -> None:
    made = drafted(stored("old", 5, prefetched=True), stored("new", 10, waiting=1), gib=4, streams={"old": chance(0.2)})
    assert told(made) == []


def test_only_as_many_are_dropped_as_are_needed_the_least_worth_first() -> None:
    members = (
        stored("better", 10, prefetched=True),
        stored("worse", 10, prefetched=True),
        stored("new", 10, waiting=1),
    )
    made = drafted(*members, gib=0, streams={"better": chance(0.3), "worse": chance(0.1)})
    assert told(made) == [("drop", "worse"), ("read", "new")]


@given(
    free=st.integers(0, 40),
    found=st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.floats(0, 1), st.booleans()), max_size=8),
)
def test_what_is_read_fits_into_what_was_free_and_what_is_dropped_and_it_comes_to_rest(
    free: int, found: list[tuple[int, bool, float, bool]]
) -> None:
    members = {
        f"m{k}": stored(f"m{k}", gib, prefetched=prefetched, waiting=int(waiting))
        for k, (gib, prefetched, _, waiting) in enumerate(found)
    }
    streams = {f"m{k}": chance(share) for k, (_, _, share, _) in enumerate(found)}
    room = free
    for _ in range(len(found) + 2):
        moves = told(drafted(*members.values(), gib=room, streams=streams))
        if not moves:
            return
        for kind, who in moves:
            size = found[int(who[1:])][0]
            room += size if kind == "drop" else -size
            assert room >= 0
            assert members[who].prefetched is (kind == "drop"), "nothing is read that is there, nor dropped that isn't"
            members[who] = replace(members[who], prefetched=kind == "read")
    raise AssertionError("it reads and drops in turns while nothing happens")
