"""The ledger: who may enter and leave it, that states change by the table alone, and that nobody sees half a change."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.building import NOW, A, Clock, entry, on_disk, paused

from kybernate.agent.records.ledger import Entry, Ledger, refuse_ended
from kybernate.agent.records.lifecycle import ENDED, Event
from kybernate.model.errors import Conflict, NotFound
from kybernate.model.types import TierName, WorkloadState

pytestmark = pytest.mark.unit

S = WorkloadState


def ledger(*entries: Entry, clock: Clock | None = None) -> Ledger:
    made = Ledger(clock=clock or Clock(), flush=on_disk)
    for each in entries:
        made.add(each)
    return made


# -- entering and leaving ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(ENDED))
def test_an_ended_one_makes_place_for_a_new_one_of_its_name(state: S) -> None:
    new = entry(state=S.STARTING)
    assert ledger(entry(state=state), new).entry(A) is new


@pytest.mark.parametrize("state", sorted(set(S) - ENDED))
def test_a_living_one_does_not(state: S) -> None:
    with pytest.raises(Conflict, match=f"a workload named 'a' is {state} already") as refused:
        ledger(entry(state=state), entry())
    assert refused.value.hint == "choose another name, or `kybernate stop a` first"


def test_of_one_that_lies_in_a_tier_the_hint_says_that_its_state_would_go() -> None:
    with pytest.raises(Conflict) as refused:
        ledger(paused(tier=TierName.NVME), entry())
    assert refused.value.hint == "choose another name, or `kybernate stop --remove a` first"


def test_only_what_has_ended_can_be_removed() -> None:
    books = ledger(entry(state=S.EXITED))
    books.remove(A)
    assert books.get(A) is None
    with pytest.raises(NotFound, match="no workload named 'a'"):
        books.remove(A)
    with pytest.raises(Conflict, match="workload 'a' is paused"):
        ledger(paused()).remove(A)


@pytest.mark.parametrize(
    ("one", "goes"),
    [
        pytest.param(entry(external=True), True, id="an external one that runs again was never ours"),
        pytest.param(paused(external=True), False, id="a paused one is ours until it is resumed"),
        pytest.param(entry(), False, id="one of ours stays"),
    ],
)
def test_who_is_released(one: Entry, *, goes: bool) -> None:
    books = ledger(one)
    if goes:
        books.release(A)
        assert books.entries() == {}
    else:
        with pytest.raises(Conflict, match="stays in the ledger"):
            books.release(A)


def test_who_is_not_there_is_named_with_where_to_look() -> None:
    with pytest.raises(NotFound, match="no workload named 'a'") as refused:
        ledger().entry(A)
    assert refused.value.hint == "`kybernate ps` lists them"


# -- changes -------------------------------------------------------------------------------------------------------------


def test_a_new_state_begins_now_and_takes_further_fields_with_it() -> None:
    clock = Clock(NOW + 7)
    books = ledger(entry(), clock=clock)
    found = books.apply(A, Event.PAUSE, reason="for b", paused_by="arbiter")
    assert (found.state, found.since, found.reason, found.paused_by) == (S.PAUSING, NOW + 7, "for b", "arbiter")
    assert books.entry(A) is found


def test_one_that_stays_in_its_state_has_been_in_it_since_the_same_moment() -> None:
    books = ledger(entry(state=S.STOPPING))
    assert books.apply(A, Event.STOP).since == NOW - 100


def test_what_the_table_does_not_know_changes_nothing() -> None:
    books = ledger(entry())
    before = books.entry(A)
    with pytest.raises(Conflict, match="a workload that is running can't take resumed"):
        books.apply(A, Event.RESUMED, reason="no")
    assert books.entry(A) is before


def test_an_update_keeps_the_state_and_of_who_has_gone_it_is_nothing() -> None:
    books = ledger(entry())
    books.update(A, reason="new")
    assert (books.entry(A).state, books.entry(A).since, books.entry(A).reason) == (S.RUNNING, NOW - 100, "new")
    empty = ledger()
    empty.update(A, reason="new")
    assert empty.entries() == {}


# -- readers and observers -----------------------------------------------------------------------------------------------


def test_what_was_handed_out_never_changes() -> None:
    books = ledger(entry())
    seen = books.entries()
    books.apply(A, Event.PAUSE)
    books.add(entry("b"))
    assert {name: one.state for name, one in seen.items()} == {A: S.RUNNING}
    frozen: Any = seen
    with pytest.raises(TypeError):
        frozen[A] = entry()


def test_observers_are_told_in_their_order_of_each_change_when_it_has_been_made() -> None:
    books = ledger()
    told: list[tuple[str, S | None, S | None, bool]] = []

    def observer(name: str) -> Any:
        def note(old: Entry | None, new: Entry | None) -> None:
            made = books.get(A) is new
            told.append((name, None if old is None else old.state, None if new is None else new.state, made))

        return note

    books.observed_by((observer("first"), observer("second")))
    books.add(entry())
    books.apply(A, Event.EXITED)
    books.remove(A)
    assert told == [
        ("first", None, S.RUNNING, True),
        ("second", None, S.RUNNING, True),
        ("first", S.RUNNING, S.EXITED, True),
        ("second", S.RUNNING, S.EXITED, True),
        ("first", S.EXITED, None, True),
        ("second", S.EXITED, None, True),
    ]


def test_a_refused_change_tells_nobody() -> None:
    books = ledger(entry())
    told: list[object] = []
    books.observed_by([lambda old, new: told.append((old, new))])
    with pytest.raises(Conflict):
        books.add(entry())
    with pytest.raises(Conflict):
        books.remove(A)
    assert told == []


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_whatever_happens_an_entry_is_in_one_state_and_only_its_own_events_move_it(events: list[Event]) -> None:
    books = ledger(entry(state=S.STARTING))
    for event in events:
        before = books.entry(A)
        try:
            after = books.apply(A, event)
        except Conflict:
            after = before
        assert books.entry(A) is after
        assert dataclasses.replace(after, state=before.state, since=before.since) == before, "nothing else changed"


# -- orders to what has ended --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(S))
def test_what_has_ended_or_is_about_to_can_take_no_order(state: S) -> None:
    if state in {S.EXITED, S.LOST, S.STOPPING}:
        with pytest.raises(Conflict, match=f"workload a is {state} and can't be paused") as refused:
            refuse_ended(entry(state=state), "paused")
        assert refused.value.hint == "`kybernate explain a` says why; run it again"
    else:
        refuse_ended(entry(state=state), "paused")
