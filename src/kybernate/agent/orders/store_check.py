"""The store looked after by order: everything read and compared with its hashes, and what no snapshot needs removed."""

from __future__ import annotations

import os

from kybernate import store
from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.records.events import Events
from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.tiers.stores import Stores
from kybernate.agent.workloads.threads import in_thread
from kybernate.model import api
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput, KybernateError, NotFound
from kybernate.model.types import TierName, WorkloadName
from kybernate.store.progress import Cancel


class StoreCheck:
    """Use it in the loop's thread."""

    def __init__(self, *, ledger: Ledger, events: Events, jobs: Jobs, stores: Stores, catalog: SnapshotCatalog) -> None:
        self._ledger = ledger
        self._events = events
        self._jobs = jobs
        self._stores = stores
        self._catalog = catalog

    async def verify(self, wanted: api.VerifyRequest, caller: Caller) -> api.VerifiedList:
        """Read everything, or some snapshots and what they need, and compare it with its hashes."""
        names: list[str] = []
        for text in wanted.names:
            entry = self._ledger.get(WorkloadName(text))
            name = entry.snapshot if entry is not None and entry.snapshot is not None else text
            await self._catalog.require_owner(name, caller)
            names.append(name)
        if not names:
            caller.require_owner(os.geteuid(), "the store")
        views = []
        for tier in self._catalog.tiers(wanted.tier):
            with self._jobs.begin("verify", str(tier)) as job:
                cancel = Cancel()

                def work(tier: TierName = tier, cancel: Cancel = cancel) -> store.Verified | None:
                    space = self._stores.space(tier)
                    there = [name for name in names if _has(space, name)]
                    if names and not there:
                        return None
                    with job.stop.forwarded_to(cancel.set):
                        return store.verify(
                            space, there or None, content=wanted.content, progress=job.tell, cancel=cancel
                        )

                verified = await in_thread(f"verify {tier}", work)
            if verified is not None:
                views.append(_verified(tier, verified))
        for view in views:
            for problem in view.problems:
                self._events.record("damaged", f"{view.tier}: {problem.text}", data={"snapshots": problem.snapshots})
        return api.VerifiedList(tiers=views)

    async def collect(self, wanted: api.CollectRequest, caller: Caller) -> api.CollectedList:
        """Remove what no snapshot needs, in RAM as well."""
        caller.require_owner(os.geteuid(), "the store")
        if wanted.accept_loss and wanted.tier is None:
            raise BadInput("of which tier is the loss accepted?", hint="give --tier")
        views = []
        for tier in self._catalog.tiers(wanted.tier):
            with self._jobs.begin("gc", str(tier)) as job:
                cancel = Cancel()

                def work(tier: TierName = tier, cancel: Cancel = cancel) -> store.Swept:
                    space = self._stores.space(tier, accept_loss=wanted.accept_loss)
                    with job.stop.forwarded_to(cancel.set):
                        return store.collect(space, dry=wanted.dry_run, progress=job.tell, cancel=cancel)

                swept = await in_thread(f"gc {tier}", work)
            views.append(
                api.CollectedView(
                    tier=tier,
                    packs=swept.packs,
                    removed=swept.removed,
                    compacted=swept.compacted,
                    bytes_freed=swept.freed,
                    left=list(swept.left),
                )
            )
        if not wanted.dry_run:
            await self._catalog.drop_gone()
        return api.CollectedList(tiers=views, dry_run=wanted.dry_run)


def _has(space: store.Space, name: str) -> bool:
    try:
        space.manifest(name)
    except NotFound:
        return False
    except KybernateError:
        return True
    return True


def _verified(tier: TierName, found: store.Verified) -> api.VerifiedView:
    return api.VerifiedView(
        tier=tier,
        snapshots=found.snapshots,
        packs=found.packs,
        chunks=found.chunks,
        bytes_read=found.bytes_read,
        problems=[api.ProblemView(text=each.text, snapshots=list(each.snapshots)) for each in found.problems],
    )
