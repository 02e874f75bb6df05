"""How many requests wait and fly, from what each worker last said, and how many each may send."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.agent.serving.worker_load import WorkerLoads, shares
from kybernate.model.messages import Load
from kybernate.model.types import WorkloadName

pytestmark = pytest.mark.unit

A = WorkloadName("a")


def load(*, waiting: int = 0, in_flight: int = 0, begun: int = 0, ended: int = 0, oldest: float | None = None) -> Load:
    return Load("a", 1, waiting, oldest, in_flight, begun, ended)


def test_loads_of_two_workers_add_up() -> None:
    loads = WorkerLoads()
    loads.update(1, load(waiting=2, begun=2, oldest=3.0), now=100.0)
    loads.update(2, load(in_flight=1, waiting=1, begun=2, oldest=1.0), now=100.0)
    demand = loads.demand(A, 101.0)
    assert (demand.waiting, demand.in_flight, demand.begun, demand.oldest_wait) == (3, 1, 4, 97.0)
    loads.update(1, load(begun=5, ended=5), now=102.0)
    loads.on_disconnected(2)
    demand = loads.demand(A, 110.0)
    assert (demand.waiting, demand.in_flight, demand.begun, demand.ended, demand.last_use) == (0, 0, 7, 5, 102.0)
    assert loads.arrivals() == ((102.0, A),) * 3, "what was counted before the first word is no arrival of now"


def test_streams_that_are_only_open_are_no_use() -> None:
    loads = WorkerLoads()
    loads.update(1, load(in_flight=1, begun=1), now=100.0)
    loads.update(1, dataclasses.replace(load(in_flight=1, begun=1), still=1), now=220.0)
    demand = loads.demand(A, 300.0)
    assert (demand.in_flight, demand.last_use) == (0, 100.0)
    assert loads.by_worker(A)[1].in_flight == 1, "it is sent to the model all the same"
    loads.update(1, load(in_flight=1, begun=1), now=310.0)
    assert (loads.demand(A, 320.0).in_flight, loads.demand(A, 320.0).last_use) == (1, 320.0)


@given(
    limit=st.integers(1, 50),
    demands=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=6),
)
def test_shares_hand_out_the_limit_and_leave_what_flies(limit: int, demands: list[tuple[int, int]]) -> None:
    flying = [in_flight for _, in_flight in demands]
    said = {k: load(waiting=waiting, in_flight=in_flight) for k, (waiting, in_flight) in enumerate(demands)}
    found = shares(limit, said, dict.fromkeys(said, 0))
    if sum(flying) <= limit:
        assert sum(found.values()) == limit
        assert all(found[k] >= flying[k] for k in said) or len(said) == 1
        hungry = [k for k in said if said[k].waiting > found[k] - flying[k]]
        idle = [k for k in said if not said[k].waiting and found[k] > flying[k]]
        assert not (hungry and idle and len(said) > 1), "nobody waits while another has more than it uses"
