"""Prometheus metrics: counters of switches as they happen, and the ledger as it stands when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kybernate.model.api import NodeView, WorkloadView
from kybernate.model.types import SwitchReport, TierName, WorkloadState
from kybernate.node.ledger import Entry

_BUCKETS = (0.01, 0.03, 0.06, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds; the speed bars of the product lie between them."""


class Metrics:
    """One registry an agent. `switched` is a ledger observer."""

    def __init__(self, *, node: Callable[[], NodeView], workloads: Callable[[], Iterable[WorkloadView]]) -> None:
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
        self._lost = Counter(
            "kybernate_workloads_lost", "Workloads that could not be brought back", registry=self._registry
        )
        self._registry.register(_Standing(node, workloads))

    def switched(self, old: Entry | None, new: Entry | None) -> None:
        """Count a pause or resume that has just been reported."""
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

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Standing(Collector):
    def __init__(self, node: Callable[[], NodeView], workloads: Callable[[], Iterable[WorkloadView]]) -> None:
        self._node = node
        self._workloads = workloads

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
        up = GaugeMetricFamily("kybernate_tier_up", "1: can be used; 0: away, wiped, wrong key", labels=["tier"])
        used = GaugeMetricFamily("kybernate_tier_used_bytes", "Snapshots in a tier, garbage included", labels=["tier"])
        for tier in node.tiers:
            up.add_metric([tier.tier], float(tier.problem is None))
            used.add_metric([tier.tier], tier.used_bytes)
        yield from (up, used)
        tiers = GaugeMetricFamily("kybernate_workloads_in_tier", "Workloads by where they lie", labels=["tier"])
        lying = [workload.tier for workload in self._workloads() if workload.tier is not None]
        for name in ("vram", *TierName):
            tiers.add_metric([name], lying.count(name))
        yield tiers
        resident = GaugeMetricFamily("kybernate_workload_resident_bytes", "VRAM of a workload", labels=["workload"])
        for workload in self._workloads():
            resident.add_metric([workload.name], workload.resident_bytes)
        yield resident
