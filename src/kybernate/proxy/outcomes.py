"""What became of requests: counted, traced and recorded, where that is switched on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from kybernate.proxy.recording import Recorder
from kybernate.proxy.refusals import Refusal
from kybernate.proxy.request_record import RequestRecord

if TYPE_CHECKING:  # both cost time to import, and tracing needs a package that may not be there
    from opentelemetry.trace import Span

    from kybernate.proxy.backend import Backend
    from kybernate.proxy.metrics import Meter
    from kybernate.proxy.tracing import Tracing

log = structlog.get_logger()


class Outcomes:
    """None of a worker's own state: requests tell it of their ends."""

    def __init__(self, *, meter: Meter | None = None, tracing: Tracing | None = None) -> None:
        self.tracing = tracing
        self._meter = meter
        self._recorder: Recorder | None = None
        self._counting = True

    def over(self, record: RequestRecord, span: Span | None) -> None:
        if self._recorder is not None and record.forwarded and record.model and 200 <= record.status < 500:
            self._recorder.answered(record.model, arrived=record.arrived, forwarded=record.forwarded, now=record.ended)
        if self._meter is not None:
            self._meter.count(record)
        if span is not None and self.tracing is not None:
            self.tracing.end(span, record)

    def failed(self, model: str, refusal: Refusal) -> None:
        """A request ended with an error of ours. `model` is empty where none was found yet."""
        if self._meter is not None:
            self._meter.fail(model, refusal.code)

    def record_to(self, file: str | None) -> None:
        """None: no more."""
        if self._recorder is not None and str(self._recorder.path) != file:
            self._recorder.flush()
            self._recorder = None
        if self._recorder is None and file is not None:
            self._recorder = Recorder(Path(file))

    def flush_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.flush()

    def flush(self, backends: Iterable[Backend]) -> None:
        """To be called about once a second. What can't be written for want of room is kept for the next time."""
        self.flush_recording()
        if self._meter is None:
            return
        try:
            self._meter.flush(backends)
        except OSError as e:
            if self._counting:  # once, not every second
                log.warning("no room for the counters; they are written once there is", error=str(e))
            self._counting = False
        else:
            self._counting = True
