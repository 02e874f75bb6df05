"""Policies side by side on the same traces, in numbers for a benchmark or a test."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kybernate.policy.node_state import Class
from kybernate.policy.registry import Policy
from kybernate.policy.settings import PolicySettings
from kybernate.policy.simulation import Outcome, Trace, percentile, simulate


@dataclass(frozen=True, slots=True)
class Summary:
    """Of some runs together. Waits in seconds; of interactive requests, from arrival until a model begins with them."""

    requests: int
    mean: float
    p50: float
    p99: float
    worst: float
    switches: int
    batch_share: float
    """Part of the time in which batch work was resident."""
    interactive_share: float
    switching: float
    unanswered: int
    round_trips: int


def summary(outcomes: Sequence[Outcome]) -> Summary:
    waits = [wait for outcome in outcomes for wait in outcome.waits]
    duration = sum(outcome.duration for outcome in outcomes)

    def share(klass: Class) -> float:
        return sum(outcome.shares[klass] * outcome.duration for outcome in outcomes) / duration

    return Summary(
        requests=len(waits),
        mean=statistics.fmean(waits) if waits else 0.0,
        p50=percentile(waits, 0.5),
        p99=percentile(waits, 0.99),
        worst=max(waits, default=0.0),
        switches=sum(outcome.switches for outcome in outcomes),
        batch_share=share(Class.BATCH),
        interactive_share=share(Class.INTERACTIVE),
        switching=sum(outcome.switching * outcome.duration for outcome in outcomes) / duration,
        unanswered=sum(outcome.left_waiting + outcome.cut_off for outcome in outcomes),
        round_trips=sum(outcome.round_trips for outcome in outcomes),
    )


def compare(
    traces: Sequence[Trace], policies: Mapping[str, Policy], settings: PolicySettings
) -> Mapping[str, list[Outcome]]:
    """Every policy on every trace."""
    return {name: [simulate(trace, policy, settings) for trace in traces] for name, policy in policies.items()}
