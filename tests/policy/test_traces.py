"""The generated sets of requests: the same for everybody, on a node that can't hold all models, at the rates they are called by."""

from __future__ import annotations

import pytest

from kybernate.model.types import GIB
from kybernate.policy.node_state import Class
from kybernate.policy.traces import GPU, LOADS, SIZES_GIB, SUSTAINED, Load, shipped

pytestmark = pytest.mark.unit

EACH = pytest.mark.parametrize("load", [pytest.param(each, id=each.name) for each in shipped()])


def test_each_set_comes_with_all_loads_under_a_name_of_its_own() -> None:
    names = [each.name for each in shipped()]
    assert len(names) == len(set(names)) == 6 * len(LOADS)
    assert names[: len(LOADS)] == ["zipf-light", "zipf-medium", "zipf-heavy"]
    assert set(LOADS) > SUSTAINED


@EACH
def test_same_name_and_seed_same_trace_and_another_seed_another(load: Load) -> None:
    assert load.trace(seed=1, requests=50) == load.trace(seed=1, requests=50)
    assert load.trace(seed=1, requests=50).requests != load.trace(seed=2, requests=50).requests


@EACH
def test_requests_are_as_many_as_asked_in_order_and_to_models_that_there_are(load: Load) -> None:
    trace = load.trace(seed=3, requests=200)
    assert len(trace.requests) == 200
    at = [request.at for request in trace.requests]
    assert at == sorted(at)
    assert min(at) >= 0
    models = {workload.name for workload in trace.workloads if workload.klass is Class.INTERACTIVE}
    assert {request.model for request in trace.requests} <= models
    assert all(request.seconds > 0 for request in trace.requests)


@EACH
def test_all_models_never_fit_at_once_and_each_fits_alone(load: Load) -> None:
    """Else there would be nothing to decide."""
    trace = load.trace(seed=5, requests=1)
    sizes = [workload.bytes[GPU] for workload in trace.workloads]
    assert sum(sizes) > trace.capacity[GPU]
    assert max(sizes) <= trace.capacity[GPU]
    assert all(size % GIB == 0 for size in sizes)


@EACH
def test_a_load_is_about_what_it_is_called_by(load: Load) -> None:
    trace = load.trace(seed=7, requests=2000)
    rate = len(trace.requests) / trace.requests[-1].at
    assert rate == pytest.approx(LOADS[load.load], rel=0.35)


def test_which_size_is_the_popular_one_is_drawn() -> None:
    (zipf, *_) = shipped()
    popular = {
        next(workload.bytes[GPU] // GIB for workload in zipf.trace(seed=seed, requests=1).workloads)
        for seed in range(40)
    }
    assert popular == set(SIZES_GIB)


def test_a_training_job_always_has_work_and_is_asked_by_nobody() -> None:
    jobs = [w for each in shipped() for w in each.trace(seed=1, requests=1).workloads if w.klass is Class.BATCH]
    assert jobs
    assert all(job.wanted for job in jobs)
