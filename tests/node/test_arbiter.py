"""Whether there is room, and who comes back into it: no clock and no agent."""

from __future__ import annotations

import pytest

from kybernate.model.types import WorkloadName
from kybernate.node.arbiter import Parked, Room, choose_resume, judge


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
