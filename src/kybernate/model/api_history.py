"""What crosses the REST API about the past: who held VRAM when, what each switch cost, how fast the link was.

As in api.py: sizes in bytes, times in seconds, points in time in seconds since the epoch.
"""

# ruff: noqa: RUF012 - pydantic copies defaults; ruff knows that only of direct subclasses

from __future__ import annotations

from kybernate.model.api import Answer, StepView


class IntervalView(Answer):
    """A workload was in one place for a while."""

    id: int
    """Grows with the beginning; the same interval keeps it until it ends."""
    workload: str
    place: str
    """`vram`, `ram`, `nvme`, `object`, or `switching`: on its way, starting and stopping included."""
    began: float
    ended: float | None = None
    """None: it is there now."""
    bytes: int = 0
    """VRAM that it held at most meanwhile or, where it was away, needs back."""


class SwitchedView(Answer):
    """One pause or resume."""

    time: float
    """When it was over."""
    workload: str
    operation: str
    depth: str
    seconds: float
    bytes_total: int
    bytes_copied: int
    bytes_clean: int
    bytes_zero: int
    copy_s: float | None = None
    """Of that, the step that copied, waiting for others' room included. None where nothing was copied."""
    bytes_per_s: float | None = None
    """Copied in that step. None where too little was copied to say."""
    steps: list[StepView] = []


class LinkView(Answer):
    """What the link between host and a GPU can do at best, in bytes a second."""

    gpu: str
    to_gpu: float | None = None
    to_host: float | None = None
    source: str
    """`measured` at the agent's start, `simulated` (set, not measured), or `unknown`."""


class HistoryView(Answer):
    now: float
    since: float
    """It is complete from then on."""
    intervals: list[IntervalView]
    switches: list[SwitchedView]
    links: list[LinkView]
