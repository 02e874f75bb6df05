"""Who may have VRAM and who gives it: the policy alone, no clock and no agent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.types import WorkloadName
from kybernate.node.arbiter import Candidate, Choice, Parked, Room, choose_resume, choose_victims, judge


def candidate(
    name: str,
    resident: int,
    *,
    last_use: float = 0.0,
    since: float = 0.0,
    pausable: bool = True,
    settling: bool = False,
) -> Candidate:
    return Candidate(
        name=WorkloadName(name),
        resident=resident,
        pausable=pausable,
        settling=settling,
        running_since=since,
        last_use=last_use,
    )


def choose(candidates: list[Candidate], needed: int, *, now: float = 100.0, quantum: float = 5.0) -> Choice:
    return choose_victims(candidates, requester=WorkloadName("me"), needed=needed, now=now, quantum_s=quantum)


def test_the_least_recently_used_goes_first() -> None:
    choice = choose([candidate("new", 60, last_use=9), candidate("old", 60, last_use=1)], 50)
    assert choice.victims == ("old",)


def test_as_many_as_needed_and_no_more() -> None:
    candidates = [candidate("a", 10, last_use=1), candidate("b", 20, last_use=2), candidate("c", 40, last_use=3)]
    assert choose(candidates, 25).victims == ("a", "b")
    assert choose(candidates, 40).victims == ("c",)
    assert choose(candidates, 65).victims == ("a", "b", "c")


def test_those_that_turn_out_needless_are_spared() -> None:
    candidates = [candidate("a", 10, last_use=1), candidate("big", 100, last_use=2)]
    assert choose(candidates, 80).victims == ("big",)


def test_never_the_requester() -> None:
    assert choose([candidate("me", 100)], 10) == Choice()


def test_whoever_began_just_now_is_left_its_quantum() -> None:
    fresh = candidate("fresh", 60, since=98.0)
    assert choose([fresh], 50) == Choice(wait_s=3.0)
    assert choose([fresh], 50, now=103.0).victims == ("fresh",)
    assert choose([fresh], 50, quantum=0.0).victims == ("fresh",)


def test_one_that_is_switching_is_waited_for() -> None:
    choice = choose([candidate("moving", 60, pausable=False, settling=True)], 50)
    assert choice.victims == ()
    assert choice.wait_s is not None


def test_when_nobody_can_help_there_is_nothing_to_wait_for() -> None:
    assert choose([candidate("small", 10), candidate("refuses", 90, pausable=False)], 50) == Choice()


@given(
    st.lists(
        st.builds(
            candidate,
            st.text(alphabet="abcdef", min_size=1, max_size=4),
            st.integers(0, 100),
            last_use=st.floats(0, 100),
            since=st.floats(0, 100),
            pausable=st.booleans(),
            settling=st.booleans(),
        ),
        unique_by=lambda c: c.name,
    ),
    st.integers(1, 300),
    st.floats(0, 50),
)
def test_victims_always_suffice_and_none_is_needless(candidates: list[Candidate], needed: int, quantum: float) -> None:
    choice = choose(candidates, needed, quantum=quantum)
    by_name = {c.name: c for c in candidates}
    freed = [by_name[name].resident for name in choice.victims]
    if choice.victims:
        assert choice.wait_s is None
        assert sum(freed) >= needed
        assert all(sum(freed) - one < needed for one in freed)
        assert all(by_name[v].pausable and 100.0 - by_name[v].running_since >= quantum for v in choice.victims)
    elif choice.wait_s is None:
        assert sum(c.resident for c in candidates if c.pausable or c.settling) < needed


@pytest.mark.parametrize(
    ("size", "own", "free", "handed_out", "reserved", "room"),
    [
        pytest.param(40, 0, 100, 0, 0, Room.FITS, id="fits"),
        pytest.param(40, 0, 30, 0, 0, Room.LATER, id="others in the way"),
        pytest.param(40, 0, 100, 70, 0, Room.LATER, id="over the limit for now"),
        pytest.param(40, 70, 100, 70, 0, Room.NEVER, id="own memory and this exceed what there is"),
        pytest.param(101, 0, 200, 0, 0, Room.NEVER, id="more than there is"),
        pytest.param(40, 0, 50, 0, 20, Room.LATER, id="promised to another"),
    ],
)
def test_judge(size: int, own: int, free: int, handed_out: int, reserved: int, room: Room) -> None:
    assert judge(size=size, own=own, free=free, capacity=100, handed_out=handed_out, reserved=reserved) is room


def parked(name: str, at: float, *, fits: bool = True, since: float = 0.0) -> Parked:
    return Parked(name=WorkloadName(name), paused_at=at, fits=fits, fits_since=since)


def test_the_longest_paused_that_fits_comes_back() -> None:
    waiting = [parked("late", 5), parked("early", 1), parked("first", 0, fits=False)]
    assert choose_resume(waiting, now=10, settle_s=1, somebody_waits=False) == "early"


def test_not_before_the_memory_has_been_free_for_a_while() -> None:
    assert choose_resume([parked("a", 1, since=9.5)], now=10, settle_s=1, somebody_waits=False) is None


def test_not_while_somebody_waits_for_room() -> None:
    assert choose_resume([parked("a", 1)], now=10, settle_s=1, somebody_waits=True) is None
