"""A model's lease: open, closing until every worker has drained, closed; and whose word counts when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.agent.serving.lease_table import Lease, LeaseState, LeaseTable
from kybernate.model.messages import Refuse
from kybernate.model.types import WorkloadName

pytestmark = pytest.mark.unit

M = WorkloadName("m")
REFUSAL = Refuse(model="m", status=503, message="no", retry_after_s=5)


def opened(epoch: int = 3) -> Lease:
    lease = Lease()
    lease.open(epoch=epoch, network_pid=42)
    return lease


def test_a_new_one_is_closed_and_waits_for_nobody() -> None:
    lease = Lease()
    assert lease.state is LeaseState.CLOSED
    assert not lease.is_open
    assert lease.missing == set()


def test_opening_says_where_to_and_takes_a_refusal_back() -> None:
    lease = Lease()
    lease.refuse(REFUSAL)
    lease.open(epoch=7, network_pid=42)
    assert (lease.is_open, lease.epoch, lease.network_pid, lease.refusal) == (True, 7, 42, None)
    assert lease.drained.is_set()


def test_it_is_closed_once_the_last_worker_has_drained() -> None:
    lease = opened()
    lease.begin_to_close({1, 2})
    assert (lease.state, lease.drained.is_set()) == (LeaseState.CLOSING, False)
    lease.drained_at(1)
    lease.drained_at(1)
    lease.drained_at(99)
    assert (lease.state, lease.drained.is_set()) == (LeaseState.CLOSING, False)
    lease.drained_at(2)
    assert (lease.state, lease.drained.is_set()) == (LeaseState.CLOSED, True)


def test_without_workers_it_is_closed_at_once() -> None:
    lease = opened()
    lease.begin_to_close(set())
    assert (lease.state, lease.drained.is_set()) == (LeaseState.CLOSED, True)


def test_who_waits_for_an_old_closing_is_not_told_by_a_new_one() -> None:
    """It was opened in between: the event of the first closing was set then."""
    lease = opened()
    lease.begin_to_close({1})
    first = lease.drained
    lease.open(epoch=4, network_pid=42)
    assert first.is_set()
    lease.begin_to_close({1})
    assert lease.drained is not first
    assert not lease.drained.is_set()


def test_a_worker_that_drains_while_it_is_open_closes_nothing() -> None:
    lease = opened()
    lease.drained_at(1)
    assert lease.is_open


def test_an_end_needs_no_draining() -> None:
    lease = opened()
    lease.begin_to_close({1, 2})
    lease.end()
    assert (lease.state, lease.missing, lease.drained.is_set()) == (LeaseState.CLOSED, set(), True)


def test_what_workers_forward_to_by_a_predecessors_word_is_closing_until_they_drain() -> None:
    lease = Lease()
    lease.adopt(1, epoch=5)
    lease.adopt(2, epoch=4)
    assert (lease.state, lease.epoch, lease.missing) == (LeaseState.CLOSING, 5, {1, 2})
    assert not lease.drained.is_set()
    lease.drained_at(1)
    lease.drained_at(2)
    assert lease.state is LeaseState.CLOSED


def test_who_waits_is_counted() -> None:
    lease = Lease()
    lease.wait()
    lease.wait()
    lease.stop_waiting()
    assert lease.closers == 1


@given(
    steps=st.lists(
        st.one_of(
            st.just(("open",)),
            st.just(("end",)),
            st.tuples(st.just("close"), st.sets(st.integers(1, 3))),
            st.tuples(st.just("adopt"), st.integers(1, 3)),
            st.tuples(st.just("drained"), st.integers(1, 3)),
        ),
        max_size=12,
    )
)
def test_only_a_closing_one_keeps_anybody_waiting_and_only_for_somebody(steps: list[tuple[object, ...]]) -> None:
    lease = Lease()
    lease.end()
    for step in steps:
        match step:
            case ("open",):
                lease.open(epoch=lease.epoch + 1, network_pid=None)
            case ("end",):
                lease.end()
            case ("close", set() as workers):
                lease.begin_to_close(set(workers))
            case ("adopt", int() as worker) if not lease.is_open:
                lease.adopt(worker, lease.epoch)
            case ("drained", int() as worker):
                lease.drained_at(worker)
        assert lease.drained.is_set() == (lease.state is not LeaseState.CLOSING)
        assert bool(lease.missing) == (lease.state is LeaseState.CLOSING)


# -- the table -----------------------------------------------------------------------------------------------------------


def test_a_model_that_the_configuration_does_not_name_has_none() -> None:
    table = LeaseTable()
    assert table.get(M) is None
    assert not table.is_open(M)
    assert table.refusal(M) is None
    table.drop(M)
    assert list(table) == []


def test_adding_a_model_again_changes_nothing_of_its_lease() -> None:
    table = LeaseTable()
    lease = table.add(M)
    lease.open(epoch=1, network_pid=None)
    assert table.add(M) is lease
    assert table.is_open(M)
    lease.refuse(REFUSAL)
    assert table.refusal(M) is REFUSAL
    table.drop(M)
    assert not table.is_open(M)


def test_models_may_go_while_the_table_is_looked_through() -> None:
    table = LeaseTable()
    for name in "abc":
        table.add(WorkloadName(name))
    for name, _ in table:
        table.drop(name)
    assert list(table) == []
