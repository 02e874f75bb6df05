"""Metrics in files that another process reads, and traces that a collector gets."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry
from tests.conftest import Eventually
from tests.proxy.rig import Rig, request

from kybernate.agent.serving.metrics import OfWorkers, workers_text
from kybernate.model.messages import Endpoint, Key, Load, Refuse
from kybernate.model.types import WorkloadName
from kybernate.policy.recorded import read_trace
from kybernate.policy.simulation import Trace, Workload


def test_metrics(rig: Rig, tmp_path: Path, eventually: Eventually) -> None:
    directory = tmp_path / "metrics"
    server = rig.upstream()
    rig.start("--metrics-directory", str(directory))
    rig.configure(Endpoint("m", server.port, paths=("/svc",)))
    with rig.client() as client, rig.client() as other:
        client.send(request("POST", "/v1/completions", b'{"model":"m"}'))
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        registry = CollectorRegistry()
        registry.register(OfWorkers(directory))

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(f"kybernate_{name}", {"model": "m", **labels})

        eventually(lambda: value("requests_held") == 1)
        rig.open(waited_for="ram", seconds=0.3)
        client.answer()
        for _ in range(3):
            assert client.model("m").status == 200
        assert client.model("m", x_kybernate_max_wait="x").status == 400
        other.send(request("GET", "/svc/wait"))
        eventually(lambda: value("requests_in_flight") == 1)
        other.socket.close()
        eventually(lambda: value("requests_total", status="499", tier="warm") == 1)
    assert value("requests_total", status="200", tier="ram") == 1
    assert value("requests_total", status="200", tier="warm") == 3
    assert value("requests_total", status="400", tier="warm") == 1
    assert value("requests_held") == 0
    assert value("request_wait_seconds_count") == 5
    assert value("request_wait_seconds_bucket", le="0.0") == 4
    assert value("request_first_byte_seconds_count", tier="warm") == 3
    assert value("request_added_seconds_count") == 5
    assert value("request_seconds_count") == 6
    assert value("request_bytes_total", direction="in") == 13 + 4 * 14
    assert (value("request_bytes_total", direction="out") or 0) > 1000


def test_errors_are_counted_by_their_reason(rig: Rig, tmp_path: Path, eventually: Eventually) -> None:
    """Also of those that reach no model, of which else nobody would know."""
    directory = tmp_path / "metrics"
    server = rig.upstream()
    rig.start("--metrics-directory", str(directory))
    secret = hashlib.sha256(b"secret").hexdigest()
    rig.configure(Endpoint("m", server.port, paths=("/svc",)), keys=(Key("me", secret),), hosts=())
    mine = {"x_api_key": "secret", "host": "localhost"}
    with rig.client() as client:
        for number in range(3):
            assert client.ask("GET", "/v1/models", host="localhost", x_api_key=f"guess-{number}").status == 401
        assert client.model(f"nobody-{'x' * 50}", **mine).status == 404
        assert client.ask("GET", "/nowhere", **mine).status == 404
        assert client.ask("GET", "/v1/models", x_api_key="secret", host="evil.example").status == 421
        assert client.model("m", x_kybernate_max_wait="0.01", **mine).status == 503
    with rig.client() as client:
        client.send(b"no request\r\n\r\n")
        assert client.answer().status == 400
    rig.open()
    with rig.client() as client:
        client.send(request("GET", "/svc/events", None, **mine))
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        rig.close(preempt=True)
        with contextlib.suppress(OSError):
            client.rest()
    registry = CollectorRegistry()
    registry.register(OfWorkers(directory))

    def counted() -> dict[tuple[str, str], float]:
        return {
            (sample.labels["model"], sample.labels["reason"]): sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "kybernate_request_errors_total"
        }

    wanted = {
        ("", "invalid_api_key"): 3,
        ("", "model_not_found"): 1,
        ("", "not_found"): 1,
        ("", "misdirected"): 1,
        ("m", "hold_timeout"): 1,
        ("", "bad_request"): 1,
        ("m", "preempted"): 1,
    }
    eventually(lambda: counted() == wanted, what=f"{wanted}")


def test_answered_requests_are_recorded_as_a_trace(rig: Rig, tmp_path: Path, eventually: Eventually) -> None:
    file = tmp_path / "trace.jsonl"
    server = rig.upstream()
    rig.start()
    began = time.time()
    rig.configure(Endpoint("m", server.port, names=("other",)), Endpoint("n", server.port), record=str(file))
    rig.open()
    with rig.client() as client:
        assert client.model("m").status == 200
        assert client.model("other").status == 200
        assert client.model("nobody").status == 404
        rig.agent.send(Refuse("n", 503, "is away"))
        assert client.model("n").status == 503
    lines = eventually(lambda: file.exists() and (lines := file.read_text().splitlines()) and len(lines) == 2 and lines)
    for line in map(json.loads, lines):
        assert line["model"] == "m", "the workload's name, whatever the client called it"
        assert began - 1 <= line["at_s"] <= time.time()
        assert line["seconds"] >= 0
    assert file.stat().st_mode & 0o777 == 0o600
    node = Trace("node", {}, (Workload(WorkloadName("m"), {}, leave=0.0, come=0.0),), ())
    assert len(read_trace(file, node=node).requests) == 2
    file.rename(tmp_path / "monday.jsonl")
    with rig.client() as client:
        assert client.model("m").status == 200
        eventually(file.exists, what="a new file in the place of the one that was moved away")
        rig.configure(Endpoint("m", server.port), record=str(tmp_path))  # no file can be there
        assert client.model("m").status == 200
        eventually(lambda: "requests can't be recorded" in rig.log.read_text(), what="a line about it")
        assert client.model("m").status == 200


def test_a_worker_that_has_just_opened_its_file_costs_no_metrics(tmp_path: Path) -> None:
    (tmp_path / "counter_1.db").touch()
    assert workers_text(tmp_path) == b""


class Collector(HTTPServer):
    """What was sent to it."""

    spans: list[Any]


@pytest.fixture
def collector() -> Iterator[Collector]:
    """An OTLP/HTTP collector that keeps what it gets."""
    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = Collector(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.spans = spans
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_traces(rig: Rig, collector: Collector, eventually: Eventually) -> None:
    server = rig.upstream()
    rig.start("--otlp", f"http://127.0.0.1:{collector.server_address[1]}", OTEL_BSP_SCHEDULE_DELAY="100")
    rig.configure(Endpoint("m", server.port))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with rig.client() as client:
        client.send(
            request(
                "POST", "/v1/completions", b'{"model":"m"}', traceparent=f"00-{trace}-{parent}-01", tracestate="a=b"
            )
        )
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        rig.open(waited_for="nvme", seconds=0.25, victims=("other", "third"))
        fields = dict(client.answer().json()["fields"])
        assert fields["tracestate"] == "a=b"
        spans = eventually(lambda: len(collector.spans) >= 4 and {span.name: span for span in collector.spans})
        root, hold, swap, answer = (spans[n] for n in ("POST /v1/completions", "hold", "swap", "answer"))
        assert {span.trace_id.hex() for span in (root, hold, swap, answer)} == {trace}
        assert root.parent_span_id.hex() == parent
        assert {span.parent_span_id for span in (hold, swap, answer)} == {root.span_id}
        assert fields["traceparent"] == f"00-{trace}-{root.span_id.hex()}-01", "the model's own spans hang below ours"
        attributes = {a.key: a.value for a in swap.attributes}
        assert attributes["kybernate.tier"].string_value == "nvme"
        assert attributes["kybernate.swap.seconds"].double_value == 0.25
        assert [v.string_value for v in attributes["kybernate.swap.victims"].array_value.values] == ["other", "third"]
        assert abs((swap.end_time_unix_nano - swap.start_time_unix_nano) / 1e9 - 0.25) < 0.01
        assert root.start_time_unix_nano <= hold.start_time_unix_nano + 5_000_000
        assert hold.end_time_unix_nano <= answer.start_time_unix_nano + 5_000_000
        collector.spans.clear()
        assert client.model("m").status == 200
        spans = eventually(lambda: len(collector.spans) >= 2 and {span.name: span for span in collector.spans})
        assert set(spans) == {"POST /v1/chat/completions", "answer"}
        assert spans["answer"].trace_id.hex() != trace
        collector.spans.clear()
        assert client.model("m").status == 200
    rig.started.terminate()
    assert rig.started.wait(60) == 0
    assert len(collector.spans) == 2, "the last ones are sent before it ends"


def test_what_was_refused_came_from_no_tier(rig: Rig, collector: Collector, eventually: Eventually) -> None:
    rig.start("--otlp", f"http://127.0.0.1:{collector.server_address[1]}", OTEL_BSP_SCHEDULE_DELAY="100")
    rig.configure(Endpoint("m", 1))
    with rig.client() as client:
        client.send(request("POST", "/v1/completions", b'{"model":"m"}'))
        rig.agent.wait(Load, lambda load: load.waiting == 1)
        rig.agent.send(Refuse(model="m", status=503, message="no"))
        assert client.answer().status == 503
    root = eventually(lambda: next((span for span in collector.spans if span.name == "POST /v1/completions"), None))
    told = {a.key for a in root.attributes}
    assert "kybernate.model" in told
    assert "kybernate.tier" not in told


def test_nothing_of_telemetry_is_imported_when_it_is_off(rig: Rig) -> None:
    rig.serve()
    with rig.client() as client:
        assert client.model("m").status == 200
    maps = Path(f"/proc/{rig.pid}/maps").read_text()
    assert "httptools" in maps
    assert "google/_upb" not in maps, "protobuf comes with the exporter"
