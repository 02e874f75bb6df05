"""The default policy: states of the node in, plans out. What its rule is worth is asked in test_simulation.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kybernate.model.types import GIB, TierName
from kybernate.policy.balanced import balanced
from kybernate.policy.node_state import (
    Bring,
    Class,
    Cost,
    DropPrefetched,
    Leave,
    Member,
    NodeState,
    Phase,
    Plan,
    Prefetch,
)
from kybernate.policy.registry import POLICIES
from kybernate.policy.settings import PolicySettings
from kybernate.policy.victims import preemptible

from .node_states import GPU, NOW, OTHER_GPU, member, name, node_state

pytestmark = pytest.mark.unit

SETTINGS = PolicySettings()


def plan(*members: Member, numbers: PolicySettings = SETTINGS, **given: Any) -> Plan:
    return balanced(node_state(*members, **given), numbers)


def brings(found: Plan) -> list[tuple[str, tuple[str, ...]]]:
    return [(action.name, action.victims) for action in found.actions if isinstance(action, Bring)]


def job(**given: Any) -> Member:
    given.setdefault("wanted", True)
    return member("training", given.pop("gib", 30), klass=Class.BATCH, **given)


def test_several_are_resident_while_they_fit() -> None:
    found = plan(member("here", 20), member("a", 20, waiting=1), member("b", 20, waiting=1))
    assert brings(found) == [("a", ()), ("b", ())]


def test_whoever_is_busy_stays_for_its_turn_and_the_plan_says_until_when() -> None:
    busy = member("busy", 40, in_flight=3, service_s=4.0, since=NOW - 5)
    asked = member("asked", 40, waiting=1, oldest_wait=NOW - 5)
    found = plan(busy, asked)
    assert brings(found) == []
    assert found.next_poll == NOW + 3
    assert "asked" in found.reasons
    assert brings(plan(busy, asked, now=NOW + 3)) == [("asked", ("busy",))]


def test_a_single_answer_is_let_end_but_nobody_else_is_let_in() -> None:
    found = plan(member("busy", 40, in_flight=1, since=NOW - 1), member("asked", 40, waiting=1))
    assert brings(found) == [("asked", ("busy",))]
    assert not any(isinstance(action, Bring) and action.preempt for action in found.actions)


def test_one_answer_is_not_the_end_of_a_stream_of_requests() -> None:
    arrivals = tuple((NOW - 10 + k, name("busy")) for k in range(10))
    busy = member("busy", 40, in_flight=1, since=NOW - 1, service_s=4.0, last_use=NOW)
    assert brings(plan(busy, member("asked", 40, waiting=1), arrivals=arrivals)) == []


def test_nobody_stays_against_a_request_whose_time_is_up() -> None:
    busy = member("busy", 40, in_flight=9, service_s=50.0, since=NOW - 5)
    late = member("late", 40, waiting=1, oldest_wait=NOW - SETTINGS.due_after + 1)
    assert brings(plan(busy, late)) == [("late", ("busy",))]


def test_room_isn_t_taken_away_from_one_whose_time_is_up() -> None:
    late = member("late", 60, waiting=1, oldest_wait=NOW - 31)
    found = plan(member("goes", 40, phase=Phase.LEAVING), late, member("small", 10, waiting=1))
    assert brings(found) == []
    assert set(found.reasons) == {"late", "small"}


def test_priority_comes_before_age() -> None:
    first = member("first", 40, waiting=1, oldest_wait=NOW - 1, priority=2)
    found = plan(member("here", 40), first, member("older", 40, waiting=9, oldest_wait=NOW - 9))
    assert brings(found) == [("first", ("here",))]


def test_a_lower_rank_displaces_a_higher_one_only_when_that_is_idle() -> None:
    low = member("low", 40, waiting=1)
    assert brings(plan(member("high", 40, priority=1, last_use=NOW - 1), low)) == []
    assert brings(plan(member("high", 40, priority=1, last_use=NOW - 9), low)) == [("low", ("high",))]


def test_whoever_will_be_asked_soon_is_spared() -> None:
    arrivals = (*((NOW - 299 + 10 * k, name("often")) for k in range(30)), (NOW - 6, name("rare")))
    found = plan(
        member("often", 30, last_use=NOW - 9),
        member("rare", 30, last_use=NOW - 6),
        member("asked", 30, waiting=1),
        arrivals=tuple(sorted(arrivals)),
    )
    assert brings(found) == [("asked", ("rare",))]


def test_every_gpu_of_one_that_spans_two_is_cleared() -> None:
    wide = member("wide", {GPU: 40, OTHER_GPU: 40}, waiting=1)
    found = plan(member("one", {GPU: 40}), member("two", {OTHER_GPU: 40}), wide, capacity={GPU: 60, OTHER_GPU: 60})
    assert [(a, sorted(v)) for a, v in brings(found)] == [("wide", ["one", "two"])]


def test_what_can_never_fit_says_so_and_holds_nobody_up() -> None:
    found = plan(member("huge", 90, waiting=1, oldest_wait=NOW - 60), member("asked", 40, waiting=1))
    assert brings(found) == [("asked", ())]
    assert "more than this node hands out" in found.reasons[name("huge")]


def test_training_leaves_for_a_request_at_once() -> None:
    running = job(phase=Phase.RESIDENT, since=NOW - 0.1, last_use=NOW)
    assert brings(plan(running, member("asked", 40, waiting=1))) == [("asked", ("training",))]


def test_requests_of_a_batch_server_are_cut_off_for_interactive_ones_only_where_that_is_set() -> None:
    batch = member("batch", 40, klass=Class.BATCH, in_flight=2, phase=Phase.RESIDENT)
    asked = member("asked", 40, waiting=1)
    (action,) = plan(batch, asked).actions
    assert isinstance(action, Bring)
    assert action.preempt
    (action,) = plan(batch, asked, numbers=PolicySettings(preempt=frozenset())).actions
    assert isinstance(action, Bring)
    assert not action.preempt


def test_training_comes_into_gaps_and_not_into_pauses() -> None:
    assert brings(plan(member("server", 40, last_use=NOW - 2), job())) == []
    assert plan(member("server", 40, last_use=NOW - 2), job()).next_poll == NOW + 3
    assert brings(plan(member("server", 40, last_use=NOW - 6), job())) == [("training", ("server",))]
    never = PolicySettings(batch_evicts_idle=False)
    assert brings(plan(member("server", 40, last_use=NOW - 6), job(), numbers=never)) == []
    assert brings(plan(member("server", 40, in_flight=1, last_use=NOW - 6), job())) == []
    assert brings(plan(member("server", 20), job())) == [("training", ())]


def test_training_waits_while_requests_wait() -> None:
    found = plan(
        member("busy", 35, in_flight=3, since=NOW), member("asked", 35, waiting=1), job(gib=20, since=NOW - 99)
    )
    assert brings(found) == []
    assert found.reasons[name("training")] == "interactive requests come first"


def test_equal_batch_work_takes_turns() -> None:
    other = member("other", 40, klass=Class.BATCH, wanted=True, phase=Phase.RESIDENT, since=NOW - 200, last_use=NOW)
    assert brings(plan(other, job())) == []
    assert brings(plan(other, job(), now=NOW + 101)) == [("training", ("other",))]


def test_outside_its_schedule_batch_work_leaves() -> None:
    found = plan(job(wanted=False, phase=Phase.RESIDENT))
    assert [action.name for action in found.actions if isinstance(action, Leave)] == ["training"]


def test_what_a_person_pinned_stays_as_it_is() -> None:
    pinned = member("pinned", 40, pinned=True, idle_s=1)
    found = plan(pinned, member("asked", 40, waiting=1), job(pinned=True, wanted=True))
    assert found.actions == ()
    assert set(found.reasons) == {"asked"}


def test_while_nobody_waits_the_likely_ones_come_back() -> None:
    arrivals = (*((NOW - 299 + 10 * k, name("often")) for k in range(30)), (NOW - 5, name("rare")))
    members = [member("often", 40, phase=Phase.AWAY), member("rare", 40, last_use=NOW - 3)]
    found = plan(*members, arrivals=arrivals)
    assert brings(found) == [("often", ("rare",))]
    assert brings(plan(*members, arrivals=arrivals, numbers=PolicySettings(return_home=False))) == []
    assert brings(plan(members[0], member("rare", 40, in_flight=1), arrivals=arrivals)) == []


def test_whoever_left_by_its_own_idle_time_is_brought_back_for_no_guess() -> None:
    arrivals = tuple((NOW - 299 + 10 * k, name("often")) for k in range(30))
    left = member("often", 40, phase=Phase.AWAY, last_use=NOW - 9, idle_s=4.0)
    assert brings(plan(left, arrivals=arrivals)) == []
    assert brings(plan(replace(left, idle_s=10.0), arrivals=arrivals)) == [("often", ())]
    assert brings(plan(replace(left, waiting=1, oldest_wait=NOW), arrivals=arrivals)) == [("often", ())]


SLOW = Cost(leave=0.8, come=20.0, come_prefetched=1.0)


def stored(text: str, **given: Any) -> Member:
    return member(text, 30, phase=Phase.AWAY, tier=TierName.NVME, cost=SLOW, **given)


def prefetching(found: Plan) -> list[tuple[str, str]]:
    return [
        (type(action).__name__, action.name)
        for action in found.actions
        if isinstance(action, Prefetch | DropPrefetched)
    ]


def test_what_waits_for_its_turn_is_read_ahead_within_the_budget() -> None:
    members = [
        member("busy", 60, in_flight=5, since=NOW, service_s=9.0),
        stored("asked", waiting=1),
        stored("soon", klass=Class.BATCH, wanted=False, wanted_at=NOW + 60),
        stored("later", klass=Class.BATCH, wanted=False, wanted_at=NOW + 6000),
    ]
    assert prefetching(plan(*members, prefetch_free=100 * GIB)) == [("Prefetch", "asked"), ("Prefetch", "soon")]
    assert prefetching(plan(*members, prefetch_free=40 * GIB)) == [("Prefetch", "asked")]
    assert prefetching(plan(*members, prefetch_free=0)) == []


def test_nobody_leaves_while_what_comes_is_still_read_from_the_disk() -> None:
    training, asked = job(gib=50, phase=Phase.RESIDENT), stored("asked", waiting=1)
    found = plan(training, asked, prefetch_free=40 * GIB)
    assert prefetching(found) == [("Prefetch", "asked")]
    assert brings(found) == []
    assert brings(plan(training, stored("asked", waiting=1, prefetched=True))) == [("asked", ("training",))]
    assert brings(plan(training, asked)) == [("asked", ("training",))]
    late = stored("asked", waiting=1, oldest_wait=NOW - SETTINGS.due_after / 2)
    assert brings(plan(training, late, prefetch_free=40 * GIB)) == [("asked", ("training",))]


def test_a_wrong_guess_gives_its_room_up() -> None:
    busy = member("busy", 60, in_flight=5, since=NOW, service_s=9.0)
    guess, asked = stored("guess", prefetched=True), stored("asked", waiting=1)
    likely = tuple((NOW - 3000 + 100 * k, name("guess")) for k in range(9))
    assert prefetching(plan(busy, guess, prefetch_free=0)) == [("DropPrefetched", "guess")]
    assert prefetching(plan(busy, guess, prefetch_free=0, arrivals=likely)) == []
    assert prefetching(plan(busy, guess, asked, prefetch_free=0, arrivals=likely)) == [
        ("DropPrefetched", "guess"),
        ("Prefetch", "asked"),
    ]


# -- whatever the node ------------------------------------------------------------------------------------------------

SIZES = st.dictionaries(st.sampled_from([GPU, OTHER_GPU]), st.integers(1, 50), min_size=1)


@st.composite
def members(draw: st.DrawFn, text: str) -> Member:
    phase = draw(st.sampled_from([Phase.RESIDENT, Phase.RESIDENT, Phase.AWAY, Phase.AWAY, Phase.COMING, Phase.LEAVING]))
    there = phase is Phase.RESIDENT
    klass = draw(st.sampled_from(Class))
    waiting = draw(st.integers(0, 3))
    return member(
        text,
        draw(SIZES),
        phase=phase,
        klass=klass,
        priority=draw(st.integers(0, 2)),
        waiting=waiting,
        oldest_wait=NOW - draw(st.integers(0, 60)) if waiting else None,
        in_flight=draw(st.integers(0, 3)) if there else 0,
        service_s=draw(st.none() | st.floats(0.1, 20)),
        last_use=NOW - draw(st.integers(0, 50)),
        since=NOW - draw(st.integers(0, 50)),
        wanted=klass is Class.BATCH and draw(st.booleans()),
        pausable=draw(st.booleans()) or draw(st.booleans()),
        pinned=draw(st.integers(0, 9)) == 0,
        idle_s=draw(st.none() | st.integers(1, 60)),
        tier=draw(st.sampled_from(TierName)) if phase is Phase.AWAY else None,
        prefetched=draw(st.booleans()),
    )


@st.composite
def node_states(draw: st.DrawFn) -> NodeState:
    """Never more in VRAM than there is."""
    some = [draw(members(f"m{k}")) for k in range(draw(st.integers(0, 7)))]
    capacity = {
        gpu: max(60, sum(m.bytes.get(gpu, 0) // GIB for m in some if m.phase not in (Phase.AWAY, Phase.ABSENT)))
        for gpu in (GPU, OTHER_GPU)
    }
    names = [m.name for m in some]
    when = draw(st.lists(st.integers(0, 500), max_size=20)) if names else []
    arrivals = tuple((NOW - 500 + at, draw(st.sampled_from(names))) for at in sorted(when))
    return node_state(*some, capacity=capacity, arrivals=arrivals, prefetch_free=draw(st.integers(0, 100)) * GIB)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))
@settings(deadline=None)
@given(seen=node_states())
def test_a_plan_can_always_be_carried_out(policy: Any, seen: NodeState) -> None:
    found: Plan = policy(seen, SETTINGS)
    assert policy(seen, SETTINGS) == found
    assert found.next_poll is None or found.next_poll > seen.now
    free = dict(seen.free)
    touched: list[str] = []
    for action in found.actions:
        if isinstance(action, Leave):
            leaver = seen.members[action.name]
            assert leaver.phase is Phase.RESIDENT
            assert not any((leaver.in_flight, leaver.waiting, leaver.wanted, leaver.pinned))
            touched.append(action.name)
        if not isinstance(action, Bring):
            continue
        comer = seen.members[action.name]
        victims = [seen.members[victim] for victim in action.victims]
        touched += [action.name, *action.victims]
        assert comer.phase in (Phase.AWAY, Phase.ABSENT)
        assert not comer.pinned
        assert all(v.phase is Phase.RESIDENT and v.pausable and not v.pinned for v in victims)
        for gpu, size in comer.bytes.items():
            freed = sum(v.bytes.get(gpu, 0) for v in victims)
            assert size <= free[gpu] + freed
        for v in victims:  # each of them is needed
            without = {g: sum(o.bytes.get(g, 0) for o in victims if o is not v) for g in comer.bytes}
            assert any(size > free[gpu] + without[gpu] for gpu, size in comer.bytes.items())
        cut = [v for v in victims if v.in_flight and preemptible(v, comer, SETTINGS)]
        assert action.preempt == bool(cut)
        assert all(v.klass is Class.BATCH for v in cut)
        if not comer.waiting:
            assert not any(v.in_flight or v.waiting for v in victims)
        for gpu, size in comer.bytes.items():
            free[gpu] -= max(0, size - sum(v.bytes.get(gpu, 0) for v in victims))
    assert len(touched) == len(set(touched))


@settings(deadline=None)
@given(seen=node_states())
def test_whoever_may_not_come_is_told_why(seen: NodeState) -> None:
    found = balanced(seen, SETTINGS)
    coming = {action.name for action in found.actions if isinstance(action, Bring)}
    for one in seen.members.values():
        if one.phase in (Phase.AWAY, Phase.ABSENT) and (one.waiting or one.wanted) and not one.pinned:
            assert (one.name in coming) != (one.name in found.reasons)
