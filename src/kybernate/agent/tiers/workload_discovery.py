"""Workloads that lie in a tier and that this agent doesn't know: another one left them, or its records are gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from kybernate import store
from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import USER, Entry, Ledger
from kybernate.agent.tiers.store_discovery import evicted_in, labels_in, number_in, rows, sizes_in, tiers, workload_of
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.errors import KybernateError
from kybernate.model.types import Backend, Depth, TierName, WorkloadName, WorkloadState


class WorkloadDiscovery:
    """Use it in the loop's thread."""

    def __init__(self, *, ledger: Ledger, events: Events, stores: Stores) -> None:
        self._ledger = ledger
        self._events = events
        self._stores = stores

    async def find(self, name: WorkloadName, uid: int | None = None) -> Entry | None:
        """A workload that this agent doesn't know, but that lies in one of its tiers; it is in the ledger then.

        Args:
            uid: only if it is this user's.

        Of one that has ended the snapshots are of its past, and not looked for; of one that is lost they are.

        Raises what a tier says that could not be asked, where no other has it.
        """
        known = self._ledger.get(name)
        if known is not None and known.state is not WorkloadState.LOST:
            return None
        trouble: KybernateError | None = None
        for tier in tiers(self._stores):
            try:
                there = await in_thread(f"look into {tier}", lambda tier=tier: rows(self._stores, tier))  # type: ignore[misc]
            except KybernateError as e:
                trouble = e
                continue
            mine = [
                row for row in there if workload_of(row) == name and uid in (None, 0, number_in(labels_in(row), "uid"))
            ]
            if mine and self.take_in(tier, mine):
                return self._ledger.get(name)
        if trouble is not None:
            raise trouble
        return None

    def take_in(self, tier: TierName, rows: Iterable[store.SnapshotRow]) -> bool:
        """Workloads that lie in a tier and that the ledger doesn't know. Whether there was any."""
        ledger = self._ledger
        newest: dict[WorkloadName, list[store.SnapshotRow]] = {}
        for row in sorted(rows, key=lambda row: row.created, reverse=True):
            if (name := workload_of(row)) is not None:
                newest.setdefault(name, []).append(row)
        found = False
        for name, (row, *older) in newest.items():
            known = ledger.get(name)
            if known is not None and known.state is not WorkloadState.LOST:
                continue
            if known is not None and row.name in (*known.stale, *known.kept):
                continue
            entry = _entry(name, tier, row, [other.name for other in older] if tier is TierName.NVME else [])
            if known is not None:  # what it has left behind stays behind
                ledger.remove(name)
                stale = dict.fromkeys(other for other in (*known.stale, *entry.stale) if other not in known.kept)
                entry = dataclasses.replace(entry, stale=tuple(stale), kept=known.kept)
            ledger.add(entry)
            self._events.record(
                "found", f"lies in {tier}, as it was paused", workload=name, data={"tier": tier, "snapshot": row.name}
            )
            found = True
        return found


def _entry(name: WorkloadName, tier: TierName, row: store.SnapshotRow, older: list[str]) -> Entry:
    labels = labels_in(row)
    backend = labels.get("backend", "")
    return Entry(
        name=name,
        state=WorkloadState.PAUSED,
        since=row.created,
        backend=Backend(backend) if backend in Backend.__members__.values() else Backend.BROKER,
        last_use=row.created,
        reason=f"found in {tier}",
        depth=Depth.ZERO,
        argv=tuple(part for part in [labels.get("program", "")] if part),
        uid=number_in(labels, "uid") or 0,
        gid=number_in(labels, "gid") or 0,
        paused_by=USER,
        evicted=evicted_in(row),
        unmanaged=sizes_in(labels, "unmanaged"),
        tier=tier,
        snapshot=row.name,
        stale=tuple(older),
    )
