"""Why a workload is in its state and what can be done next: pure, from the ledger's entry and its last events."""

from __future__ import annotations

from collections.abc import Sequence

from kybernate.agent.records.ledger import ARBITER, RECOVERY, Entry
from kybernate.model.api import EventView, ExplainView
from kybernate.model.quantities import format_seconds, format_size
from kybernate.model.types import Backend, TierName, WorkloadState

_REFUSALS = frozenset({"pause-refused", "resume-refused", "out-of-memory"})


def explain(
    entry: Entry,
    *,
    events: Sequence[EventView],
    resident_bytes: int,
    now: float,
    prefetched: bool = False,
    waits_for: str = "",
    is_model: bool = False,
) -> ExplainView:
    """
    Args:
        is_model: it comes with its next request.
        waits_for: what the policy says of why it isn't brought yet.
    """
    since = format_seconds(max(0.0, now - entry.since))
    text = f"{entry.name} ended {since} ago" if entry.ended else f"{entry.name} has been {entry.state} for {since}"
    if entry.reason:
        text += f": {entry.reason}"
    text += f". {_numbers(entry, resident_bytes)}".rstrip()
    if entry.state is WorkloadState.PAUSED and entry.tier is not TierName.RAM:
        text += f" {_away(entry, events, prefetched=prefetched)}"
    if entry.kept:
        text += (
            f" Kept of what it was: {', '.join(entry.kept)}; `kybernate clone {entry.kept[-1]} NEW` makes a workload of it, "
            f"`kybernate stop --remove {entry.name}` deletes it."
        )
    if waits_for and waits_for not in text:
        text += f" Now: {waits_for}."
    refusal = next((e for e in reversed(events) if e.kind in _REFUSALS), None)
    if refusal is not None and (not entry.ended or refusal.kind == "out-of-memory"):
        text += f" Last refusal, {format_seconds(max(0.0, now - refusal.time))} ago: {refusal.text}."
    return ExplainView(
        workload=entry.name,
        state=entry.state,
        text=text.strip(),
        next_step=_next_step(entry, is_model=is_model),
        events=list(events),
    )


def _numbers(entry: Entry, resident_bytes: int) -> str:
    if entry.state is WorkloadState.RUNNING:
        bare = sum(entry.unmanaged.values())
        if not bare:
            return f"It holds {f'{format_size(resident_bytes)} of' if resident_bytes else 'no'} VRAM in extents."
        why = "as its backend says" if entry.backend is Backend.DRIVER else "by a command that drops LD_PRELOAD"
        return (
            f"It holds {format_size(resident_bytes)} of VRAM, {format_size(bare)} of that without Kybernate's library, {why}: "
            "it is paused and resumed by the driver's checkpoint alone, which is slow."
        )
    if entry.state is WorkloadState.PAUSED:
        needs = sum(entry.evicted.values())
        took = "" if entry.last_pause is None else f" The pause took {format_seconds(entry.last_pause.seconds)}."
        held = f" {format_size(sum(entry.held.values()))} of what it gave up are not free." if entry.held else ""
        return f"It needs {format_size(needs)} of VRAM to go on.{took}{held}"
    return ""


def _away(entry: Entry, events: Sequence[EventView], *, prefetched: bool) -> str:
    """Where it lies, and what a resume from there will cost."""
    parked = next((e for e in reversed(events) if e.kind == "parked"), None)
    size = parked.data.get("bytes_total") if parked is not None else None
    how_much = f" ({format_size(size)})" if isinstance(size, int) else ""
    if prefetched:
        return f"It lies in {entry.tier}{how_much}; its GPU content is in host memory again, its processes come with the resume."
    restored = next((e for e in reversed(events) if e.kind == "restored"), None)
    took = restored.data.get("seconds") if restored is not None else None
    cost = f"; the last time that took {format_seconds(took)}" if isinstance(took, float) else ""
    return f"It lies in {entry.tier}{how_much}, no process of it is left: a resume reads it from there{cost}."


def _next_step(entry: Entry, *, is_model: bool) -> str:
    name = entry.name
    order = f"pause --pid {name.removeprefix('pid-')}" if entry.external else f"pause {name}"
    undo = f"resume --pid {name.removeprefix('pid-')}" if entry.external else f"resume {name}"
    match entry.state:
        case WorkloadState.RUNNING:
            return f"`kybernate {order}` gives its VRAM back"
        case WorkloadState.PAUSED if entry.paused_by == RECOVERY:
            return f"it is tried again by itself, and by `kybernate {undo}`"
        case WorkloadState.PAUSED if entry.paused_by == ARBITER and is_model:
            return f"its next request brings it back; `kybernate {undo}` does it now and may pause another"
        case WorkloadState.PAUSED if entry.paused_by == ARBITER:
            return f"it resumes by itself when its VRAM is free; `kybernate {undo}` does it now and pauses another"
        case WorkloadState.PAUSED if entry.tier is not TierName.RAM:
            return f"`kybernate {undo}` brings it back; `kybernate prefetch {name}` makes that quicker"
        case WorkloadState.PAUSED:
            return f"`kybernate {undo}` lets it go on"
        case WorkloadState.STARTING | WorkloadState.PAUSING | WorkloadState.RESUMING | WorkloadState.STOPPING:
            return f"wait; `kybernate events {name} -f` shows how it goes on"
        case WorkloadState.EXITED if is_model:
            return f"`kybernate logs {name}` shows its output; its next request starts it again"
        case WorkloadState.EXITED:
            return (
                f"`kybernate logs {name}` shows its output; `kybernate rm {name}` removes it, a new run takes its place"
            )
        case WorkloadState.LOST:
            return f"`kybernate events {name}` shows the step that lost it; `kybernate stop --remove {name}`, then run it again"
