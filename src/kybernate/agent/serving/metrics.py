"""Prometheus metrics of serving: queues, shares, staging, and what the activator's workers count in files of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from kybernate.model.api_serving import ServingView


class ServingCollector(Collector):
    """Made from a view at each time it is asked."""

    def __init__(self, view: Callable[[], ServingView]) -> None:
        self._view = view

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask the agent, which isn't complete yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        view = self._view()
        by_model = ["model"]
        waiting = GaugeMetricFamily("kybernate_served_waiting", "Requests held for a model", labels=by_model)
        oldest = GaugeMetricFamily("kybernate_served_oldest_wait_seconds", "Age of the oldest of them", labels=by_model)
        flying = GaugeMetricFamily("kybernate_served_in_flight", "Requests a model works on", labels=by_model)
        opened = GaugeMetricFamily("kybernate_served_open", "1: requests are forwarded to it", labels=by_model)
        for served in view.served:
            if served.kind != "model":
                continue
            waiting.add_metric([served.name], served.waiting)
            oldest.add_metric([served.name], served.oldest_wait_s or 0.0)
            flying.add_metric([served.name], served.in_flight)
            opened.add_metric([served.name], float(served.open))
        yield from (waiting, oldest, flying, opened)
        labels = ["workload", "class"]
        resident = CounterMetricFamily("kybernate_workload_gpu_seconds", "Time that it held VRAM", labels=labels)
        busy = CounterMetricFamily(
            "kybernate_workload_gpu_busy_seconds",
            "Of that, with requests to work on, or a job's own work",
            labels=labels,
        )
        for served in view.served:
            resident.add_metric([served.name, served.klass], served.usage.resident_s)
            busy.add_metric([served.name, served.klass], served.usage.busy_s)
        yield from (resident, busy)
        share = CounterMetricFamily("kybernate_class_vram_byte_seconds", "VRAM times time of a class", labels=["class"])
        for each in view.classes:
            share.add_metric([each.klass], each.usage.byte_s)
        yield share
        cost = GaugeMetricFamily(
            "kybernate_switch_cost_seconds",
            "What a switch takes, by what was measured lately: what policies reckon with",
            labels=["workload", "kind"],
        )
        for served in view.served:
            cost.add_metric([served.name, "leave"], served.cost.leave_s)
            cost.add_metric([served.name, "come"], served.cost.come_s)
            cost.add_metric([served.name, "come_prefetched"], served.cost.come_staged_s)
        yield cost
        staging = view.staging
        yield CounterMetricFamily("kybernate_staging_hits", "Staged ahead, and resumed", value=staging.hits)
        yield CounterMetricFamily("kybernate_staging_misses", "Staged ahead, and given up again", value=staging.misses)
        yield GaugeMetricFamily("kybernate_staging_used_bytes", "Host pool of it", value=staging.used_bytes)
        workers = GaugeMetricFamily("kybernate_activator_workers", "The activator's processes", labels=["connected"])
        connected = sum(worker.connected for worker in view.workers)
        workers.add_metric(["true"], connected)
        workers.add_metric(["false"], len(view.workers) - connected)
        yield workers


class OfWorkers(MultiProcessCollector):
    """What all workers counted together, out of the files in a directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(None, path=str(directory))  # type: ignore[no-untyped-call]
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = [str(file) for file in self._directory.glob("*.db") if _has_begun(file)]
        found: Iterable[Metric] = self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
        return found


def _has_begun(file: Path) -> bool:
    """A worker that starts has opened a file before there is anything in it."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


def workers_text(directory: Path) -> bytes:
    """What all workers counted together; empty where there never was one."""
    if not directory.is_dir():
        return b""
    registry = CollectorRegistry()
    registry.register(OfWorkers(directory))
    return generate_latest(registry)
