"""In which tier a paused workload lies, by order: deeper, or up into the pool."""

from __future__ import annotations

from collections.abc import Callable

from kybernate.agent.records.ledger import Entry, Ledger, refuse_ended
from kybernate.agent.tiers.capture import DumpOptions
from kybernate.agent.tiers.parking import Parking
from kybernate.agent.tiers.transfers import Transfers
from kybernate.agent.tiers.unparking import Unparking
from kybernate.agent.workloads.operations import RunningOrder
from kybernate.agent.workloads.orders import PrefetchOrder
from kybernate.agent.workloads.runtime import GpuRuntime, need_gpu
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import StepView, StoredView, SwitchView
from kybernate.model.errors import BadInput, Conflict
from kybernate.model.types import TierName, WorkloadName, WorkloadState


class Tiering:
    """See the module. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gpu: GpuRuntime | None,
        ledger: Ledger,
        clock: Callable[[], float],
        workloads: Workloads,
        parking: Parking,
        unparking: Unparking,
        transfers: Transfers,
    ) -> None:
        self._gpu = gpu
        self._ledger = ledger
        self._clock = clock
        self._workloads = workloads
        self._parking = parking
        self._unparking = unparking
        self._transfers = transfers

    async def move(self, name: WorkloadName, tier: TierName, *, options: DumpOptions, keep: bool = False) -> StoredView:
        """Let a paused workload lie in another tier; RAM stands for its content in the pool, ahead of its resume.

        Raises:
            Conflict: it runs. Others as a pause and the store.
        """
        gpu = need_gpu(self._gpu)
        refuse_ended(self._ledger.entry(name), "moved")
        began = self._clock()

        async def move() -> StoredView:
            return await self._move(gpu, name, tier, options=options, keep=keep, began=began)

        return await self._workloads.submit(name, "move", move, detail=(tier, options, keep))

    async def prefetch(self, name: WorkloadName, *, by_person: bool = True) -> StoredView:
        """Read a workload's content from the store into the pool, so that its resume is quick. In RAM already is fine.

        Args:
            by_person: else the agent may give it up for something else.
        """
        gpu = need_gpu(self._gpu)
        refuse_ended(self._ledger.entry(name), "prefetched")

        async def prefetch(order: RunningOrder[PrefetchOrder]) -> StoredView:
            return await self._prefetch(gpu, name, by_person=order.now.by_person)

        return await self._workloads.order(name, "prefetch", prefetch, PrefetchOrder(by_person=by_person))

    async def prepare(self, entry: Entry, tier: TierName, options: DumpOptions) -> None:
        """Before a pause that is to end below RAM. Raises what hinders that."""
        await self._parking.prepare(entry, tier, options)

    # -- each of these runs in the workload's owner task -------------------------------------------------------------

    async def _move(
        self,
        gpu: GpuRuntime,
        name: WorkloadName,
        tier: TierName,
        *,
        options: DumpOptions,
        keep: bool,
        began: float,
    ) -> StoredView:
        """`began`: when that was ordered, by the agent's clock."""
        entry = self._ledger.entry(name)
        refuse_ended(entry, "moved")
        if entry.state is not WorkloadState.PAUSED:
            raise Conflict(f"workload {name} is {entry.state}", hint=f"`kybernate pause {name} --tier {tier}`")
        if tier is TierName.RAM:
            return await self._prefetch(gpu, name, by_person=True)
        was, stored = entry.tier, 0
        notes: list[str] = []
        if entry.tier is TierName.RAM:
            if keep:
                raise BadInput(f"workload {name} lies in RAM, and can't be kept there as well", hint="leave out --keep")
            report = await self._parking.park(gpu, name, tier, options=options)
            total, stored, notes = report.bytes_total, report.bytes_stored, list(report.notes)
        else:
            manifest = await self._transfers.move(name, tier, keep=keep)
            total = 0 if manifest is None else manifest.size
        entry = self._ledger.entry(name)
        return StoredView(
            subject=name,
            operation="move",
            tier=tier,
            snapshot=entry.snapshot,
            seconds=self._clock() - began,
            bytes_total=total,
            bytes_stored=stored,
            already=was is tier,
            note=None if was is not tier else f"lies in {tier} already",
            notes=notes,
        )

    async def _prefetch(self, gpu: GpuRuntime, name: WorkloadName, *, by_person: bool) -> StoredView:
        """`by_person`: not by the agent's own idea."""
        began = self._clock()
        already, size = await self._unparking.prefetch(gpu, name, by_person=by_person)
        entry = self._ledger.entry(name)
        return StoredView(
            subject=name,
            operation="prefetch",
            tier=TierName.RAM,
            snapshot=entry.snapshot,
            seconds=self._clock() - began,
            bytes_total=size,
            already=already,
            note="is in RAM already" if already else f"still lies in {entry.tier}, too",
        )

    async def go_deeper(
        self, gpu: GpuRuntime, name: WorkloadName, tier: TierName, view: SwitchView, options: DumpOptions
    ) -> SwitchView:
        """From RAM, or another tier, to where it was ordered to lie."""
        entry = self._ledger.entry(name)
        if entry.tier is tier:
            return view.model_copy(update={"tier": tier, "note": f"lies in {tier} already"})
        began = self._clock()
        stored = 0
        notes: list[str] = []
        if entry.tier is TierName.RAM:
            report = await self._parking.park(gpu, name, tier, options=options)
            stored, notes = report.bytes_stored, list(report.notes)
            steps = [StepView(step=step.step, seconds=step.seconds) for step in report.steps]
        else:
            await self._transfers.move(name, tier)
            steps = [StepView(step="move", seconds=self._clock() - began)]
        return view.model_copy(
            update={
                "tier": tier,
                "bytes_stored": stored,
                "seconds": (0.0 if view.already else view.seconds) + self._clock() - began,
                "steps": [*([] if view.already else view.steps), *steps],
                "already": False,
                "note": f"lies in {tier}",
                "notes": notes,
            }
        )
