"""Snapshots that a workload has left behind: it runs again or has ended, and what they hold is of a state that is over.

First the ledger has them as *stale*, then they are deleted from every tier, and only then forgotten: what a tier that is away
still has is deleted when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from kybernate import store
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.tiers import claims, prefetched
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.workloads.threads import in_thread
from kybernate.engine.engine import Engine
from kybernate.model.errors import KybernateError, NotFound
from kybernate.model.types import TierName, WorkloadName, WorkloadState

log = logging.getLogger(__name__)


class StaleSnapshots:
    """Use it in the loop's thread, where nothing else is said."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        stores: Stores,
        engine: Engine | None,
        by: str,
        idle: Callable[[WorkloadName], bool],
    ) -> None:
        """
        Args:
            engine: None without a GPU.
            by: this agent, as claims name it.
            idle: nobody does anything to that workload.
        """
        self._ledger = ledger
        self._stores = stores
        self._engine = engine
        self._by = by
        self._idle = idle
        self.due = asyncio.Event()
        """There is something to delete."""

    def left_behind(self, name: WorkloadName) -> None:
        """It runs again, or has ended: its snapshot is of a state it has left. `sweep` deletes it."""
        entry = self._ledger.get(name)
        if entry is not None and entry.snapshot is not None:
            self._ledger.update(
                name, snapshot=None, tier=TierName.RAM, also=(), stale=with_name(entry.stale, entry.snapshot)
            )

    async def forget(self, name: WorkloadName) -> bool:
        """It has ended and is about to be forgotten: delete all it has in the store. Whether nothing is left."""
        self.left_behind(name)
        if (entry := self._ledger.get(name)) is not None and entry.kept:
            self._ledger.update(name, stale=tuple(dict.fromkeys((*entry.stale, *entry.kept))), kept=())
        return await self.sweep(name)

    def changed(self, _old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        if new is not None and (new.stale or (new.snapshot is not None and _has_left(new))):
            self.due.set()

    async def sweep_all(self) -> None:
        """Delete what is stale of every workload to which nobody does anything."""
        self.due.clear()
        for entry in list(self._ledger.entries().values()):
            if entry.snapshot is not None and _has_left(entry):
                self.left_behind(entry.name)
            current = self._ledger.get(entry.name)
            if current is not None and current.stale and self._idle(entry.name):
                await self.sweep(entry.name)
        if any(entry.stale and not self._idle(entry.name) for entry in self._ledger.entries().values()):
            self.due.set()

    async def sweep(self, name: WorkloadName) -> bool:
        """Delete a workload's stale snapshots, from every tier. Whether none is left."""
        ledger = self._ledger
        entry = ledger.get(name)
        if entry is None:
            return True
        for snapshot in entry.stale:
            if await in_thread(f"forget {name}", lambda snapshot=snapshot: self.delete_everywhere(snapshot)):  # type: ignore[misc]
                current = ledger.get(name)
                if current is not None:
                    ledger.update(name, stale=tuple(other for other in current.stale if other != snapshot))
        left = ledger.get(name)
        return left is None or not left.stale

    def delete_everywhere(self, snapshot: str) -> bool:
        """In a thread. Whether no tier has it any more, as far as anybody can tell."""
        gone = True
        for tier in self._stores.names():
            if tier is not TierName.NVME or self._stores.exists(tier):
                gone = self.delete(snapshot, tier) and gone
        if gone and self._engine is not None:
            prefetched.drop_snapshot(self._engine, snapshot)
        return gone

    def delete(self, snapshot: str, tier: TierName) -> bool:
        """In a thread. Whether it isn't in that tier any more."""
        try:
            space = self._stores.space(tier)
            space.delete(snapshot)
            claims.release(space, snapshot, by=self._by)
        except (NotFound, store.TierWiped):
            return True
        except KybernateError as e:
            log.warning("snapshot %s can't be deleted from %s: %s", snapshot, tier, e)
            return False
        return True


def _has_left(entry: Entry) -> bool:
    return entry.state is WorkloadState.RUNNING or entry.state is WorkloadState.EXITED


def with_name(names: Sequence[str], more: str | None) -> tuple[str, ...]:
    return (*names, more) if more is not None and more not in names else tuple(names)
