"""A tier's budget: never more is granted than there is, and what was granted and not used comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.errors import NoRoom
from kybernate.model.types import GIB, MIB
from kybernate.store.budget import TierBudget

pytestmark = pytest.mark.unit


def budget(limit: int | None, used: int = 0) -> TierBudget:
    made = TierBudget("/store", limit, lambda: used)
    made.recount()
    return made


def test_a_grant_is_as_much_as_is_wanted_or_as_is_left() -> None:
    made = budget(100, used=40)
    assert made.reserve(10, 30) == 30
    assert made.reserve(10, 50) == 30, "what is left"
    with pytest.raises(NoRoom):
        made.reserve(1, 50)


def test_without_a_limit_all_is_granted() -> None:
    assert budget(None, used=1 << 60).reserve(1, 1 << 60) == 1 << 60


def test_no_room_says_how_much_there_may_be_and_how_much_there_is() -> None:
    with pytest.raises(NoRoom) as refused:
        budget(10 * GIB, used=9 * GIB).reserve(2 * GIB, 4 * GIB)
    assert refused.value.message == "/store may hold 10.0 GiB and holds 9.0 GiB: no room for 2.0 GiB more"
    assert refused.value.hint is not None
    assert "`kybernate gc`" in refused.value.hint


def test_what_was_not_used_of_a_grant_comes_back_and_what_was_is_held() -> None:
    made = budget(100)
    granted = made.reserve(1, 80)
    made.settle(granted, 30)
    usage = made.usage(free=5)
    assert (usage.used, usage.budget, usage.free) == (30, 100, 5)
    assert made.reserve(70, 70) == 70


def test_what_is_being_written_counts_as_held() -> None:
    made = budget(100, used=10)
    made.reserve(1, 20)
    assert made.usage(free=None).used == 30


def test_a_tier_that_holds_more_than_it_may_grants_nothing() -> None:
    with pytest.raises(NoRoom):
        budget(10, used=50 * MIB).reserve(1, 1)


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200)), max_size=20),
)
def test_the_limit_holds_whatever_is_asked_for(limit: int, steps: list[tuple[int, int, int]]) -> None:
    made = budget(limit)
    held = 0
    for one, other, used in steps:
        least, most = sorted((one, other))
        try:
            granted = made.reserve(least, most)
        except NoRoom:
            assert held + least > limit
            continue
        assert least <= granted <= most
        held += min(granted, used)
        made.settle(granted, min(granted, used))
        assert made.usage(None).used == held <= limit
