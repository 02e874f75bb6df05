"""What a worker holds: the budget of all models together, and one model's waiting requests in their order."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kybernate.proxy.held import HeldBudget, Waiting, WaitingList

pytestmark = pytest.mark.unit


def budget(requests: int = 10, size_bytes: int = 1000) -> HeldBudget:
    return HeldBudget(requests=requests, size_bytes=size_bytes)


def waiting(since: float = 0, deadline: float = 100, size: int = 1) -> Waiting:
    return Waiting(since, deadline, size)


# -- the budget ----------------------------------------------------------------------------------------------------------


def test_the_last_byte_and_the_last_request_are_given_and_nothing_beyond() -> None:
    by_bytes = budget(size_bytes=10)
    assert by_bytes.take(10)
    assert by_bytes.take(0), "nothing always fits"
    assert not by_bytes.take(1)
    by_count = budget(requests=1)
    assert by_count.take(0)
    assert not by_count.take(0)


def test_what_is_refused_costs_nothing() -> None:
    held = budget(requests=1, size_bytes=10)
    assert not held.take(11)
    assert (held.requests, held.bytes) == (0, 0)
    assert held.take(10)
    assert not held.take_bytes(1)
    assert (held.requests, held.bytes) == (1, 10)
    held.give(10)
    assert (held.requests, held.bytes) == (0, 0)


def test_bytes_that_are_here_already_are_booked_whatever_the_limit_and_lacking_to_the_next() -> None:
    held = budget(size_bytes=10)
    held.book_bytes(25)
    assert held.bytes == 25
    assert not held.take(0), "over the limit not even nothing fits"
    held.give_bytes(20)
    assert held.take_bytes(5)
    assert not held.take_bytes(1)


def test_a_limit_below_what_is_held_takes_nothing_away() -> None:
    held = budget()
    assert held.take(500)
    held.limit(requests=1, size_bytes=100)
    assert (held.requests, held.bytes) == (1, 500)
    assert not held.take(0)
    held.give(500)
    assert held.take(100)


# -- the list ------------------------------------------------------------------------------------------------------------


def test_the_first_that_came_is_the_first_to_go_but_for_one_that_is_put_in_front() -> None:
    line: WaitingList[str] = WaitingList(budget())
    for ticket in "ab":
        line.hold(ticket, waiting())
    line.hold("c", waiting(), first=True)
    assert [line.take_first() for _ in range(3)] == ["c", "a", "b"]


def test_one_for_whom_there_is_no_room_is_not_in_line() -> None:
    account = budget(requests=1)
    line: WaitingList[str] = WaitingList(account)
    assert line.hold("a", waiting())
    assert not line.hold("b", waiting())
    assert list(line) == ["a"]
    line.release("a")
    assert line.hold("b", waiting())
    assert account.requests == 1


def test_two_lines_share_one_budget() -> None:
    account = budget(requests=2)
    one: WaitingList[str] = WaitingList(account)
    other: WaitingList[str] = WaitingList(account)
    assert one.hold("a", waiting())
    assert other.hold("a", waiting())
    assert not one.hold("b", waiting())


def test_a_deadline_is_over_at_its_very_moment_and_they_go_by_deadline() -> None:
    account = budget()
    line: WaitingList[str] = WaitingList(account)
    line.hold("late", waiting(since=1, deadline=30, size=3))
    line.hold("soon", waiting(since=2, deadline=10, size=5))
    assert line.take_overdue(9.999) == []
    assert line.take_overdue(10) == [("soon", 8)]
    assert account.bytes == 3
    assert line.take_overdue(1000) == [("late", 999)]
    assert (account.requests, account.bytes) == (0, 0)


def test_equal_deadlines_go_in_the_order_of_their_coming_even_if_tickets_can_not_be_compared() -> None:
    line: WaitingList[object] = WaitingList(budget())
    first, second = object(), object()
    line.hold(first, waiting(deadline=5))
    line.hold(second, waiting(deadline=5))
    assert [ticket for ticket, _ in line.take_overdue(5)] == [first, second]


def test_one_that_came_again_has_its_new_deadline_only() -> None:
    line: WaitingList[str] = WaitingList(budget())
    line.hold("a", waiting(deadline=5))
    line.release("a")
    line.hold("a", waiting(deadline=50))
    assert line.take_overdue(49) == []
    assert line.take_overdue(50) == [("a", 50)]


def test_the_oldest_is_the_first_in_line_and_nobody_has_no_time() -> None:
    line: WaitingList[str] = WaitingList(budget())
    assert line.oldest_since() is None
    line.hold("a", waiting(since=7))
    line.hold("b", waiting(since=3))
    assert line.oldest_since() == 7


def test_a_line_through_which_thousands_go_keeps_nothing_of_them() -> None:
    """Most leave before their deadline: what is noted of it must not grow for ever."""
    line: WaitingList[int] = WaitingList(budget(requests=1000))
    line.hold(-1, waiting(deadline=1e9))
    for number in range(5000):
        line.hold(number, waiting(deadline=1e9 - number))
        line.release(number)
    assert len(line._deadlines) < 100
    assert line.take_overdue(1e9) == [(-1, 1e9)]


class Line(RuleBasedStateMachine):
    """Against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.account = budget(requests=6, size_bytes=20)
        self.line: WaitingList[int] = WaitingList(self.account)
        self.model: list[tuple[int, Waiting]] = []
        self.next = 0
        self.now = 0.0

    @rule(size=st.integers(0, 9), wait=st.integers(1, 9), first=st.booleans())
    def hold(self, size: int, wait: int, first: bool) -> None:
        entry = Waiting(self.now, self.now + wait, size)
        fits = len(self.model) < 6 and size + sum(each.size for _, each in self.model) <= 20
        assert self.line.hold(self.next, entry, first=first) is fits
        if fits:
            self.model.insert(0 if first else len(self.model), (self.next, entry))
        self.next += 1

    @precondition(lambda self: self.model)
    @rule()
    def take_first(self) -> None:
        assert self.line.take_first() == self.model.pop(0)[0]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.model))
        self.line.release(chosen[0])
        self.model.remove(chosen)

    @rule(seconds=st.integers(1, 5))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        over = self.line.take_overdue(self.now)
        expected = [(ticket, self.now - entry.since) for ticket, entry in self.model if entry.deadline <= self.now]
        assert sorted(over) == sorted(expected)
        self.model = [each for each in self.model if each[1].deadline > self.now]

    @invariant()
    def same(self) -> None:
        assert list(self.line.items()) == self.model
        assert self.account.requests == len(self.model)
        assert self.account.bytes == sum(entry.size for _, entry in self.model)


TestLine = Line.TestCase
