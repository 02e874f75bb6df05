"""A plan while it is made: nobody is a victim twice, no byte is given twice, and who comes into which gap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.types import GIB
from kybernate.policy.draft import Draft, asked_at, into_gaps, leave_in_time, out_of_time, queues
from kybernate.policy.node_state import Bring, Class, Leave, Member, NodeState, Phase
from kybernate.policy.settings import PolicySettings
from kybernate.policy.victims import Candidate

from .node_states import GPU, NOW, OTHER_GPU, member, name, node_state

pytestmark = pytest.mark.unit

SETTINGS = PolicySettings()


def draft(*members: Member, settings: PolicySettings = SETTINGS, **given_: Any) -> Draft:
    return Draft(node_state(*members, **given_), settings)


def victim(one: Member) -> Candidate:
    return Candidate(one, band=0, price=0.0)


def training(text: str = "training", gib: float = 30, **given_: Any) -> Member:
    return member(text, gib, **({"klass": Class.BATCH, "wanted": True} | given_))


# -- the books -----------------------------------------------------------------------------------------------------------


def test_room_that_one_takes_is_not_there_for_the_next() -> None:
    made = draft(member("a", 20, phase=Phase.AWAY), capacity=60)
    made.bring(made.node.members[name("a")], (), "why")
    assert made.free == {GPU: 40 * GIB}


@pytest.mark.parametrize(
    ("coming", "leaving", "free"),
    [
        pytest.param(30, 30, 0, id="it takes its victim's room and nothing else"),
        pytest.param(40, 30, -10, id="and what it needs beyond that"),
        pytest.param(10, 30, 0, id="what a victim frees beyond it is free only when it has gone"),
    ],
)
def test_a_victims_room_becomes_the_comers(coming: float, leaving: float, free: float) -> None:
    made = draft(member("v", leaving), member("a", coming, phase=Phase.AWAY), free={GPU: 0})
    made.bring(made.node.members[name("a")], [victim(made.node.members[name("v")])], "why")
    assert made.free == {GPU: int(free * GIB)}
    assert made.taken == {"a", "v"}


def test_on_each_gpu_for_itself() -> None:
    made = draft(
        member("v", {GPU: 30}),
        member("a", {GPU: 20, OTHER_GPU: 20}, phase=Phase.AWAY),
        capacity={GPU: 60, OTHER_GPU: 60},
    )
    made.bring(made.node.members[name("a")], [victim(made.node.members[name("v")])], "why")
    assert made.free == {GPU: 30 * GIB, OTHER_GPU: 40 * GIB}


def test_only_those_can_be_moved_who_are_there_able_and_in_no_other_action() -> None:
    made = draft(
        member("z-able", 1),
        member("a-able", 1),
        member("away", 1, phase=Phase.AWAY),
        member("coming", 1, phase=Phase.COMING),
        member("refused", 1, pausable=False),
        member("pinned", 1, pinned=True),
        member("taken", 1),
    )
    made.taken.add(name("taken"))
    assert [m.name for m in made.movable()] == ["a-able", "z-able"], "in order of names"


@pytest.mark.parametrize(
    ("victims", "preempt"),
    [
        pytest.param(
            [member("v", 10, klass=Class.BATCH, in_flight=1)], True, id="a batch server's requests are cut off"
        ),
        pytest.param([member("v", 10, klass=Class.BATCH)], False, id="nothing is in flight"),
        pytest.param([member("v", 10, in_flight=1)], False, id="an equal is drained"),
        pytest.param(
            [member("v", 10, in_flight=1), member("w", 10, klass=Class.BATCH, in_flight=1)],
            True,
            id="one of them is enough",
        ),
    ],
)
def test_whether_requests_in_flight_are_cut_off(victims: list[Member], *, preempt: bool) -> None:
    made = draft(*victims, member("a", 10, phase=Phase.AWAY))
    made.bring(made.node.members[name("a")], [victim(each) for each in victims], "why")
    (action,) = made.actions
    assert isinstance(action, Bring)
    assert action.preempt is preempt


def test_the_next_look_is_the_earliest_that_is_still_to_come() -> None:
    made = draft()
    made.polls += [NOW + 9, NOW - 1, NOW + 3, NOW]
    assert made.plan().next_poll == NOW + 3
    assert draft().plan().next_poll is None


# -- who waits -----------------------------------------------------------------------------------------------------------


def test_whoever_was_asked_first_is_first_and_batch_servers_come_last() -> None:
    node = node_state(
        member("late", waiting=1, oldest_wait=NOW - 1),
        member("early", waiting=1, oldest_wait=NOW - 9),
        member("batch", waiting=1, oldest_wait=NOW - 99, klass=Class.BATCH),
        member("b-tie", waiting=1, oldest_wait=NOW - 1),
        member("resident", waiting=1, phase=Phase.RESIDENT),
        member("coming", waiting=1, phase=Phase.COMING),
        member("pinned", waiting=1, pinned=True),
        member("absent", waiting=1, oldest_wait=NOW - 5, phase=Phase.ABSENT),
        member("silent", phase=Phase.AWAY),
    )
    assert [m.name for m in queues(node)] == ["early", "absent", "b-tie", "late", "batch"]


def test_a_request_of_which_nobody_knows_the_age_came_just_now() -> None:
    assert asked_at(member("a", waiting=1, oldest_wait=None), NOW) == NOW


# -- gaps ----------------------------------------------------------------------------------------------------------------


def gaps(node: NodeState, settings: PolicySettings = SETTINGS) -> Draft:
    made = Draft(node, settings)
    into_gaps(made)
    return made


def brought(made: Draft) -> list[tuple[str, tuple[str, ...]]]:
    return [(action.name, action.victims) for action in made.actions if isinstance(action, Bring)]


def test_work_comes_into_room_that_is_free() -> None:
    made = gaps(node_state(training()))
    assert brought(made) == [("training", ())]
    assert made.actions[0].why == "has work to do, and there is room"


def test_more_than_there_is_never_comes_and_says_so() -> None:
    made = gaps(node_state(training(gib=61)))
    assert (brought(made), made.reasons) == ([], {"training": "needs more than this node hands out"})


def test_while_requests_wait_for_the_same_gpu_it_stays_away() -> None:
    made = gaps(node_state(training(gib=10), member("asked", 10, waiting=1)))
    assert (brought(made), made.reasons) == ([], {"training": "interactive requests come first"})
    elsewhere = member("asked", {OTHER_GPU: 10}, waiting=1)
    assert brought(gaps(node_state(training(gib=10), elsewhere, capacity={GPU: 60, OTHER_GPU: 60}))) == [
        ("training", ())
    ]


def test_whoever_was_paused_a_moment_ago_does_not_swing() -> None:
    made = gaps(node_state(training(since=NOW - 0.4)))
    assert (brought(made), made.reasons) == ([], {"training": "has been paused a moment ago"})
    assert made.plan().next_poll == NOW + 0.6
    assert brought(gaps(node_state(training(since=NOW - 1.0)))) == [("training", ())]
    assert brought(gaps(node_state(training(since=NOW, phase=Phase.ABSENT)))) == [("training", ())], (
        "a start is no swing"
    )


@pytest.mark.parametrize(
    ("idle_s", "evicts", "comes"),
    [
        pytest.param(5.0, True, True, id="idle for long enough"),
        pytest.param(4.9, True, False, id="a moment too short"),
        pytest.param(500.0, False, False, id="where batch work may take free room only"),
    ],
)
def test_an_idle_model_makes_room_when_it_was_idle_for_long(idle_s: float, *, evicts: bool, comes: bool) -> None:
    node = node_state(member("model", 40, last_use=NOW - idle_s), training())
    made = gaps(node, PolicySettings(batch_idle=5.0, batch_evicts_idle=evicts))
    assert brought(made) == ([("training", ("model",))] if comes else [])
    if not comes:
        assert made.reasons == {"training": "waits for a gap: others use its room or were asked a moment ago"}


@pytest.mark.parametrize("busy", [{"in_flight": 1}, {"waiting": 1, "phase": Phase.RESIDENT}])
def test_a_model_with_requests_makes_no_room(busy: dict[str, Any]) -> None:
    assert brought(gaps(node_state(member("model", 40, **busy), training()))) == []


def test_equals_take_turns_and_a_turn_is_long() -> None:
    def node(turn_s: float) -> NodeState:
        here = training("here", 40, phase=Phase.RESIDENT, since=NOW - turn_s)
        return node_state(here, training("next", 40))

    assert brought(gaps(node(299.0))) == []
    assert brought(gaps(node(300.0))) == [("next", ("here",))]


def test_lower_priority_gives_way_after_a_short_run() -> None:
    def node(ran_s: float) -> NodeState:
        low = training("low", 40, priority=-1, phase=Phase.RESIDENT, since=NOW - ran_s)
        return node_state(low, training("high", 40))

    assert brought(gaps(node(1.9))) == []
    assert brought(gaps(node(2.0))) == [("high", ("low",))]


def test_the_higher_rank_comes_first_and_of_equals_who_has_been_away_longest() -> None:
    made = gaps(
        node_state(
            training("young", 30, since=NOW - 100),
            training("old", 30, since=NOW - 200),
            training("important", 30, since=NOW - 50, priority=1),
        )
    )
    assert [who for who, _ in brought(made)] == ["important", "old"]


# -- who goes by itself --------------------------------------------------------------------------------------------------


def left(*members: Member) -> tuple[list[str], float | None]:
    made = draft(*members)
    leave_in_time(made)
    assert all(isinstance(action, Leave) for action in made.actions)
    return [action.name for action in made.actions], made.plan().next_poll


@pytest.mark.parametrize(
    ("one", "goes", "again"),
    [
        pytest.param(member("a", last_use=NOW - 60, idle_s=60.0), True, None, id="its time is over"),
        pytest.param(member("a", last_use=NOW - 59, idle_s=60.0), False, NOW + 1, id="not yet: the plan says when"),
        pytest.param(
            member("a", last_use=NOW - 99, since=NOW - 9, idle_s=60.0), False, NOW + 51, id="it has just come"
        ),
        pytest.param(member("a", last_use=0), False, None, id="without such a time it stays for ever"),
        pytest.param(member("a", in_flight=1, last_use=0, idle_s=1.0), False, None, id="it works"),
        pytest.param(member("a", klass=Class.BATCH), True, None, id="batch work that nobody wants"),
        pytest.param(training(phase=Phase.RESIDENT), False, None, id="batch work that is wanted"),
        pytest.param(member("a", klass=Class.BATCH, pausable=False), False, None, id="it can't be paused now"),
        pytest.param(member("a", klass=Class.BATCH, pinned=True), False, None, id="a person said that it stays"),
    ],
)
def test_who_leaves_by_itself(one: Member, *, goes: bool, again: float | None) -> None:
    assert left(one) == (([one.name] if goes else []), again)


@pytest.mark.parametrize(
    ("idle_s", "last_use", "out"),
    [(None, 0.0, False), (60.0, NOW - 60, True), (60.0, NOW - 59.9, False)],
)
def test_whoever_has_had_no_request_for_its_own_time_is_out_of_it(
    idle_s: float | None, last_use: float, *, out: bool
) -> None:
    assert out_of_time(member("a", idle_s=idle_s, last_use=last_use), NOW) is out


# -- whatever the node looks like ----------------------------------------------------------------------------------------

MEMBERS = st.builds(
    lambda gib, phase, klass, flags: member(
        "x", gib, phase=phase, klass=klass, wanted=flags[0], pinned=flags[1], pausable=flags[2], in_flight=int(flags[3])
    ),
    st.integers(1, 40),
    st.sampled_from([Phase.RESIDENT, Phase.AWAY, Phase.ABSENT]),
    st.sampled_from(Class),
    st.tuples(*[st.booleans()] * 4),
)


@given(st.lists(MEMBERS, max_size=7))
def test_gaps_are_never_overfilled_and_nobody_is_moved_who_may_not_be(found: list[Member]) -> None:
    members = [replace(each, name=name(f"m{number}")) for number, each in enumerate(found)]
    node = node_state(*members, free={GPU: 20 * GIB})
    made = gaps(node)
    free = node.free[GPU]
    moved: list[str] = []
    for action in made.actions:
        assert isinstance(action, Bring)
        comer = node.members[action.name]
        assert comer.wanted
        assert not comer.pinned
        victims = [node.members[each] for each in action.victims]
        assert all(v.phase is Phase.RESIDENT and v.pausable and not v.pinned and not v.in_flight for v in victims)
        free += sum(v.bytes[GPU] for v in victims) - comer.bytes[GPU]
        assert free >= 0
        moved += [action.name, *action.victims]
    assert len(set(moved)) == len(moved)
