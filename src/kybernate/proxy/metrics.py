"""Prometheus metrics of all workers, in files that the agent reads: prometheus_client's multiprocess mode.

A request only adds to plain numbers; once a second they go into the files. PROMETHEUS_MULTIPROC_DIR must be set before this
module is imported. Who reads the files says `prometheus_client.multiprocess.mark_process_dead` for workers that have ended.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from kybernate.proxy.backend import Backend
    from kybernate.proxy.request_record import RequestRecord

_WAITS: Final = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 600.0)
_OWN: Final = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1)
_TIMES: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 300.0, 600.0)


class _Batch:
    """Observations of one histogram's child, until they are written."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def write(self, child: Histogram) -> None:
        """prometheus_client observes one by one only; its buckets are counters like any other."""
        for bucket, count in zip(child._buckets, self.counts, strict=True):
            if count:
                bucket.inc(count)
        child._sum.inc(self.total)
        self.counts = [0] * len(self.counts)
        self.total = 0.0


class _OfModel:
    __slots__ = ("bytes_in", "bytes_out", "own", "seconds", "statuses", "ttfb", "waits")

    def __init__(self) -> None:
        self.statuses: dict[tuple[int, str], int] = {}
        self.waits = _Batch(_WAITS)
        self.own = _Batch(_OWN)
        self.ttfb: dict[str, _Batch] = {}
        self.seconds = _Batch(_TIMES)
        self.bytes_in = self.bytes_out = 0


class Meter:
    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._requests = Counter(
            "kybernate_requests",
            "Requests by the status they were answered with (499: the client hung up) and the tier the model came from",
            ("model", "status", "tier"),
            registry=registry,
        )
        self._waits = Histogram(
            "kybernate_request_wait_seconds", "Time held", ("model",), buckets=_WAITS, registry=registry
        )
        self._own = Histogram(
            "kybernate_request_added_seconds",
            "Time spent in the activator without being held",
            ("model",),
            buckets=_OWN,
            registry=registry,
        )
        self._ttfb = Histogram(
            "kybernate_request_first_byte_seconds",
            "From the request to the answer's first byte, holding included",
            ("model", "tier"),
            buckets=_TIMES,
            registry=registry,
        )
        self._seconds = Histogram(
            "kybernate_request_seconds",
            "From the request to the answer's last byte",
            ("model",),
            buckets=_TIMES,
            registry=registry,
        )
        self._bytes = Counter(
            "kybernate_request_bytes", "Of bodies in, of answers out", ("model", "direction"), registry=registry
        )
        self._held = Gauge(
            "kybernate_requests_held", "Held now", ("model",), registry=registry, multiprocess_mode="livesum"
        )
        self._in_flight = Gauge(
            "kybernate_requests_in_flight",
            "At the model now",
            ("model",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._errors = Counter(
            "kybernate_request_errors",
            "Requests that ended with an error of the activator's own, by its code; cut off where the answer had begun",
            ("model", "reason"),
            registry=registry,
        )
        self._models: dict[str, _OfModel] = {}
        self._failed: dict[tuple[str, str], int] = {}

    def count(self, record: RequestRecord) -> None:
        """One request is over."""
        _, name, status, tier, arrived, forwarded, answered, ended, waited, own_s, bytes_in, bytes_out, _ = record
        entry = self._models.get(name)
        if entry is None:
            entry = self._models[name] = _OfModel()
        label = (status, tier)
        entry.statuses[label] = entry.statuses.get(label, 0) + 1
        entry.bytes_in += bytes_in
        entry.bytes_out += bytes_out
        entry.seconds.observe(ended - arrived)
        if forwarded:
            entry.waits.observe(forwarded - arrived if waited else 0.0)
            entry.own.observe(own_s)
        elif waited:
            entry.waits.observe(ended - arrived)
        if answered:
            batch = entry.ttfb.get(tier)
            if batch is None:
                batch = entry.ttfb[tier] = _Batch(_TIMES)
            batch.observe(answered - arrived)

    def fail(self, model: str, reason: str) -> None:
        """One got no answer of a model's, which is empty where none was found yet. `reason` is the error's code: one of some
        twenty, none of a client's choice."""
        label = (model, reason)
        self._failed[label] = self._failed.get(label, 0) + 1

    def flush(self, backends: Iterable[Backend]) -> None:
        """To be called about once a second.

        Raises OSError where a counter can't be made for want of room; what isn't written yet is kept for the next time.
        """
        for name, entry in self._models.items():
            self._flush(name, entry)
        for label in list(self._failed):
            self._errors.labels(*label).inc(self._failed[label])
            del self._failed[label]
        for backend in backends:
            self._held.labels(backend.name).set(len(backend.queue.waiting))
            self._in_flight.labels(backend.name).set(len(backend.queue.in_flight))

    def _flush(self, name: str, entry: _OfModel) -> None:
        if not entry.statuses:
            return
        # Each child is made before anything of it is written, and the statuses go last: while there are some, it is tried again.
        entry.waits.write(self._waits.labels(name))
        entry.own.write(self._own.labels(name))
        entry.seconds.write(self._seconds.labels(name))
        for tier in list(entry.ttfb):
            entry.ttfb[tier].write(self._ttfb.labels(name, tier))
            del entry.ttfb[tier]
        self._bytes.labels(name, "in").inc(entry.bytes_in)
        entry.bytes_in = 0
        self._bytes.labels(name, "out").inc(entry.bytes_out)
        entry.bytes_out = 0
        for status, tier in list(entry.statuses):
            self._requests.labels(name, str(status), tier).inc(entry.statuses[status, tier])
            del entry.statuses[status, tier]
