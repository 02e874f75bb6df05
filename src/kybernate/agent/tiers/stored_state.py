"""The state of workloads that lie below RAM, as switching sees it."""

from __future__ import annotations

from kybernate.agent.tiers.stale_snapshots import StaleSnapshots
from kybernate.agent.tiers.unparking import Restored, Unparking
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.model.types import WorkloadName


class StoredStates:
    """Use it in the loop's thread, in the workload's owner task."""

    def __init__(self, *, unparking: Unparking, stale_snapshots: StaleSnapshots) -> None:
        self._unparking = unparking
        self._stale_snapshots = stale_snapshots

    async def bring_back(self, gpu: GpuRuntime, name: WorkloadName, *, take_over: bool) -> Restored:
        """From the store into RAM, paused. Raises what `Unparking.unpark` does."""
        return await self._unparking.unpark(gpu, name, take_over=take_over)

    def left_behind(self, name: WorkloadName) -> None:
        """It runs again: its snapshot is of a state it has left."""
        self._stale_snapshots.left_behind(name)
