"""The stored snapshots: which there are and whose; removed by order. images.py makes them, moving.py moves them."""

from __future__ import annotations

import os

from kybernate import store
from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.tiers import prefetched
from kybernate.agent.tiers.store_discovery import labels_in, number_in, rows
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.workloads.threads import in_thread
from kybernate.engine.engine import Engine
from kybernate.engine.stored import Kind
from kybernate.model import api
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput, Conflict, KybernateError, NotFound
from kybernate.model.snapshot_names import snapshot_name
from kybernate.model.types import TierName, WorkloadName


class SnapshotCatalog:
    """Use it in the loop's thread."""

    def __init__(self, *, ledger: Ledger, events: Events, stores: Stores, engine: Engine | None) -> None:
        """`engine`: None without a GPU."""
        self._ledger = ledger
        self._events = events
        self._stores = stores
        self._engine = engine

    # -- looking -----------------------------------------------------------------------------------------------------

    async def listing(self) -> api.SnapshotList:
        """All snapshots in all tiers, as far as they answer."""
        views: dict[str, api.SnapshotView] = {}
        problems: list[str] = []
        for tier in self.tiers(None):
            try:
                there = await in_thread(f"list {tier}", lambda tier=tier: rows(self._stores, tier))  # type: ignore[misc]
            except KybernateError as e:
                problems.append(f"{tier}: {e.message}")
                continue
            space = self._stores.ready(tier)
            problems += [f"{tier}: {text}" for text in (space.last_changes.problems if space is not None else ())]
            for row in there:
                labels = labels_in(row)
                seen = views.get(row.name)
                views[row.name] = api.SnapshotView(
                    name=row.name,
                    kind=labels.get("kind", ""),
                    workload=labels.get("workload", ""),
                    tiers=[*(() if seen is None else seen.tiers), tier],
                    uid=number_in(labels, "uid") or 0,
                    created=row.created,
                    size_bytes=row.size,
                )
        return api.SnapshotList(snapshots=sorted(views.values(), key=lambda view: view.name), problems=problems)

    # -- removing ----------------------------------------------------------------------------------------------------

    async def remove(self, snapshot: str, tier: TierName | None, caller: Caller) -> api.StoredView:
        """Delete a snapshot, from one tier or all. Its chunks stay until garbage is collected.

        Raises:
            Conflict: a workload lies in it. NotFound.
        """
        checked = snapshot_name(snapshot)
        if (holder := self.holder(checked)) is not None:
            raise Conflict(f"workload {holder} lies in it", hint=f"`kybernate stop {holder}` ends it")
        await self.require_owner(checked, caller)
        removed: list[TierName] = []
        trouble: KybernateError | None = None
        for name in self.tiers(tier):
            try:
                await in_thread(f"remove {checked}", lambda name=name: self._stores.space(name).delete(checked))  # type: ignore[misc]
            except NotFound:
                continue
            except KybernateError as e:
                trouble = e
                continue
            removed.append(name)
        if trouble is not None:
            raise trouble
        if tier is None:
            self._forget_kept(checked)
        if not removed:
            raise NotFound(f"there is no snapshot {checked} in {tier}", hint="`kybernate snapshots` lists them")
        if self._engine is not None:
            if tier is None:
                prefetched.drop_snapshot(self._engine, checked)
            else:
                await self.drop_gone()
        self._events.record("snapshot-removed", f"snapshot {checked} from {', '.join(removed)}")
        return api.StoredView(subject=checked, operation="remove", snapshot=checked, tier=removed[0])

    # -- finding -----------------------------------------------------------------------------------------------------

    async def drop_gone(self) -> None:
        """What is staged of snapshots that are no more."""
        engine = self._engine
        if engine is not None:
            await in_thread("look what is staged", lambda: prefetched.drop_gone(engine, self._stores))

    def tiers(self, wanted: TierName | None) -> list[TierName]:
        """Those that are in use; of one that was named it is said if it isn't there."""
        stores = self._stores
        if wanted is TierName.RAM:
            raise BadInput("what lies in RAM is no snapshot", hint="give --tier nvme or object")
        if wanted is not None:
            return [wanted]
        return [name for name in stores.names() if name is not TierName.NVME or stores.exists(name)]

    async def readable(self, snapshot: str, caller: Caller) -> tuple[TierName, store.Manifest]:
        """The best copy of a snapshot, if it is the caller's. Raises NotFound, NotPermitted, Damaged and others."""
        checked = snapshot_name(snapshot)
        tier = await self._best(checked)
        manifest = await in_thread(f"read {checked}", lambda: self._stores.space(tier).manifest(checked))
        owner = number_in(manifest.labels, "uid")
        caller.require_owner(os.geteuid() if owner is None else owner, f"snapshot {checked}")
        return tier, manifest

    async def _best(self, snapshot: str) -> TierName:
        """The first tier that has it. Raises NotFound, or what a tier says that could not be asked."""
        stores = self._stores
        return await in_thread(f"find {snapshot}", lambda: stores.find(snapshot, one=True)[0])

    async def require_owner(self, snapshot: str, caller: Caller) -> None:
        """Also of one that can't be read: that is the agent's own user's to deal with. Raises NotFound, NotPermitted."""
        try:
            await self.readable(snapshot, caller)
        except (store.Damaged, store.TooNew):
            caller.require_owner(os.geteuid(), f"snapshot {snapshot}, which can't be read,")

    async def image(self, image: str, caller: Caller) -> tuple[TierName, store.Manifest]:
        """The best copy of an image. Raises BadInput: it is none; and what is raised for any snapshot."""
        tier, manifest = await self.readable(image, caller)
        if manifest.labels.get("kind") != Kind.IMAGE and not self._kept_by(image):
            raise BadInput(
                f"snapshot {image} is no image: workload {manifest.labels.get('workload')} lies in it",
                hint="take one: `kybernate snapshot NAME --as IMAGE`",
            )
        return tier, manifest

    async def refuse_taken(self, image: str, tier: TierName) -> None:
        """For an image that is to be taken. Raises BadInput, Conflict: there is one; what opening the tier does."""
        if tier is TierName.RAM:
            raise BadInput("an image lies in nvme or object", hint="give --tier nvme")
        await in_thread(f"open {tier}", lambda: self._stores.space(tier))
        try:
            found = await in_thread(f"look for {image}", lambda: self._stores.find(image))
        except KybernateError:
            return  # nowhere, or another tier doesn't say
        raise Conflict(f"there is a snapshot {image} in {found[0]} already", hint="choose another name")

    def holder(self, snapshot: str) -> WorkloadName | None:
        """The workload that lies in it."""
        for entry in self._ledger.entries().values():
            if entry.snapshot == snapshot and not entry.ended:
                return entry.name
        return None

    def _kept_by(self, snapshot: str) -> list[Entry]:
        """Who was started anew, or overtaken elsewhere, and has it as an image of what it was."""
        return [entry for entry in self._ledger.entries().values() if snapshot in entry.kept]

    def _forget_kept(self, snapshot: str) -> None:
        for entry in self._kept_by(snapshot):
            self._ledger.update(entry.name, kept=tuple(other for other in entry.kept if other != snapshot))
