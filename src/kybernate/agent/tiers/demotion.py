"""Which workload that is paused in RAM is worth least there: pure functions over the ledger."""

from __future__ import annotations

from collections.abc import Iterable

from kybernate.agent.records.ledger import ARBITER, Entry


def least_valuable(entries: Iterable[Entry]) -> Entry | None:
    """Whom to send to the disk first: one that a person paused before one that waits for its turn, then the least recently
    used, then the larger one."""
    return min(
        entries,
        key=lambda entry: (entry.paused_by == ARBITER, entry.last_use, -sum(entry.evicted.values()), entry.name),
        default=None,
    )


def idle_too_long(entries: Iterable[Entry], *, now: float, idle_s: float) -> list[Entry]:
    """Those that have been paused for so long that they leave RAM, the longest paused first."""
    return sorted((entry for entry in entries if now - entry.since >= idle_s), key=lambda entry: entry.since)
