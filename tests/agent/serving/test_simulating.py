"""A configuration as the simulator sees it: who is in it, how large, how fast, and what would never fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tests.agent.serving.building import job, model

from kybernate.agent.serving.simulating import node_of
from kybernate.model.errors import BadInput
from kybernate.model.types import GIB, Class, GpuUuid, WorkloadName
from kybernate.policy.costs import Costs
from kybernate.policy.node_state import Cost
from kybernate.policy.simulation import Trace

pytestmark = pytest.mark.unit

GPU, OTHER = GpuUuid("GPU-0"), GpuUuid("GPU-1")
A, J = WorkloadName("a"), WorkloadName("j")
SERVED = {A: model(priority=3, idle_s=60.0), J: job()}


def node(needs: Mapping[WorkloadName, Mapping[GpuUuid, int]], **given: Any) -> Trace:
    defaults: dict[str, Any] = {"served": SERVED, "capacity": {GPU: 60 * GIB}, "costs": {}}
    merged = defaults | given
    return node_of(merged.pop("served"), needs=needs, **merged)


def test_models_and_jobs_keep_their_class_and_rank_and_only_jobs_have_work_by_themselves() -> None:
    found = node({A: {GPU: 20 * GIB}, J: {GPU: 10 * GIB}})
    a, j = found.workloads
    assert (a.name, a.klass, a.priority, a.idle, a.wanted) == (A, Class.INTERACTIVE, 3, 60.0, False)
    assert (j.name, j.klass, j.wanted) == (J, Class.BATCH, True)
    assert (found.requests, found.capacity) == ((), {GPU: 60 * GIB})


def test_whoever_needs_nobody_knows_how_much_is_left_out() -> None:
    assert [each.name for each in node({J: {GPU: GIB}}).workloads] == [J]


def test_what_was_measured_counts_and_the_rest_is_guessed_by_size() -> None:
    measured = Cost(leave=0.5, come=9.0, come_prefetched=0.6)
    a, j = node({A: {GPU: 20 * GIB}, J: {GPU: 20 * GIB}}, costs={A: measured}).workloads
    assert (a.leave, a.come) == (0.5, 0.6), "everything lies in RAM"
    guess = Costs().cost(J, size=20 * GIB, source=None)
    assert (j.leave, j.come) == (guess.leave, guess.come_prefetched)


@pytest.mark.parametrize(("said", "means"), [(0, 8), (1, 1), (64, 64)])
def test_requests_at_once_are_as_many_as_the_file_says_or_what_servers_batch(said: int, means: int) -> None:
    (found,) = node({A: {GPU: GIB}}, served={A: model(concurrency=said)}).workloads
    assert found.concurrency == means


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        pytest.param({GPU: 61 * GIB}, "a needs 61.0 GiB on GPU-0, which hands out 60.0 GiB", id="more than there is"),
        pytest.param({OTHER: 1}, "a needs 1 B on GPU-1, which hands out nothing", id="on a GPU that isn't there"),
    ],
)
def test_what_would_never_fit_is_refused_with_its_numbers(needs: Mapping[GpuUuid, int], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        node({A: needs})


def test_what_just_fits_fits() -> None:
    assert len(node({A: {GPU: 60 * GIB}}).workloads) == 1
