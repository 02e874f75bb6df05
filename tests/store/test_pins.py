"""Packs that somebody relies on stay, and during a sweep also those that were relied on for a moment."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kybernate.store.packs import PackId
from kybernate.store.pins import Pins, PinSet

pytestmark = pytest.mark.unit

A, B = PackId("a" * 32), PackId("b" * 32)


def used(pins: Pins, pack: PackId) -> bool:
    with pins.lock:
        return pins.in_use(pack)


def test_a_pack_is_in_use_until_the_last_who_relies_on_it_lets_go() -> None:
    pins = Pins()
    one, two = PinSet(pins), PinSet(pins)
    one.add(A)
    one.add(A)
    two.add(A)
    one.release()
    assert used(pins, A)
    two.release()
    two.release()
    assert not used(pins, A)
    assert not used(pins, B)


def test_during_a_sweep_what_was_in_use_for_a_moment_counts_to_its_end() -> None:
    """A manifest that names it may have been written meanwhile."""
    pins = Pins()
    before, meanwhile = PinSet(pins), PinSet(pins)
    before.add(A)
    pins.begin_sweep()
    before.release()
    meanwhile.add(B)
    meanwhile.release()
    assert used(pins, A)
    assert used(pins, B)
    pins.end_sweep()
    assert not used(pins, A)
    assert not used(pins, B)


def test_a_set_knows_what_it_relies_on() -> None:
    mine = PinSet(Pins())
    mine.add(A)
    mine.add(B)
    assert mine.packs == {A, B}
    mine.release()
    assert mine.packs == set()


class Machine(RuleBasedStateMachine):
    """Against a model: counts, and what was touched since a sweep began."""

    def __init__(self) -> None:
        super().__init__()
        self.pins = Pins()
        self.sets = [PinSet(self.pins) for _ in range(3)]
        self.held: list[set[PackId]] = [set(), set(), set()]
        self.touched: set[PackId] | None = None

    @rule(who=st.integers(0, 2), pack=st.sampled_from([A, B]))
    def add(self, who: int, pack: PackId) -> None:
        self.sets[who].add(pack)
        self.held[who].add(pack)
        if self.touched is not None:
            self.touched.add(pack)

    @rule(who=st.integers(0, 2))
    def release(self, who: int) -> None:
        self.sets[who].release()
        self.held[who].clear()

    @rule()
    def begin(self) -> None:
        self.pins.begin_sweep()
        self.touched = set().union(*self.held)

    @rule()
    def end(self) -> None:
        self.pins.end_sweep()
        self.touched = None

    @invariant()
    def agree(self) -> None:
        for pack in (A, B):
            pinned = any(pack in held for held in self.held)
            assert used(self.pins, pack) is (pinned if self.touched is None else pack in self.touched)


TestPins = Machine.TestCase
TestPins.settings = settings(max_examples=40, deadline=None)
