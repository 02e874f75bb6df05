"""A worker's counters: what a request adds to which, and that what waits to be written is lost by nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics import MetricWrapperBase
from tests.proxy.parts import Parts

from kybernate.model.messages import Endpoint
from kybernate.proxy.metrics import Meter, _Batch
from kybernate.proxy.request_record import RequestRecord

pytestmark = pytest.mark.unit


def record(**given_: object) -> RequestRecord:
    """One that was answered after a second, at once."""
    made = RequestRecord(
        request_id=b"1",
        model="m",
        status=200,
        tier="warm",
        arrived=100.0,
        forwarded=100.0,
        answered=100.5,
        ended=101.0,
        waited=False,
        own_s=0.0001,
        bytes_in=10,
        bytes_out=20,
        swap=None,
    )
    return made._replace(**given_)  # type: ignore[arg-type]


class Seen:
    """What a meter shows once it is flushed."""

    def __init__(self, *records: RequestRecord) -> None:
        self.meter = Meter()
        for each in records:
            self.meter.count(each)
        self.meter.flush(())

    def of(self, metric: MetricWrapperBase, suffix: str = "_total", **labels: str) -> float:
        return sum(
            sample.value
            for family in metric.collect()
            for sample in family.samples
            if sample.name.endswith(suffix) and labels.items() <= sample.labels.items()
        )


def test_requests_are_counted_by_model_status_and_tier() -> None:
    seen = Seen(record(), record(), record(status=503), record(model="n", tier="ram"))
    requests = seen.meter._requests
    assert seen.of(requests, model="m", status="200", tier="warm") == 2
    assert seen.of(requests, model="m", status="503") == 1
    assert seen.of(requests, model="n", tier="ram") == 1
    assert seen.of(requests) == 4


def test_bytes_are_added_in_each_direction() -> None:
    seen = Seen(record(), record(bytes_in=5, bytes_out=0))
    assert seen.of(seen.meter._bytes, model="m", direction="in") == 15
    assert seen.of(seen.meter._bytes, model="m", direction="out") == 20


@pytest.mark.parametrize(
    ("given_", "count", "seconds"),
    [
        pytest.param({}, 1, 0, id="sent at once"),
        pytest.param({"waited": True, "forwarded": 100.75}, 1, 0.75, id="held, then sent"),
        pytest.param({"waited": True, "forwarded": 0.0, "answered": 0.0}, 1, 1.0, id="held to its end"),
        pytest.param({"forwarded": 0.0, "answered": 0.0}, 0, 0, id="refused at once"),
        pytest.param({"forwarded": 100.75}, 1, 0, id="connecting is no holding"),
    ],
)
def test_a_wait_is_the_time_that_a_request_was_held(given_: dict[str, object], count: int, seconds: float) -> None:
    seen = Seen(record(**given_))
    assert seen.of(seen.meter._waits, "_count") == count
    assert seen.of(seen.meter._waits, "_sum") == pytest.approx(seconds)


def test_what_was_never_sent_has_no_first_byte_and_no_time_of_our_own() -> None:
    seen = Seen(record(forwarded=0.0, answered=0.0))
    assert seen.of(seen.meter._own, "_count") == 0
    assert seen.of(seen.meter._ttfb, "_count") == 0
    assert seen.of(seen.meter._seconds, "_count") == 1


def test_the_first_byte_is_counted_from_the_arrival_and_by_tier() -> None:
    seen = Seen(record(), record(tier="ram", answered=104.0, ended=105.0))
    assert seen.of(seen.meter._ttfb, "_sum", tier="warm") == pytest.approx(0.5)
    assert seen.of(seen.meter._ttfb, "_sum", tier="ram") == pytest.approx(4.0)


def test_errors_of_our_own_are_counted_by_code_also_without_a_model() -> None:
    meter = Meter()
    for model, code in (("m", "queue_full"), ("m", "queue_full"), ("", "not_found")):
        meter.fail(model, code)
    meter.flush(())
    seen = Seen()
    assert seen.of(meter._errors, model="m", reason="queue_full") == 2
    assert seen.of(meter._errors, model="", reason="not_found") == 1


def test_a_flush_writes_each_thing_once() -> None:
    seen = Seen(record())
    seen.meter.fail("m", "timeout")
    for _ in range(3):
        seen.meter.flush(())
    assert seen.of(seen.meter._requests) == 1
    assert seen.of(seen.meter._errors) == 1
    assert seen.of(seen.meter._seconds, "_count") == 1
    seen.meter.count(record())
    seen.meter.flush(())
    assert seen.of(seen.meter._requests) == 2


def test_held_and_in_flight_are_as_they_are_now() -> None:
    parts = Parts(Endpoint("m", 1))
    backend = parts.model()
    meter = Meter()
    meter.flush([backend])
    seen = Seen()
    assert seen.of(meter._held, "held", model="m") == 0
    assert seen.of(meter._in_flight, "in_flight", model="m") == 0


BOUNDS = (0.1, 0.5, 1.0)


@given(
    values=st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.1000001, 0.5, 0.75, 1.0, 2.0]), max_size=20),
    cut=st.integers(0, 20),
)
def test_observations_written_together_are_what_each_would_have_been(values: list[float], cut: int) -> None:
    """A value that is a bound lies below it, as Prometheus has it."""
    together = Histogram("a", "a", buckets=BOUNDS, registry=CollectorRegistry())
    single = Histogram("a", "a", buckets=BOUNDS, registry=CollectorRegistry())
    batch = _Batch((*BOUNDS,))
    for part in (values[:cut], values[cut:]):
        for value in part:
            batch.observe(value)
            single.observe(value)
        batch.write(together)

    def samples(histogram: Histogram) -> dict[tuple[str, str], float]:
        return {
            (sample.name, sample.labels.get("le", "")): round(sample.value, 6)
            for family in histogram.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    assert samples(together) == samples(single)
