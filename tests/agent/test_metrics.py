"""What the agent counts of switches, and what it says of itself when it is asked. Against a dashboard: serving/test_metrics.py."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.agent.building import entry, report
from tests.cli.views import workload

from kybernate.agent.metrics import Metrics
from kybernate.agent.records.residency import Residency
from kybernate.model.api import GpuView, JobView, NodeView, PoolView, StateView, TaskView, TierView, WorkloadView
from kybernate.model.api_history import LinkView
from kybernate.model.types import GIB, TierName, WorkloadName, WorkloadState

pytestmark = pytest.mark.unit

A = WorkloadName("a")


def node(**given: Any) -> NodeView:
    defaults: dict[str, Any] = {
        "version": "1",
        "pid": 1,
        "started": 0.0,
        "state_directory": "/s",
        "simulated": False,
        "driver_version": None,
        "gpus": [],
        "pool": None,
        "notes": [],
        "workloads": {},
    }
    return NodeView(**(defaults | given))


class Asked:
    """Metrics of an agent that stands like this, read as Prometheus reads them."""

    def __init__(self, **given: Any) -> None:
        self.node = node(**given)
        self.workloads: list[WorkloadView] = []
        self.links: list[LinkView] = []
        self.jobs: list[JobView] = []
        self.metrics = Metrics(
            node=lambda: self.node,
            workloads=lambda: self.workloads,
            links=lambda: self.links,
            jobs=lambda: self.jobs,
        )

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        """By the values of its labels, in the order of their names."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.metrics.text().decode())
            for sample in family.samples
            if sample.name == name
        }


# -- counters ------------------------------------------------------------------------------------------------------------


def test_a_switch_is_counted_once_when_it_is_reported() -> None:
    asked = Asked()
    before, after = entry(), entry(last_pause=report("pause", 0.5))
    asked.metrics.changed(before, after)
    asked.metrics.changed(after, entry(last_pause=after.last_pause, last_resume=report("resume", 0.25)))
    assert asked.of("kybernate_switch_seconds_count") == {
        ("broker", "zero", "pause"): 1,
        ("broker", "zero", "resume"): 1,
    }
    assert asked.of("kybernate_switch_seconds_sum") == {
        ("broker", "zero", "pause"): 0.5,
        ("broker", "zero", "resume"): 0.25,
    }


def test_bytes_are_counted_by_what_became_of_them() -> None:
    asked = Asked()
    for _ in range(2):
        asked.metrics.changed(entry(), entry(last_pause=report("pause")))
    assert asked.of("kybernate_switch_bytes_total") == {
        ("copied", "pause"): 12 * GIB,
        ("clean", "pause"): 6 * GIB,
        ("zero", "pause"): 2 * GIB,
    }
    assert asked.of("kybernate_switch_copy_seconds_total") == {("pause",): pytest.approx(0.8)}


def test_what_a_new_workload_brings_along_from_an_earlier_life_is_no_switch_of_now() -> None:
    asked = Asked()
    asked.metrics.changed(None, entry(last_pause=report("pause")))
    assert asked.of("kybernate_switch_seconds_count") == {}


def test_a_loss_is_counted_when_it_happens_and_not_again() -> None:
    asked = Asked()
    lost = entry("a", WorkloadState.LOST)
    asked.metrics.changed(entry(), lost)
    asked.metrics.changed(lost, entry("a", WorkloadState.LOST, reason="said again"))
    assert asked.of("kybernate_workloads_lost_total") == {(): 1}


def test_a_workload_that_is_forgotten_takes_its_places_along() -> None:
    asked = Asked()
    asked.metrics.stayed(A, Residency.VRAM, 2.5)
    asked.metrics.stayed(A, Residency.VRAM, 1.5)
    asked.metrics.stayed(WorkloadName("b"), Residency.VRAM, 9)
    assert asked.of("kybernate_workload_place_seconds_total") == {("vram", "a"): 4.0, ("vram", "b"): 9.0}
    asked.metrics.changed(entry(), None)
    assert asked.of("kybernate_workload_place_seconds_total") == {("vram", "b"): 9.0}


# -- as it stands --------------------------------------------------------------------------------------------------------


def test_every_state_is_said_also_where_nobody_is_in_it() -> None:
    found = Asked(workloads={"running": 3}).of("kybernate_workloads")
    assert found == {(str(state),): 3 if state is WorkloadState.RUNNING else 0 for state in WorkloadState}


def test_gpus_and_the_pool_are_in_bytes() -> None:
    gpu = GpuView(
        index=0, uuid="GPU-0", name="x", total_bytes=9, free_bytes=4, limit_bytes=8, resident_bytes=5, simulated=True
    )
    asked = Asked(gpus=[gpu], pool=PoolView(size_bytes=7, ready_bytes=6, free_bytes=3))
    for name, value in (("total", 9), ("free", 4), ("limit", 8), ("resident", 5)):
        assert asked.of(f"kybernate_gpu_{name}_bytes") == {("GPU-0",): value}
    assert [asked.of(f"kybernate_pool_{name}_bytes") for name in ("size", "ready", "free")] == [
        {(): 7},
        {(): 6},
        {(): 3},
    ]
    assert Asked().of("kybernate_pool_size_bytes") == {}, "a node without a GPU has none"


def test_a_tier_that_can_not_be_used_is_down_and_what_nobody_knows_is_not_said() -> None:
    tiers = [
        TierView(
            tier=TierName.NVME, where="/d", state="ready", used_bytes=5, budget_bytes=9, free_bytes=7, snapshots=2
        ),
        TierView(tier=TierName.OBJECT, where="s3://b", state="away", problem="no answer", used_bytes=3),
    ]
    asked = Asked(tiers=tiers)
    assert asked.of("kybernate_tier_up") == {("nvme",): 1, ("object",): 0}
    assert asked.of("kybernate_tier_used_bytes") == {("nvme",): 5, ("object",): 3}
    assert asked.of("kybernate_tier_budget_bytes") == {("nvme",): 9}
    assert asked.of("kybernate_tier_free_bytes") == {("nvme",): 7}
    assert asked.of("kybernate_tier_snapshots") == {("nvme",): 2, ("object",): 0}


def test_tasks_that_have_failed_are_said_with_whether_they_run_again() -> None:
    tasks = [
        TaskView(task="history", up=True, failures=2, problem="x", failed=1.0),
        TaskView(task="controller", up=False, failures=1, problem="y", failed=2.0),
    ]
    asked = Asked(tasks=tasks, workers_missing=[0, 2], state=StateView(total_bytes=10, free_bytes=1))
    assert asked.of("kybernate_task_failures_total") == {("history",): 2, ("controller",): 1}
    assert asked.of("kybernate_task_up") == {("history",): 1, ("controller",): 0}
    assert asked.of("kybernate_tasks_down") == {(): 1}
    assert asked.of("kybernate_activator_workers_missing") == {(): 2}
    assert asked.of("kybernate_state_directory_free_bytes") == {(): 1}


def test_workloads_are_counted_by_where_they_lie_and_who_lies_nowhere_is_in_no_tier() -> None:
    asked = Asked()
    asked.workloads = [workload("a"), workload("b", tier="nvme", resident_bytes=0), workload("c", tier=None)]
    assert asked.of("kybernate_workloads_in_tier") == {("vram",): 1, ("ram",): 0, ("nvme",): 1, ("object",): 0}
    assert asked.of("kybernate_workload_resident_bytes") == {("a",): 3 * GIB, ("b",): 0, ("c",): 3 * GIB}


def test_links_and_jobs() -> None:
    asked = Asked()
    asked.links = [LinkView(gpu="GPU-0", to_gpu=5e10, source="measured"), LinkView(gpu="GPU-1", source="unknown")]
    asked.jobs = [JobView(kind=kind, seconds=1.0, subject="x") for kind in ("move", "verify", "move")]
    assert asked.of("kybernate_link_bytes_per_second") == {("to_gpu", "GPU-0"): 5e10}
    assert asked.of("kybernate_jobs") == {("move",): 2, ("verify",): 1}
