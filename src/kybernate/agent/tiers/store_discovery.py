"""What the tiers say of workloads that lie in them: whose a snapshot is, and which of several is a workload's last state.

Labels come out of manifests, so of encrypted tiers only who has the key can have written them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Mapping

from kybernate.agent.records.ledger import Entry
from kybernate.agent.records.views import program
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.workloads.targets import is_external_name
from kybernate.engine.stored import Kind
from kybernate.model.errors import KybernateError
from kybernate.model.types import GpuUuid, TierName, WorkloadName, workload_name
from kybernate.store import SnapshotRow

log = logging.getLogger(__name__)


def labels_in(row: SnapshotRow) -> dict[str, str]:
    """What its writer says of a snapshot; empty where that makes no sense."""
    try:
        labels = json.loads(row.labels)
    except (ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in labels.items()} if isinstance(labels, dict) else {}


def number_in(labels: Mapping[str, str], name: str) -> int | None:
    """A label that is a number; None where it isn't."""
    text = labels.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 11 else None


def workload_of(row: SnapshotRow) -> WorkloadName | None:
    """Whose snapshot it is, where one workload lies in it."""
    labels = labels_in(row)
    if labels.get("kind") != Kind.PARKED or number_in(labels, "uid") is None:
        return None
    try:
        name = workload_name(labels.get("workload", ""))
    except KybernateError:
        return None
    return None if is_external_name(name) else name


def evicted_in(row: SnapshotRow) -> dict[GpuUuid, int]:
    """The VRAM it needs back on each GPU, in bytes; empty where that makes no sense."""
    return sizes_in(labels_in(row), "evicted")


def sizes_in(labels: Mapping[str, str], name: str) -> dict[GpuUuid, int]:
    """A label that is bytes on each GPU; empty where that makes no sense."""
    try:
        return {GpuUuid(str(uuid)): int(size) for uuid, size in json.loads(labels.get(name, "{}")).items()}
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):  # infinite; nested a thousand times
        log.warning("a snapshot of workload %s doesn't say what VRAM it needs (%s)", labels.get("workload", "?"), name)
        return {}


def rows(stores: Stores, tier: TierName) -> list[SnapshotRow]:
    """In a thread. All snapshots of a tier as they are now. Raises what the tier says."""
    space = stores.space(tier)
    if space.medium.shared:
        space.refresh(packs_too=False)
    return space.snapshots()


def tiers(stores: Stores) -> list[TierName]:
    """Those that can hold anything, best first."""
    return [tier for tier in stores.names() if tier is not TierName.NVME or stores.exists(tier)]


def later(stores: Stores, entry: Entry, *, but: Container[str | None]) -> tuple[TierName, SnapshotRow] | None:
    """In a thread. Another snapshot of this very workload, the last one taken: another agent has had it since.

    That is one of the same name, user and program. None also where a tier doesn't answer: it may have a later one still.
    """
    found: list[tuple[TierName, SnapshotRow]] = []
    for tier in tiers(stores):
        try:
            there = rows(stores, tier)
        except KybernateError as e:
            log.warning("whether a later state of workload %s lies in %s isn't known: %s", entry.name, tier, e)
            return None
        for row in there:
            labels = labels_in(row)
            same = number_in(labels, "uid") == entry.uid and labels.get("program", "") == (
                program(entry.argv) if entry.argv else ""
            )
            if workload_of(row) == entry.name and same and row.name not in but:
                found.append((tier, row))
    return max(found, key=lambda pair: pair[1].created, default=None)
