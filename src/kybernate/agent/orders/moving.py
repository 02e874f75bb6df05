"""Snapshots and paused workloads moved from tier to tier, by their names."""

from __future__ import annotations

from collections.abc import Callable

from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.orders.tiering import Tiering
from kybernate.agent.records.ledger import Ledger
from kybernate.agent.tiers.capture import DumpOptions
from kybernate.agent.tiers.transfers import Transfers
from kybernate.agent.workloads.runtime import GpuRuntime, need_gpu
from kybernate.engine.stored import Kind
from kybernate.model import api
from kybernate.model.caller import Caller
from kybernate.model.errors import Conflict
from kybernate.model.types import TierName, WorkloadName


class Moving:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gpu: GpuRuntime | None,
        ledger: Ledger,
        clock: Callable[[], float],
        tiering: Tiering,
        transfers: Transfers,
        catalog: SnapshotCatalog,
    ) -> None:
        self._gpu = gpu
        self._ledger = ledger
        self._clock = clock
        self._tiering = tiering
        self._transfers = transfers
        self._catalog = catalog

    async def move(self, subject: str, wanted: api.MoveRequest, caller: Caller) -> api.StoredView:
        """Let a paused workload, or an image, lie in another tier; RAM stands for its content in the pool, beside."""
        entry = self._ledger.get(WorkloadName(subject))
        if entry is not None and not entry.ended:
            caller.require_owner(entry.uid, f"workload {subject}")
            options = DumpOptions.of(wanted.connections, wanted.allow_changes)
            return await self._tiering.move(entry.name, wanted.tier, options=options, keep=wanted.keep)
        source, manifest = await self._catalog.readable(subject, caller)
        if manifest.labels.get("kind") == Kind.PARKED and (holder := self._catalog.holder(manifest.name)) is not None:
            raise Conflict(f"workload {holder} lies in it", hint="give the workload's name")
        began = self._clock()
        view = api.StoredView(
            subject=subject, operation="move", tier=wanted.tier, snapshot=subject, bytes_total=manifest.size
        )
        if wanted.tier is TierName.RAM:
            gpu = need_gpu(self._gpu, so="it takes and restores no snapshots")
            already = not await self._transfers.prefetch(gpu, subject, source)
        else:
            already = source is wanted.tier
            if not already:
                await self._transfers.move_snapshot(subject, source, wanted.tier, keep=wanted.keep)
        return view.model_copy(update={"seconds": self._clock() - began, "already": already})
