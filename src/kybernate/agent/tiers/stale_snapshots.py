"""Snapshots that a workload has left behind: it runs again or has ended, and what they hold is of a state that is over.

First the ledger has them as *stale*, then they are deleted from every tier, and only then forgotten: what a tier that is away
still has is deleted when it is back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kybernate import store
from kybernate.agent.gear import Gear
from kybernate.agent.tiers import claims, staged
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.errors import KybernateError, NotFound
from kybernate.model.types import TierName, WorkloadName

log = logging.getLogger(__name__)


class Leftovers:
    """Use it in the loop's thread, where nothing else is said."""

    def __init__(self, gear: Gear, *, by: str) -> None:
        self._gear = gear
        self._by = by

    def left_behind(self, name: WorkloadName) -> None:
        """It runs again, or has ended: its snapshot is of a state it has left. `sweep` deletes it."""
        entry = self._gear.ledger.get(name)
        if entry is not None and entry.snapshot is not None:
            self._gear.ledger.update(
                name, snapshot=None, tier=TierName.RAM, also=(), stale=with_name(entry.stale, entry.snapshot)
            )

    async def forget(self, name: WorkloadName) -> bool:
        """It has ended and is about to be forgotten: delete all it has in the store. Whether nothing is left."""
        self.left_behind(name)
        if (entry := self._gear.ledger.get(name)) is not None and entry.kept:
            self._gear.ledger.update(name, stale=tuple(dict.fromkeys((*entry.stale, *entry.kept))), kept=())
        return await self.sweep(name)

    async def sweep(self, name: WorkloadName) -> bool:
        """Delete a workload's stale snapshots, from every tier. Whether none is left."""
        gear = self._gear
        entry = gear.ledger.get(name)
        if entry is None:
            return True
        for snapshot in entry.stale:
            if await in_thread(f"forget {name}", lambda snapshot=snapshot: self.delete_everywhere(snapshot)):  # type: ignore[misc]
                now = gear.ledger.get(name)
                if now is not None:
                    gear.ledger.update(name, stale=tuple(other for other in now.stale if other != snapshot))
        left = gear.ledger.get(name)
        return left is None or not left.stale

    def delete_everywhere(self, snapshot: str) -> bool:
        """In a thread. Whether no tier has it any more, as far as anybody can tell."""
        gone = True
        for tier in self._gear.stores.names():
            if tier is not TierName.NVME or self._gear.stores.exists(tier):
                gone = self.delete(snapshot, tier) and gone
        if gone and self._gear.gpu is not None:
            staged.drop_of(self._gear.gpu.engine, snapshot)
        return gone

    def delete(self, snapshot: str, tier: TierName) -> bool:
        """In a thread. Whether it isn't in that tier any more."""
        try:
            space = self._gear.stores.space(tier)
            space.delete(snapshot)
            claims.release(space, snapshot, by=self._by)
        except (NotFound, store.TierWiped):
            return True
        except KybernateError as e:
            log.warning("snapshot %s can't be deleted from %s: %s", snapshot, tier, e)
            return False
        return True


def with_name(names: Sequence[str], more: str | None) -> tuple[str, ...]:
    return (*names, more) if more is not None and more not in names else tuple(names)
