"""While nobody waits the likely ones come back, one switch at a time, and only where it is worth the switch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.types import GIB, WorkloadName
from kybernate.policy.draft import Draft
from kybernate.policy.forecast import Stream
from kybernate.policy.home import go_home
from kybernate.policy.node_state import Bring, Class, Cost, Member, Phase
from kybernate.policy.settings import PolicySettings

from .node_states import GPU, NOW, member, name, node_state

pytestmark = pytest.mark.unit

LIKELY = Stream(silence=1.0, gaps=(5.0,) * 20, span=100.0, rate=0.2)
"""Nearly sure to be asked within the horizon."""
UNLIKELY = Stream(silence=90.0, gaps=(), span=10_000.0, rate=0.0)


def drafted(
    *members: Member, streams: Mapping[str, Stream], settings: PolicySettings | None = None, **given_: Any
) -> Draft:
    made = Draft(node_state(*members, **given_), settings or PolicySettings())
    go_home(made, {name(who): stream for who, stream in streams.items()})
    return made


def brought(made: Draft) -> list[tuple[str, tuple[str, ...]]]:
    return [(action.name, action.victims) for action in made.actions if isinstance(action, Bring)]


def away(text: str, gib: float = 40, **given_: Any) -> Member:
    return member(text, gib, **({"phase": Phase.AWAY} | given_))


def test_into_free_room_it_comes_where_it_is_likely_enough() -> None:
    made = drafted(away("a"), streams={"a": LIKELY})
    assert brought(made) == [("a", ())]
    assert made.actions[0].why == "is likely asked for next, and nobody waits"
    assert brought(drafted(away("a"), streams={"a": UNLIKELY})) == [], (
        "the switch costs more than it is expected to save"
    )
    assert brought(drafted(away("a"), streams={})) == [], "nobody has ever asked for it"


def test_it_takes_the_place_of_one_that_is_less_likely_and_never_of_one_that_is_as_likely() -> None:
    members = (member("here", 40), away("a"))
    assert brought(drafted(*members, streams={"a": LIKELY, "here": UNLIKELY})) == [("a", ("here",))]
    assert brought(drafted(*members, streams={"a": LIKELY, "here": LIKELY})) == []
    assert brought(drafted(*members, streams={"a": UNLIKELY, "here": LIKELY})) == []


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param(member("here", 40, in_flight=1), id="it works"),
        pytest.param(member("here", 40, last_use=NOW - 0.5), id="it answered a moment ago"),
        pytest.param(member("here", 40, klass=Class.BATCH, wanted=True, phase=Phase.RESIDENT), id="batch work"),
        pytest.param(member("here", 40, pausable=False), id="it can't be paused"),
        pytest.param(member("here", 40, pinned=True), id="a person said that it stays"),
    ],
)
def test_for_a_guess_nobody_leaves_who_is_of_use_or_may_not(busy: Member) -> None:
    assert brought(drafted(busy, away("a"), streams={"a": LIKELY})) == []


def test_whoever_answered_a_moment_ago_is_looked_at_again_when_it_counts_as_idle() -> None:
    made = drafted(member("here", 40, last_use=NOW - 0.5), away("a"), streams={"a": LIKELY})
    assert made.plan().next_poll == NOW + 0.5


@pytest.mark.parametrize("phase", [Phase.COMING, Phase.LEAVING])
def test_while_somebody_moves_nobody_else_does(phase: Phase) -> None:
    assert brought(drafted(member("other", 10, phase=phase), away("a"), streams={"a": LIKELY})) == []


def test_where_the_plan_does_something_already_it_is_no_time_for_guesses() -> None:
    made = Draft(node_state(away("a", 10), away("b", 10)), PolicySettings())
    made.bring(made.node.members[name("b")], (), "asked for")
    go_home(made, {name("a"): LIKELY})
    assert brought(made) == [("b", ())]


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param(away("a", idle_s=60.0, last_use=NOW - 100), id="its own idle time is over"),
        pytest.param(away("a", pinned=True), id="a person said that it stays away"),
        pytest.param(away("a", phase=Phase.ABSENT), id="a cold start is no coming back"),
        pytest.param(away("a", klass=Class.BATCH), id="batch work comes into gaps"),
        pytest.param(away("a", 70), id="it fits nowhere"),
    ],
)
def test_who_stays_away_however_likely(gone: Member) -> None:
    assert brought(drafted(gone, streams={"a": LIKELY})) == []


def test_only_one_comes_at_a_time_the_one_that_saves_most() -> None:
    slow = away("slow", 20, cost=Cost(leave=0.8, come=8.0, come_prefetched=0.8))
    assert brought(drafted(away("quick", 20), slow, streams={"quick": LIKELY, "slow": LIKELY})) == [("slow", ())]


def test_when_nothing_is_worth_it_silence_alone_is_waited_for() -> None:
    made = drafted(member("here", 40, last_use=NOW - 3), away("a"), streams={"a": UNLIKELY, "here": LIKELY})
    assert made.plan().next_poll == NOW + 5
    longer = drafted(member("here", 40, last_use=NOW - 70), away("a"), streams={"a": UNLIKELY, "here": LIKELY})
    assert longer.plan().next_poll == NOW + 70, "the longer it was, the slower it changes anything"


CHANCES = st.sampled_from([LIKELY, UNLIKELY, Stream(silence=20.0, gaps=(30.0, 5.0, 60.0), span=200.0, rate=0.02)])


@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans(), CHANCES, st.floats(0.1, 20), st.floats(0.1, 20)), max_size=7)
)
def test_a_guess_never_overfills_a_gpu_and_settles(found: list[tuple[int, bool, Stream, float, float]]) -> None:
    members: dict[WorkloadName, Member] = {}
    chances: dict[WorkloadName, Stream] = {}
    room = 60
    for number, (gib, here, stream, come, leave) in enumerate(found):
        phase = Phase.RESIDENT if here and gib <= room else Phase.AWAY
        room -= gib if phase is Phase.RESIDENT else 0
        who = name(f"m{number}")
        cost = Cost(leave=leave, come=come, come_prefetched=come)
        members[who], chances[who] = member(who, gib, phase=phase, cost=cost), stream
    for _ in range(2 * len(members) + 2):
        made = Draft(node_state(*members.values()), PolicySettings())
        assert made.free[GPU] >= 0
        go_home(made, chances)
        if not made.actions:
            return
        (action,) = made.actions
        assert isinstance(action, Bring)
        assert made.free[GPU] >= 0, "no byte is given twice"
        for victim in action.victims:
            members[victim] = replace(members[victim], phase=Phase.AWAY)
        members[action.name] = replace(members[action.name], phase=Phase.RESIDENT)
        held = sum(m.bytes[GPU] for m in members.values() if m.phase is Phase.RESIDENT)
        assert held <= 60 * GIB
    raise AssertionError("it goes round in circles while nothing happens")
