"""The simulator itself, and what the default policy is worth in it against what others do. All in virtual time: nothing here is
a measurement, and every number is the same on every machine."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kybernate.model.errors import BadInput
from kybernate.model.types import GIB
from kybernate.policy.comparison import Summary, compare, summary
from kybernate.policy.node_state import Bring, Class, Leave, NodeState, Phase, Plan
from kybernate.policy.recorded import read_trace, written
from kybernate.policy.registry import DEFAULT, POLICIES
from kybernate.policy.settings import PolicySettings
from kybernate.policy.simulation import Outcome, Request, Trace, Workload, percentile, simulate
from kybernate.policy.traces import SUSTAINED, shipped

from .node_states import GPU, name

pytestmark = pytest.mark.unit

SETTINGS = PolicySettings()


def workload(text: str, gib: int = 40, **given: object) -> Workload:
    return Workload(name(text), {GPU: gib * GIB}, leave=0.5, come=1.0, **given)  # type: ignore[arg-type]


def trace(*workloads: Workload, requests: list[tuple[float, str, float]], capacity: int = 60) -> Trace:
    return Trace("t", {GPU: capacity * GIB}, workloads, tuple(Request(at, name(model), s) for at, model, s in requests))


def waits(seen: Trace, policy: str = "lru") -> tuple[float, ...]:
    return simulate(seen, POLICIES[policy], SETTINGS).waits


def test_a_request_waits_for_answers_before_it_for_a_pause_and_a_resume() -> None:
    seen = trace(workload("a"), workload("b"), requests=[(0, "a", 3.0), (2.0, "b", 1.0), (2.5, "a", 1.0)])
    # a comes: 1 s; it answers until 4, goes until 4.5, b is there at 5.5, answers until 6.5, and so on
    assert waits(seen) == pytest.approx((1.0, 3.5, 8.0 - 2.5))


def test_only_so_many_at_once() -> None:
    seen = trace(workload("a", concurrency=1), requests=[(0, "a", 3.0), (0, "a", 1.0)])
    assert waits(seen) == pytest.approx((1.0, 4.0))


def test_the_link_carries_one_resume_at_a_time() -> None:
    seen = trace(workload("a", 20), workload("b", 20), requests=[(0, "a", 3.0), (0, "b", 1.0)])
    assert waits(seen) == pytest.approx((1.0, 2.0))


def test_preempted_requests_count_as_cut_off_and_training_has_its_share() -> None:
    batch = workload("batch", klass=Class.BATCH)
    seen = trace(batch, workload("a"), requests=[(0, "batch", 100.0), (50, "a", 10.0)])
    outcome = simulate(seen, POLICIES[DEFAULT], SETTINGS)
    assert outcome.cut_off == 1
    assert outcome.waits[1] == pytest.approx(1.5)
    training = workload("training", klass=Class.BATCH, wanted=True)
    share = simulate(trace(training, workload("a"), requests=[(100, "a", 10.0)]), POLICIES[DEFAULT], SETTINGS).shares
    # it has been paused for `hysteresis`, 1 s, and comes within another
    assert share[Class.BATCH] == pytest.approx(98 / 111.5)
    assert share[Class.INTERACTIVE] == pytest.approx(10 / 111.5)


def test_a_policy_that_plans_what_can_not_be_is_found_out() -> None:
    def greedy(node: NodeState, _: PolicySettings) -> Plan:
        away = [m for m in node.members.values() if m.waiting and m.phase.value == "away"]
        return Plan(tuple(Bring(m.name, (), "hopes") for m in away))

    seen = trace(workload("a"), workload("b"), requests=[(0, "a", 1.0), (0, "b", 1.0)])
    with pytest.raises(AssertionError, match="doesn't fit"):
        simulate(seen, greedy, SETTINGS)


def test_the_same_seed_gives_the_same_trace_and_the_same_outcome() -> None:
    load = shipped()[1]
    assert load.trace(seed=3, requests=50) == load.trace(seed=3, requests=50)
    assert load.trace(seed=3, requests=50) != load.trace(seed=4, requests=50)
    again = [simulate(load.trace(seed=3, requests=50), POLICIES[DEFAULT], SETTINGS) for _ in range(2)]
    assert again[0] == again[1]


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(k) for k in range(1, 101)], 0.99) == 99.0
    assert percentile([], 0.99) == 0.0


def test_a_recorded_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    seen = shipped()[0].trace(seed=1, requests=20)
    file = tmp_path / "trace.jsonl"
    file.write_text("\n".join(written(seen)) + "\n")
    assert read_trace(file) == seen


def test_requests_alone_are_of_the_node_that_is_meant(tmp_path: Path) -> None:
    """In the order in which answers ended, on a recorder's clock, with tokens for seconds."""
    node = trace(workload("a"), workload("b"), requests=[])
    file = tmp_path / "monday.jsonl"
    file.write_text(
        '{"at_s": 1764067203.5, "model": "b", "seconds": 1.5}\n\n{"at_s": 1764067200, "model": "a", "tokens": 100}\n'
    )
    seen = read_trace(file, node=node, tokens_per_s=20)
    assert (seen.name, seen.workloads, seen.capacity) == ("monday", node.workloads, node.capacity)
    assert seen.requests == (Request(0.0, name("a"), 5.0), Request(3.5, name("b"), 1.5))
    file.write_text('{"at_s": 0, "model": "c", "tokens": 1}\n')
    with pytest.raises(BadInput, match="is for c, which isn't there"):
        read_trace(file, node=node)
    file.write_text('{"at_s": 0, "model": "a", "tokens": 1}\n{"at_s": 0, "model": "a"}\n')
    with pytest.raises(BadInput, match=r"monday.jsonl:2: .*'tokens' is missing"):
        read_trace(file, node=node)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("{}", 1),
        ('{"capacity": {"g": "1 GiB"}, "workloads": []}\n{"at_s": 1}', 2),
        ('{"capacity": {"g": "1 GiB"}, "workloads": []}\n{"at_s": 1e999, "model": "a", "seconds": 1}', 2),
        ('{"capacity": {"g": "many"}, "workloads": []}', 1),
        ('{"capacity": {"g": "1 GiB"}, "workloads": []}\n{"at_s": 1, "model": "a", "seconds": 1}', None),
    ],
)
def test_a_senseless_trace_is_one_line(tmp_path: Path, text: str, line: int | None) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(BadInput, match=f"bad.jsonl:{line}:" if line else "isn't there"):
        read_trace(file)


# -- what the default policy is worth ------------------------------------------------------------------------------------

SEEDS, REQUESTS = 2, 250
LOADS = {load.name: load for load in shipped()}
SETS = sorted({load.set for load in shipped()})
LOAD_NAMES = frozenset(load.load for load in shipped())


@cache
def outcomes(load: str) -> dict[str, list[Outcome]]:
    traces = [LOADS[load].trace(seed=seed, requests=REQUESTS) for seed in range(SEEDS)]
    return dict(compare(traces, POLICIES, SETTINGS))


def of_set(wanted: str, loads: Container[str] = LOAD_NAMES) -> dict[str, Summary]:
    runs = [outcomes(load.name) for load in shipped() if load.set == wanted and load.load in loads]
    return {policy: summary([one for run in runs for one in run[policy]]) for policy in POLICIES}


@pytest.mark.parametrize("wanted", SETS)
def test_the_default_beats_fifo_and_lru_in_mean_and_p99_on_every_set(wanted: str) -> None:
    found = of_set(wanted)
    for other in ("fifo", "lru"):
        assert found[DEFAULT].mean < found[other].mean
        assert found[DEFAULT].p99 < found[other].p99


@pytest.mark.parametrize("wanted", SETS)
def test_it_is_no_worse_where_fifo_and_lru_keep_up(wanted: str) -> None:
    """Without the load that is too much for them. A p99 there may be one answer and one switch, whatever the policy."""
    found = of_set(wanted, SUSTAINED)
    for other in ("fifo", "lru"):
        assert found[DEFAULT].mean < found[other].mean
        assert found[DEFAULT].p99 <= found[other].p99


@pytest.mark.parametrize("load", LOADS)
def test_nobody_starves_and_every_request_is_answered(load: str) -> None:
    for outcome in outcomes(load)[DEFAULT]:
        assert outcome.left_waiting == 0
        assert outcome.cut_off == 0
        # due_after, then what was before it: one more turn of each of the five, of at most 10 s and a switch
        assert max(outcome.waits) < SETTINGS.due_after + 5 * (10 + 2)


@pytest.mark.parametrize("idle_s", [2.0, 20.0, 300.0])
@pytest.mark.parametrize("load", LOADS)
def test_what_left_by_its_own_idle_time_stays_away_until_it_is_asked_for(load: str, idle_s: float) -> None:
    seen = LOADS[load].trace(seed=0, requests=100)
    idle = replace(seen, workloads=tuple(replace(each, idle=idle_s) for each in seen.workloads))
    for policy in POLICIES.values():
        outcome = simulate(idle, policy, SETTINGS)
        assert (outcome.round_trips, outcome.left_waiting) == (0, 0)


@pytest.mark.parametrize("load", LOADS)
def test_no_policy_takes_back_what_it_decided(load: str) -> None:
    assert [outcome.round_trips for found in outcomes(load).values() for outcome in found] == [0] * SEEDS * len(
        POLICIES
    )


def test_a_round_trip_is_one_that_nobody_asked_for() -> None:
    def restless(node: NodeState, _: PolicySettings) -> Plan:
        """Sends everybody away who is idle, and brings everybody back who is away."""
        actions: list[Bring | Leave] = []
        for m in node.members.values():
            if m.phase is Phase.AWAY and node.now - m.since >= 10 * (not m.waiting):
                actions.append(Bring(m.name, (), "might be asked for"))
            elif m.phase is Phase.RESIDENT and not m.in_flight and node.now - m.since >= 10:
                actions.append(Leave(m.name, "is idle"))
        return Plan(tuple(actions), next_poll=node.now + 10)

    seen = trace(workload("a"), requests=[(0, "a", 1.0), (100, "a", 1.0)])
    assert simulate(seen, restless, SETTINGS).round_trips == 2
    asked = trace(workload("a"), requests=[(float(at), "a", 1.0) for at in range(0, 100, 13)])
    assert simulate(asked, restless, SETTINGS).round_trips == 0


@settings(deadline=None, max_examples=60)
@given(
    requests=st.lists(
        st.tuples(st.floats(0, 60), st.sampled_from(["a", "b", "c", "d"]), st.floats(0.1, 10)),
        min_size=1,
        max_size=60,
    ),
    batch=st.booleans(),
)
@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_comes_all_of_it_is_answered_in_bounded_time(
    policy: str, requests: list[tuple[float, str, float]], batch: bool
) -> None:
    training = workload("training", 30, klass=Class.BATCH, wanted=True)
    models = [workload(text, gib) for text, gib in zip("abcd", (20, 30, 40, 60), strict=True)]
    seen = trace(*models, *([training] if batch else []), requests=sorted(requests))
    outcome = simulate(seen, POLICIES[policy], SETTINGS)
    assert len(outcome.waits) == len(requests)
    # Eight at once: with 60 requests a queue needs at most 8 turns of 10 s; four queues, each with its switches.
    assert max(outcome.waits) <= SETTINGS.due_after + 4 * (8 * 10 + 4)
