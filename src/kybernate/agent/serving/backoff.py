"""Who failed lately, and until when it is left alone: longer each time, up to a minute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kybernate.agent.serving.status_text import Failed
from kybernate.model.types import WorkloadName

_AGAIN_S = 1.0
_AGAIN_MAX_S = 60.0
_STEADY_S = 60.0
"""Who failed so long ago begins with a short pause again."""


@dataclass(frozen=True, slots=True)
class Failure:
    until: float
    pause_s: float
    reason: str
    public: str
    """The same for those who may not read its output."""


class Backoff:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[WorkloadName, Failure] = {}

    def add(self, name: WorkloadName, reason: str, *, public: str | None = None) -> Failure:
        """It failed just now. `public`: what everybody may know of the reason, where that isn't all of it."""
        before, now = self._last.get(name), self._clock()
        fresh = before is None or now - before.until > _STEADY_S
        pause = _AGAIN_S if before is None or fresh else min(2 * before.pause_s, _AGAIN_MAX_S)
        failure = self._last[name] = Failure(now + pause, pause, reason, reason if public is None else public)
        return failure

    def until(self, name: WorkloadName) -> float:
        """When it may be tried again; in the past where nothing keeps it."""
        failure = self._last.get(name)
        return 0.0 if failure is None else failure.until

    def reason(self, name: WorkloadName, *, public: bool) -> str:
        """Why it is left alone; empty when it isn't."""
        failure = self._last.get(name)
        if failure is None or failure.until <= self._clock():
            return ""
        return failure.public if public else failure.reason

    def last(self, name: WorkloadName, *, public: bool) -> Failed | None:
        failure = self._last.get(name)
        if failure is None:
            return None
        why = failure.public if public else failure.reason
        return Failed(failure.until - failure.pause_s, why, failure.until)

    def clear(self, name: WorkloadName) -> None:
        self._last.pop(name, None)

    def clear_all(self) -> None:
        self._last.clear()
