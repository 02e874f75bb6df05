"""Why a model or a job of the file stands where it stands, in words for people; empty where nothing has to be said. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass

from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.workload_stats import Stats
from kybernate.model.api import ExplainView
from kybernate.model.types import EndedBy, WorkloadName
from kybernate.policy.schedule import in_window, next_change
from kybernate.settings.specs import Kind, Served

_DAY_S = 86400


@dataclass(frozen=True, slots=True)
class Failed:
    """The last time that it could not come or leave. Seconds since 1970."""

    when: float
    reason: str
    until: float = 0.0
    """It isn't tried again before."""


def standing(
    served: Served,
    entry: Entry | None,
    *,
    stats: Stats,
    planned: str,
    refused: str,
    failed: Failed | None,
    now: float,
) -> str:
    """
    Args:
        planned: what the policy says of why it waits.
        refused: what its requests are answered.
    """
    gone = entry is None or entry.ended
    if (again := again_at(entry, stats=stats, failed=failed, now=now)) is not None and failed is not None:
        when = _second(again)
        how = f"starts again at {when}" if served.kind is Kind.JOB else f"a request starts it again from {when} on"
        return f"{failed.reason}; {how}"
    if planned or refused:
        return planned or refused
    if failing(entry, failed):
        assert failed is not None
        return failed.reason
    if not gone or served.kind is not Kind.JOB:
        by_order = gone and entry is not None and entry.ended_by is EndedBy.ORDER
        return "stopped by order; its next request starts it" if by_order else ""
    if stats.done and stats.fingerprint == served.fingerprint:
        how = "was stopped" if entry is None else "has ended"
        if entry is not None and entry.exit_status is not None:
            how = f"ended with status {entry.exit_status}"
        return f"{how}; `kybernate start {served.name}` runs it again"
    if not in_window(served.schedule, now):
        change = next_change(served.schedule, now)
        return "outside its hours" if change is None else f"outside its hours until {_moment(change, now)}"
    return ""


def failing(entry: Entry | None, failed: Failed | None) -> bool:
    """Whether it isn't there because it could not come, or ended, the last time."""
    return (entry is None or entry.ended) and failed is not None and (entry is None or failed.when >= entry.since)


def again_at(entry: Entry | None, *, stats: Stats, failed: Failed | None, now: float) -> float | None:
    """When one that failed may start again; None: now, or it isn't to. Seconds since 1970."""
    if not failing(entry, failed) or failed is None or failed.until <= now or stats.done:
        return None
    return failed.until


def unstarted(name: WorkloadName, served: Served, why: str, *, for_good: bool) -> ExplainView:
    """Of one that has not been started since anybody remembers. `for_good`: nor will it be, as things are."""
    text = f"{name} is a {served.kind} of the configuration and has not been started yet."
    if why:
        text += f" Now: {why}."
    if for_good:
        next_step = "mend the file, or what hinders it; then `kybernate reload`"
        return ExplainView(workload=name, state=None, text=text, next_step=next_step, events=[])
    asked = "its first request starts it; " if served.kind is Kind.MODEL else ""
    return ExplainView(
        workload=name, state=None, text=text, next_step=f"{asked}`kybernate start {name}` does so now", events=[]
    )


def _second(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))


def _moment(when: float, now: float) -> str:
    return time.strftime("%H:%M" if when - now < _DAY_S else "%a %H:%M", time.localtime(when))
