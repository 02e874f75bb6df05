"""What the agent does about its tiers by itself: opens them, takes in what they hold, deletes what was left behind, and lets
what has been idle for long go to the disk.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable

from kybernate import store
from kybernate.agent.gear import Gear
from kybernate.agent.records.ledger import USER, Entry
from kybernate.agent.tiers import staged
from kybernate.agent.tiers.demotion import idle_too_long
from kybernate.agent.tiers.pool_eviction import PoolRoom
from kybernate.agent.tiers.stale_snapshots import Leftovers
from kybernate.agent.tiers.store_discovery import evicted_in, labels_in, number_in, rows, sizes_in, tiers, workload_of
from kybernate.agent.tiers.stores import BELOW_RAM
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.errors import KybernateError
from kybernate.model.types import Backend, Depth, TierName, WorkloadName, WorkloadState

_LOOK_S = 0.25
_SWEEP_AGAIN_S = 15.0
"""What could not be deleted, or opened, is tried again so often."""
_STAGED_AGAIN_S = 60.0
"""What others have deleted is looked for so often: a bucket's every listing costs something."""


class Keeper:
    """`run` is a task's body; `find` is for orders. Use it in the loop's thread."""

    def __init__(
        self, *, gear: Gear, workloads: Workloads, leftovers: Leftovers, pool_room: PoolRoom, tasks: Tasks
    ) -> None:
        self._gear = gear
        self._tasks = tasks
        self._workloads = workloads
        self._leftovers = leftovers
        self._pool_room = pool_room
        self._dirty = asyncio.Event()
        gear.ledger.observe(self._changed)

    async def run(self) -> None:
        """Ends by cancellation."""
        gear = self._gear
        await in_thread("open the tiers", gear.stores.open_all)
        for tier in BELOW_RAM:
            if tier is TierName.NVME and (space := gear.stores.ready(tier)) is not None:
                try:
                    await self.take_in(tier, space.snapshots())
                except Exception as e:  # what isn't taken in here is found when somebody asks for it by its name
                    self._tasks.failed("tiers", e)
        self._dirty.set()
        again = gear.clock() + _SWEEP_AGAIN_S
        staged_again = gear.clock() + _STAGED_AGAIN_S
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                if gear.clock() >= again:
                    again = gear.clock() + _SWEEP_AGAIN_S
                    await in_thread("look at the tiers", gear.stores.look_again)
                    self._dirty.set()
                if gear.clock() >= staged_again:
                    staged_again = gear.clock() + _STAGED_AGAIN_S
                    await self._drop_gone()
                if self._dirty.is_set():
                    self._dirty.clear()
                    await self._sweep()
                await self._demote_idle()
            except Exception as e:  # whatever one workload's snapshot may do must not end the care for the others
                self._tasks.failed("tiers", e)

    # -- taking in ---------------------------------------------------------------------------------------------------

    async def find(self, name: WorkloadName, uid: int | None = None) -> Entry | None:
        """A workload that this agent doesn't know, but that lies in one of its tiers; it is in the ledger then.

        Args:
            uid: only if it is this user's.

        Of one that has ended the snapshots are of its past, and not looked for; of one that is lost they are.

        Raises what a tier says that could not be asked, where no other has it.
        """
        known = self._gear.ledger.get(name)
        if known is not None and known.state is not WorkloadState.LOST:
            return None
        trouble: KybernateError | None = None
        for tier in tiers(self._gear.stores):
            try:
                there = await in_thread(f"look into {tier}", lambda tier=tier: rows(self._gear.stores, tier))  # type: ignore[misc]
            except KybernateError as e:
                trouble = e
                continue
            mine = [
                row for row in there if workload_of(row) == name and uid in (None, 0, number_in(labels_in(row), "uid"))
            ]
            if mine and await self.take_in(tier, mine):
                return self._gear.ledger.get(name)
        if trouble is not None:
            raise trouble
        return None

    async def take_in(self, tier: TierName, rows: Iterable[store.SnapshotRow]) -> bool:
        """Workloads that lie in a tier and that the ledger doesn't know. Whether there was any."""
        ledger = self._gear.ledger
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
            entry = self._entry(name, tier, row, [other.name for other in older] if tier is TierName.NVME else [])
            if known is not None:  # what it has left behind stays behind
                ledger.remove(name)
                stale = dict.fromkeys(other for other in (*known.stale, *entry.stale) if other not in known.kept)
                entry = dataclasses.replace(entry, stale=tuple(stale), kept=known.kept)
            ledger.add(entry)
            self._gear.events.record(
                "found", f"lies in {tier}, as it was paused", workload=name, data={"tier": tier, "snapshot": row.name}
            )
            found = True
        return found

    def _entry(self, name: WorkloadName, tier: TierName, row: store.SnapshotRow, older: list[str]) -> Entry:
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

    # -- deleting ----------------------------------------------------------------------------------------------------

    def _changed(self, _old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        if new is not None and (new.stale or (new.snapshot is not None and _left(new))):
            self._dirty.set()

    async def _sweep(self) -> None:
        for entry in list(self._gear.ledger.entries().values()):
            if entry.snapshot is not None and _left(entry):
                self._leftovers.left_behind(entry.name)
            now = self._gear.ledger.get(entry.name)
            if now is not None and now.stale and self._workloads.idle(entry.name):
                await self._leftovers.sweep(entry.name)
        if any(entry.stale and not self._workloads.idle(entry.name) for entry in self._gear.ledger.entries().values()):
            self._dirty.set()

    async def _drop_gone(self) -> None:
        gear, gpu = self._gear, self._gear.gpu
        if gpu is not None:
            await in_thread("look what is staged", lambda: staged.drop_gone(gpu.engine, gear.stores))

    # -- demoting ----------------------------------------------------------------------------------------------------

    async def _demote_idle(self) -> None:
        gear, gpu = self._gear, self._gear.gpu
        idle_s = gear.settings.store.demote.idle
        if gpu is None or idle_s is None:
            return
        may = [entry for entry in gear.ledger.entries().values() if self._pool_room.may_go(gpu, entry)]
        for entry in idle_too_long(may, now=gear.clock(), idle_s=idle_s)[:1]:
            await self._pool_room.demote(gpu, entry, TierName.NVME, why="went to the disk, being idle for long")


def _left(entry: Entry) -> bool:
    return entry.state is WorkloadState.RUNNING or entry.state is WorkloadState.EXITED
