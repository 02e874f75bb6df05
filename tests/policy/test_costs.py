"""What a switch is expected to take, before anything was measured and after."""

from __future__ import annotations

import pytest

from kybernate.model.types import GIB, Backend, Depth, SwitchReport, TierName
from kybernate.policy.costs import PRIORS, Costs, Direction

from .node_states import name

pytestmark = pytest.mark.unit

A, B = name("a"), name("b")


def test_before_any_switch_slower_places_cost_more() -> None:
    sources = [TierName.RAM, TierName.NVME, TierName.OBJECT]
    seconds = [Costs().estimate(A, Direction.COME, source, size=40 * GIB) for source in sources]
    assert seconds == sorted(seconds)
    assert Costs().estimate(A, Direction.COME, None, size=40 * GIB) > seconds[1]


def test_its_own_switches_count_most_and_the_newest_most_of_them() -> None:
    costs = Costs().observed(A, Direction.LEAVE, TierName.RAM, seconds=2.0)
    assert costs.estimate(A, Direction.LEAVE, TierName.RAM, size=GIB) == 2.0
    for _ in range(10):
        costs = costs.observed(A, Direction.LEAVE, TierName.RAM, seconds=1.0)
    assert costs.estimate(A, Direction.LEAVE, TierName.RAM, size=GIB) == pytest.approx(1.0, abs=0.05)


def test_the_link_is_learned_from_everybody() -> None:
    slow = Costs().observed(A, Direction.COME, TierName.RAM, seconds=8.2, size=40 * GIB)
    fixed = PRIORS[Direction.COME, TierName.RAM].fixed
    assert slow.estimate(B, Direction.COME, TierName.RAM, size=20 * GIB) == pytest.approx(fixed + 4.0)
    assert slow.estimate(B, Direction.COME, TierName.NVME, size=20 * GIB) == Costs().estimate(
        B, Direction.COME, TierName.NVME, size=20 * GIB
    )


def test_a_report_of_the_engine_counts() -> None:
    report = SwitchReport("a", "resume", Depth.ZERO, Backend.BROKER, 1.1, bytes_total=40 * GIB)
    cost = Costs().reported(report, source=TierName.RAM).cost(A, size=40 * GIB, source=TierName.NVME)
    assert cost.come_prefetched == 1.1
    assert cost.come > cost.come_prefetched
