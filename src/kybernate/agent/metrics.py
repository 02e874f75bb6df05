"""Prometheus metrics: counters of switches as they happen, and the ledger as it stands when it is asked for."""

from __future__ import annotations

from collections import Counter as Counted
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kybernate.agent.records.history import switched_view
from kybernate.agent.records.ledger import Entry
from kybernate.agent.records.residency import Residency
from kybernate.model.api import JobView, NodeView, WorkloadView
from kybernate.model.api_history import LinkView
from kybernate.model.types import SwitchReport, TierName, WorkloadName, WorkloadState

_BUCKETS = (0.01, 0.03, 0.06, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds; the speed bars of the product lie between them."""


class Metrics:
    """One registry an agent. `changed` is a ledger observer, `stayed` is told by the history."""

    def __init__(
        self,
        *,
        node: Callable[[], NodeView],
        workloads: Callable[[], Iterable[WorkloadView]],
        links: Callable[[], Iterable[LinkView]],
        jobs: Callable[[], Iterable[JobView]],
    ) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "kybernate_switch_seconds",
            "Duration of pauses and resumes",
            ("operation", "depth", "backend"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._bytes = Counter(
            "kybernate_switch_bytes",
            "Content of pauses and resumes by what became of it",
            ("operation", "kind"),
            registry=self._registry,
        )
        self._copying = Counter(
            "kybernate_switch_copy_seconds",
            "Time that pauses and resumes spent copying; with kybernate_switch_bytes_total, kind copied, the bandwidth",
            ("operation",),
            registry=self._registry,
        )
        self._places = Counter(
            "kybernate_workload_place_seconds",
            "Time that a workload spent in each place since this agent's start",
            ("workload", "place"),
            registry=self._registry,
        )
        self._lost = Counter(
            "kybernate_workloads_lost", "Workloads that could not be brought back", registry=self._registry
        )
        self._registry.register(_Standing(node, workloads, links, jobs))

    def register(self, collector: Collector) -> None:
        """More to say whenever somebody asks."""
        self._registry.register(collector)

    def stayed(self, name: WorkloadName, residency: Residency, seconds: float) -> None:
        self._places.labels(name, residency).inc(seconds)

    def changed(self, old: Entry | None, new: Entry | None) -> None:
        """Count a pause or resume that has just been reported."""
        if old is not None and new is None:
            self._places.remove_by_labels({"workload": old.name})
        if old is None or new is None:
            return
        for before, after in ((old.last_pause, new.last_pause), (old.last_resume, new.last_resume)):
            if after is not None and after is not before:
                self._count(after)
        if new.state is WorkloadState.LOST and old.state is not WorkloadState.LOST:
            self._lost.inc()

    def _count(self, report: SwitchReport) -> None:
        self._seconds.labels(report.operation, report.depth, report.backend).observe(report.seconds)
        for kind in ("copied", "clean", "zero"):
            self._bytes.labels(report.operation, kind).inc(getattr(report, f"bytes_{kind}"))
        self._copying.labels(report.operation).inc(switched_view(report, 0.0).copy_s or 0.0)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Standing(Collector):
    def __init__(
        self,
        node: Callable[[], NodeView],
        workloads: Callable[[], Iterable[WorkloadView]],
        links: Callable[[], Iterable[LinkView]],
        jobs: Callable[[], Iterable[JobView]],
    ) -> None:
        self._node = node
        self._workloads = workloads
        self._links = links
        self._jobs = jobs

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask the agent, which isn't complete yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        node = self._node()
        states = GaugeMetricFamily("kybernate_workloads", "Workloads by state", labels=["state"])
        for state in WorkloadState:
            states.add_metric([state], node.workloads.get(state, 0))
        yield states
        for field, text in (
            ("total_bytes", "VRAM"),
            ("free_bytes", "VRAM that nobody holds"),
            ("limit_bytes", "VRAM handed out at most"),
            ("resident_bytes", "VRAM in extents of workloads"),
        ):
            family = GaugeMetricFamily(f"kybernate_gpu_{field}", text, labels=["gpu"])
            for gpu in node.gpus:
                family.add_metric([gpu.uuid], getattr(gpu, field))
            yield family
        if node.pool is not None:
            for field, text in (("size", "Host pool"), ("ready", "Host pool made so far"), ("free", "Host pool free")):
                value = getattr(node.pool, f"{field}_bytes")
                yield GaugeMetricFamily(f"kybernate_pool_{field}_bytes", text, value=value)
        yield from _agent(node)
        yield from _tiers(node)
        yield from _workloads(list(self._workloads()))
        link = GaugeMetricFamily(
            "kybernate_link_bytes_per_second", "What the link can do at best", labels=["gpu", "direction"]
        )
        for limit in self._links():
            for direction, rate in (("to_gpu", limit.to_gpu), ("to_host", limit.to_host)):
                if rate is not None:
                    link.add_metric([limit.gpu, direction], rate)
        yield link
        running = GaugeMetricFamily("kybernate_jobs", "Long steps of the store under way", labels=["kind"])
        for kind, number in Counted(job.kind for job in self._jobs()).items():
            running.add_metric([kind], number)
        yield running


def _agent(node: NodeView) -> Iterable[Metric]:
    failures = CounterMetricFamily(
        "kybernate_task_failures", "Failures of the agent's background tasks since its start", labels=["task"]
    )
    up = GaugeMetricFamily(
        "kybernate_task_up",
        "Of tasks that have failed: 1 where it runs again, 0 where it waits for that",
        labels=["task"],
    )
    for task in node.tasks:
        failures.add_metric([task.task], task.failures)
        up.add_metric([task.task], float(task.up))
    yield from (failures, up)
    down = sum(not task.up for task in node.tasks)
    yield GaugeMetricFamily("kybernate_tasks_down", "Background tasks of the agent that wait to run again", value=down)
    if node.state is not None:
        for field, text in (("total", "The file system of the agent's directory"), ("free", "What is left there")):
            value = getattr(node.state, f"{field}_bytes")
            yield GaugeMetricFamily(f"kybernate_state_directory_{field}_bytes", text, value=value)
    yield GaugeMetricFamily(
        "kybernate_activator_workers_missing",
        "Processes of the activator to which clients can't connect",
        value=len(node.workers_missing),
    )


def _tiers(node: NodeView) -> Iterable[Metric]:
    up = GaugeMetricFamily("kybernate_tier_up", "1: can be used; 0: away, wiped, wrong key", labels=["tier"])
    used = GaugeMetricFamily("kybernate_tier_used_bytes", "Snapshots in a tier, garbage included", labels=["tier"])
    budget = GaugeMetricFamily("kybernate_tier_budget_bytes", "What they may take there", labels=["tier"])
    free = GaugeMetricFamily("kybernate_tier_free_bytes", "What the tier has left", labels=["tier"])
    snapshots = GaugeMetricFamily("kybernate_tier_snapshots", "Snapshots in a tier", labels=["tier"])
    for tier in node.tiers:
        up.add_metric([tier.tier], float(tier.problem is None))
        used.add_metric([tier.tier], tier.used_bytes)
        snapshots.add_metric([tier.tier], tier.snapshots)
        if tier.budget_bytes is not None:
            budget.add_metric([tier.tier], tier.budget_bytes)
        if tier.free_bytes is not None:
            free.add_metric([tier.tier], tier.free_bytes)
    return (up, used, budget, free, snapshots)


def _workloads(workloads: list[WorkloadView]) -> Iterable[Metric]:
    tiers = GaugeMetricFamily("kybernate_workloads_in_tier", "Workloads by where they lie", labels=["tier"])
    lying = [workload.tier for workload in workloads if workload.tier is not None]
    for name in ("vram", *TierName):
        tiers.add_metric([name], lying.count(name))
    resident = GaugeMetricFamily("kybernate_workload_resident_bytes", "VRAM of a workload", labels=["workload"])
    copies = GaugeMetricFamily(
        "kybernate_workload_host_copy_bytes", "Content of a workload in the host pool", labels=["workload"]
    )
    last = GaugeMetricFamily(
        "kybernate_workload_switch_seconds", "What its last switch took", labels=["workload", "operation"]
    )
    for workload in workloads:
        resident.add_metric([workload.name], workload.resident_bytes)
        copies.add_metric([workload.name], workload.host_copy_bytes)
        for report in (workload.last_pause, workload.last_resume):
            if report is not None:
                last.add_metric([workload.name, report.operation], report.seconds)
    return (tiers, resident, copies, last)
