"""OpenTelemetry: a trace of each request, sent by OTLP over HTTP. Only imported where it is switched on.

The spans below a request's are made when it is over, from the times it kept anyway: `hold` (in the queue), `swap` (what the
agent did meanwhile, by its own word) and `answer` (from sending to the last byte). W3C's traceparent is accepted and passed on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kybernate import __version__
from kybernate.proxy.heads import RequestHead
from kybernate.proxy.request_record import RequestRecord

_NS = 1_000_000_000


class Tracing:
    """One a worker. `url` is the collector's base, or the whole URL of its traces."""

    def __init__(self, url: str, *, worker: int) -> None:
        resource = Resource.create(
            {"service.name": "kybernate-activator", "service.version": __version__, "service.instance.id": str(worker)}
        )
        endpoint = url if url.endswith("/v1/traces") else f"{url.rstrip('/')}/v1/traces"
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("kybernate.proxy", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, head: RequestHead, *, request_id: bytes, arrived: float) -> tuple[Span, bytes]:
        """The request's span, for `end`; and its traceparent towards the model. `arrived`: when, by the monotonic clock."""
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in head.named.items()
            if name == b"traceparent"
        }
        span = self._tracer.start_span(
            f"{head.method.decode()} {head.path.decode('latin-1')[:100]}",
            context=self._propagator.extract(carrier, context=Context()),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": head.method.decode(),
                "url.path": head.path.decode("latin-1"),
                "kybernate.request_id": request_id.decode(),
            },
            start_time=_wall(arrived),
        )
        context = span.get_span_context()
        return span, b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, int(context.trace_flags))

    def end(self, span: Span, record: RequestRecord) -> None:
        span.set_attribute("http.response.status_code", record.status)
        if record.model:
            span.set_attribute("kybernate.model", record.model)
            if record.forwarded:
                span.set_attribute("kybernate.tier", record.tier)
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        context = set_span_in_context(span, Context())
        if record.waited:
            self._child(context, "hold", record.arrived, record.forwarded or record.ended)
        if (swap := record.swap) is not None and swap.seconds:
            attributes: dict[str, str | float | tuple[str, ...]] = {
                "kybernate.tier": record.tier,
                "kybernate.swap.seconds": swap.seconds,
                "kybernate.swap.victims": swap.victims,
            }
            self._child(context, "swap", swap.opened_at - swap.seconds, swap.opened_at, attributes)
        if record.forwarded:
            self._child(context, "answer", record.forwarded, record.ended, {"kybernate.bytes": record.bytes_out})
        span.end(_wall(record.ended))

    def close(self) -> None:
        """Sends what isn't sent yet. Blocks."""
        self._provider.shutdown()

    def _child(
        self,
        context: Context,
        name: str,
        begin: float,
        end: float,
        attributes: Mapping[str, str | float | tuple[str, ...]] | None = None,
    ) -> None:
        self._tracer.start_span(name, context=context, attributes=attributes, start_time=_wall(begin)).end(_wall(end))


def _wall(monotonic: float) -> int:
    """Nanoseconds of the wall clock for a time of the monotonic one."""
    return time.time_ns() - int((time.monotonic() - monotonic) * _NS)
