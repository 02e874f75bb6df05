"""Runs of policies in numbers: sums are sums, and shares are weighted by how long each run was."""

from __future__ import annotations

import pytest

from kybernate.policy.comparison import compare, summary
from kybernate.policy.node_state import Class
from kybernate.policy.registry import POLICIES
from kybernate.policy.settings import PolicySettings
from kybernate.policy.simulation import Outcome
from kybernate.policy.traces import shipped

from .node_states import name

pytestmark = pytest.mark.unit


def outcome(
    waits: tuple[float, ...] = (),
    *,
    duration: float = 10.0,
    interactive: float = 0.0,
    batch: float = 0.0,
    **counts: int,
) -> Outcome:
    return Outcome(
        waits=waits,
        models=tuple(name("a") for _ in waits),
        cut_off=counts.get("cut_off", 0),
        left_waiting=counts.get("left_waiting", 0),
        switches=counts.get("switches", 0),
        duration=duration,
        shares={Class.INTERACTIVE: interactive, Class.BATCH: batch},
        switching=counts.get("switching", 0) / 100,
        round_trips=counts.get("round_trips", 0),
    )


def test_waits_of_all_runs_are_taken_together() -> None:
    found = summary([outcome((0.0, 1.0)), outcome((2.0, 5.0))])
    assert (found.requests, found.mean, found.p50, found.p99, found.worst) == (4, 2.0, 1.0, 5.0, 5.0)


def test_shares_are_of_the_whole_time() -> None:
    found = summary([outcome(duration=10, interactive=1.0, batch=0.5), outcome(duration=30, interactive=0.2)])
    assert found.interactive_share == pytest.approx((10 + 6) / 40)
    assert found.batch_share == pytest.approx(5 / 40)


def test_counts_are_sums_and_who_was_cut_off_was_not_answered_either() -> None:
    one = outcome(cut_off=1, left_waiting=2, switches=3, round_trips=4, switching=50)
    found = summary([one, one])
    assert (found.unanswered, found.switches, found.round_trips, found.switching) == (6, 6, 8, 0.5)


def test_without_requests_nobody_waited() -> None:
    found = summary([outcome()])
    assert (found.requests, found.mean, found.p99, found.worst) == (0, 0.0, 0.0, 0.0)


def test_every_policy_runs_on_every_trace() -> None:
    traces = [load.trace(seed=1, requests=5) for load in shipped()[:2]]
    found = compare(traces, POLICIES, PolicySettings())
    assert {policy: len(outcomes) for policy, outcomes in found.items()} == {"balanced": 2, "fifo": 2, "lru": 2}
    assert all(len(each.waits) == 5 for outcomes in found.values() for each in outcomes)
