"""The queue of one model as a state machine: nobody is lost, nobody is forwarded twice, nobody overtakes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kybernate.model.messages import Limits, Open, Refuse, Status
from kybernate.proxy.held import HeldBudget
from kybernate.proxy.queueing import Answer, Cut, Disconnect, Forward, Queue, SayDrained
from kybernate.proxy.refusals import Refusal

pytestmark = pytest.mark.unit


def queue(*, workers: int = 1, **limits: float) -> Queue[str]:
    return Queue("m", Limits(**limits), HeldBudget(requests=100, size_bytes=1000), workers=workers)  # type: ignore[arg-type]


def opened(epoch: int = 1) -> Open:
    return Open("m", epoch, None)


def test_open_forwards_oldest_first() -> None:
    q = queue()
    for number, ticket in enumerate("abc"):
        assert q.arrive(ticket, now=number, size=1) is False
    assert q.open(opened()) == [Forward("a"), Forward("b"), Forward("c")]
    assert q.arrive("d", now=3, size=1) is True


def test_who_comes_while_others_wait_waits_too() -> None:
    q = queue(concurrency=1)
    q.open(opened())
    assert q.arrive("a", now=0, size=1) is True
    assert q.arrive("b", now=0, size=1) is False
    q.share(2)
    assert list(q.in_flight) == ["a", "b"]
    assert q.arrive("c", now=0, size=1) is False
    assert q.ended("a") == [Forward("c")]


def test_workers_share_the_limits() -> None:
    q = queue(workers=3, queue=7, concurrency=6)
    assert [q.arrive(n, now=0, size=0) for n in "abc"] == [False] * 3
    refusal = q.arrive("d", now=0, size=0)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (429, "queue_full")
    assert q.open(opened()) == [Forward("a"), Forward("b")]


def test_deadlines() -> None:
    q = queue(hold_s=10)
    q.arrive("long", now=0, size=1)
    q.arrive("short", now=1, size=1, max_wait=2)
    q.arrive("longer than allowed", now=1, size=1, max_wait=100)
    assert q.tick(2.9) == []
    [answer] = q.tick(3)
    assert isinstance(answer, Answer)
    assert (answer.ticket, answer.refusal.status) == ("short", 503)
    assert [effect.ticket for effect in q.tick(11)] == ["long", "longer than allowed"]  # type: ignore[union-attr]
    none = q.arrive("none", now=0, size=1, max_wait=0)
    assert isinstance(none, Refusal)


def test_retry_after_is_what_the_agent_expects() -> None:
    q = queue(queue=0)
    for expected, told in ((None, 5.0), (0.2, 1.0), (42.0, 42.0), (1e6, 120.0)):
        q.set_status(Status("m", "paused", expected_s=expected))
        refusal = q.arrive("a", now=0, size=1)
        assert isinstance(refusal, Refusal)
        assert refusal.retry_after_s == told


def test_close_says_drained_once_nothing_is_connected() -> None:
    q = queue()
    q.open(opened())
    q.draining.on_connected()
    q.arrive("a", now=0, size=1)
    assert q.close(1, preempt=False) == [Disconnect()]
    assert q.arrive("b", now=0, size=1) is False
    assert q.ended("a") == []
    assert q.disconnected() == [SayDrained(1)]
    assert q.disconnected() == []
    assert q.close(1, preempt=False) == [Disconnect(), SayDrained(1)]
    q.open(opened(2))
    assert list(q.in_flight) == ["b"]


def test_drained_is_said_even_if_others_wait() -> None:
    q = queue()
    q.open(opened())
    q.arrive("a", now=0, size=1)
    q.close(1, preempt=False)
    q.arrive("b", now=0, size=1)
    assert q.ended("a") == [SayDrained(1)]


def test_an_open_takes_a_close_back() -> None:
    q = queue()
    q.open(opened())
    q.arrive("a", now=0, size=1)
    q.close(1, preempt=False)
    q.open(opened(2))
    assert q.ended("a") == []


def test_preemption() -> None:
    q = queue()
    q.open(opened())
    q.arrive("a", now=0, size=1)
    cut, disconnect = q.close(1, preempt=True)
    assert isinstance(cut, Cut)
    assert (cut.ticket, cut.refusal.status, disconnect) == ("a", 502, Disconnect())
    assert q.ended("a") == [SayDrained(1)]


def test_one_that_could_not_be_sent_is_first_again() -> None:
    q = queue(hold_s=10)
    q.open(opened())
    q.arrive("a", now=0, size=5)
    q.close(1, preempt=False)
    q.arrive("b", now=1, size=1)
    assert q.returned("a", now=2, since=0, size=5) == [SayDrained(1)], "nothing flies and nothing is connected"
    assert list(q.waiting) == ["a", "b"]
    assert [effect.ticket for effect in q.tick(10)] == ["a"]  # type: ignore[union-attr]
    assert q.open(opened(2)) == [Forward("b")]


class Lives(RuleBasedStateMachine):
    """Random events against a model of what must hold; effects are carried out like the worker does."""

    @initialize(concurrency=st.integers(0, 3), limit=st.integers(0, 6))
    def begin(self, concurrency: int, limit: int) -> None:
        self.budget = HeldBudget(requests=5, size_bytes=40)
        self.limits = Limits(concurrency=concurrency, queue=limit, hold_s=20)
        self.q: Queue[int] = Queue("m", self.limits, self.budget)
        self.now = 0.0
        self.next = 0
        self.came: set[int] = set()
        self.flying: list[int] = []
        self.held: list[int] = []
        self.over: set[int] = set()
        self.closes = 0
        self.connected = False
        self.sizes: dict[int, int] = {}

    def carry_out(self, effects: list) -> None:  # type: ignore[type-arg]
        for effect in effects:
            match effect:
                case Forward(ticket):
                    assert ticket == self.held.pop(0), "who waits longest goes first"
                    self.flying.append(ticket)
                case Answer(ticket, _):
                    self.held.remove(ticket)
                    self.finish(ticket)
                case Cut(ticket, _):
                    self.flying.remove(ticket)
                    self.finish(ticket)
                    self.carry_out(self.q.ended(ticket))
                case SayDrained():
                    assert not self.flying
                    assert not self.connected
                    assert not self.q.is_open
                    self.closes -= 1

    def finish(self, ticket: int) -> None:
        assert ticket not in self.over, "answered twice"
        self.over.add(ticket)

    @rule(size=st.integers(0, 15), wait=st.none() | st.integers(0, 30))
    def arrive(self, size: int, wait: int | None) -> None:
        ticket, self.next = self.next, self.next + 1
        self.came.add(ticket)
        self.sizes[ticket] = size
        verdict = self.q.arrive(ticket, now=self.now, size=size, max_wait=wait)
        if verdict is True:
            assert not self.held
            self.flying.append(ticket)
        elif verdict is False:
            self.held.append(ticket)
        else:
            assert verdict.status in (404, 429, 503)
            self.over.add(ticket)

    @rule(seconds=st.integers(1, 9))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        self.carry_out(self.q.tick(self.now))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def end_one(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.flying))
        self.flying.remove(ticket)
        self.finish(ticket)
        self.carry_out(self.q.ended(ticket))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def give_one_back(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.flying))
        self.flying.remove(ticket)
        self.held.insert(0, ticket)
        self.carry_out(self.q.returned(ticket, now=self.now, since=self.now, size=self.sizes[ticket]))

    @precondition(lambda self: self.held or self.flying)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.held + self.flying))
        (self.held if ticket in self.held else self.flying).remove(ticket)
        self.finish(ticket)
        self.carry_out(self.q.hang_up(ticket))

    @rule()
    def open(self) -> None:
        self.closes = 0
        self.carry_out(self.q.open(opened()))

    @rule(preempt=st.booleans())
    def close(self, preempt: bool) -> None:
        self.closes += 1
        self.carry_out(self.q.close(1, preempt=preempt))

    @rule(connected=st.booleans())
    def connect(self, connected: bool) -> None:
        self.connected = connected
        if connected:
            self.q.draining.on_connected()
        else:
            self.carry_out(self.q.disconnected())

    @rule(share=st.integers(0, 3))
    def share(self, share: int) -> None:
        self.carry_out(self.q.share(share))

    @rule(ends=st.booleans())
    def refuse(self, ends: bool) -> None:
        self.carry_out(self.q.refuse(Refuse("m", 503, "no")))
        if ends:
            self.q.set_status(Status("m", "paused"))

    @invariant()
    def nobody_is_lost(self) -> None:
        if not hasattr(self, "q"):
            return
        assert set(self.held) | set(self.flying) | self.over == self.came
        assert list(self.q.waiting) == self.held
        assert set(self.q.in_flight) == set(self.flying)
        assert self.budget.requests == len(self.held)
        assert self.budget.bytes == sum(self.sizes[ticket] for ticket in self.held)
        assert self.budget.requests <= 5
        assert self.closes >= 0
        if not self.flying and not self.connected:
            assert not self.closes, "a close that nobody answers"


Lives.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestLives = Lives.TestCase
