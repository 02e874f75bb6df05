"""In which tier a paused workload lies, by order: deeper, or up into the pool. Each runs in the workload's owner task."""

from __future__ import annotations

from kybernate.agent.gear import Gear, GpuGear
from kybernate.agent.records.ledger import refuse_ended
from kybernate.agent.tiers.parking import Parking
from kybernate.agent.tiers.transfers import Transfers
from kybernate.agent.tiers.unparking import Unparking
from kybernate.model.api import StepView, StoredView, SwitchView
from kybernate.model.errors import BadInput, Conflict
from kybernate.model.types import TierName, WorkloadName, WorkloadState
from kybernate.process.preflight import Connections


class Tiering:
    """See the module."""

    def __init__(self, *, gear: Gear, parking: Parking, unparking: Unparking, transfers: Transfers) -> None:
        self._gear = gear
        self._parking = parking
        self._unparking = unparking
        self._transfers = transfers

    async def move(
        self,
        gpu: GpuGear,
        name: WorkloadName,
        tier: TierName,
        *,
        connections: Connections | None,
        allow_changes: bool | None,
        keep: bool,
        began: float,
    ) -> StoredView:
        """Let it lie in another tier; RAM stands for its content in the pool, ahead of its resume.

        Args:
            began: when that was ordered, by the agent's clock.
        """
        entry = self._gear.ledger.entry(name)
        refuse_ended(entry, "moved")
        if entry.state is not WorkloadState.PAUSED:
            raise Conflict(f"workload {name} is {entry.state}", hint=f"`kybernate pause {name} --tier {tier}`")
        if tier is TierName.RAM:
            return await self.prefetch(gpu, name, asked=True)
        was, stored = entry.tier, 0
        notes: list[str] = []
        if entry.tier is TierName.RAM:
            if keep:
                raise BadInput(f"workload {name} lies in RAM, and can't be kept there as well", hint="leave out --keep")
            report = await self._parking.park(gpu, name, tier, connections=connections, allow_changes=allow_changes)
            total, stored, notes = report.bytes_total, report.bytes_stored, list(report.notes)
        else:
            manifest = await self._transfers.move(name, tier, keep=keep)
            total = 0 if manifest is None else manifest.size
        now = self._gear.ledger.entry(name)
        return StoredView(
            subject=name,
            operation="move",
            tier=tier,
            snapshot=now.snapshot,
            seconds=self._gear.clock() - began,
            bytes_total=total,
            bytes_stored=stored,
            already=was is tier,
            note=None if was is not tier else f"lies in {tier} already",
            notes=notes,
        )

    async def prefetch(self, gpu: GpuGear, name: WorkloadName, *, asked: bool) -> StoredView:
        """`asked`: by a person."""
        began = self._gear.clock()
        already, size = await self._unparking.stage(gpu, name, asked=asked)
        entry = self._gear.ledger.entry(name)
        return StoredView(
            subject=name,
            operation="prefetch",
            tier=TierName.RAM,
            snapshot=entry.snapshot,
            seconds=self._gear.clock() - began,
            bytes_total=size,
            already=already,
            note="is in RAM already" if already else f"still lies in {entry.tier}, too",
        )

    async def go_deeper(
        self,
        gpu: GpuGear,
        name: WorkloadName,
        tier: TierName,
        view: SwitchView,
        connections: Connections | None,
        allow_changes: bool | None,
    ) -> SwitchView:
        """From RAM, or another tier, to where it was ordered to lie."""
        entry = self._gear.ledger.entry(name)
        if entry.tier is tier:
            return view.model_copy(update={"tier": tier, "note": f"lies in {tier} already"})
        began = self._gear.clock()
        stored = 0
        notes: list[str] = []
        if entry.tier is TierName.RAM:
            report = await self._parking.park(gpu, name, tier, connections=connections, allow_changes=allow_changes)
            stored, notes = report.bytes_stored, list(report.notes)
            steps = [StepView(step=step.step, seconds=step.seconds) for step in report.steps]
        else:
            await self._transfers.move(name, tier)
            steps = [StepView(step="move", seconds=self._gear.clock() - began)]
        return view.model_copy(
            update={
                "tier": tier,
                "bytes_stored": stored,
                "seconds": (0.0 if view.already else view.seconds) + self._gear.clock() - began,
                "steps": [*([] if view.already else view.steps), *steps],
                "already": False,
                "note": f"lies in {tier}",
                "notes": notes,
            }
        )
