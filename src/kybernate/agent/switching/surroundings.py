"""What switching needs of the tiers below RAM, which it doesn't know. All of it is called in the workload's owner task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.model.types import TierName, WorkloadName

T = TypeVar("T")


class PoolSpace(Protocol):
    """Space in the host pool for a workload's content."""

    async def with_room(self, name: WorkloadName, work: Callable[[], T], *, requester: WorkloadName | None = None) -> T:
        """Run `work` in a thread; as long as the pool is too small for it, room is made and it is tried again.

        Args:
            requester: whose coming waits for this one, so that it isn't waited for.

        Raises:
            NoRoom: nobody can go. What `work` raises.
        """


class Fallback(Protocol):
    """A copy of what a workload had in RAM."""

    async def find(self, gpu: GpuRuntime, name: WorkloadName) -> TierName | None:
        """What it had in RAM is gone: if there is an equal copy in the store, that is the workload now.

        Returns where it lies; None: there is none, or nobody can tell.
        """


class Restored(Protocol):
    """What brought a workload back into RAM."""

    @property
    def tier(self) -> TierName: ...

    @property
    def seconds(self) -> float: ...

    @property
    def note(self) -> str | None: ...


class StoredState(Protocol):
    """The state of workloads that lie below RAM."""

    async def bring_back(self, gpu: GpuRuntime, name: WorkloadName, *, take_over: bool) -> Restored:
        """From the store into RAM, paused.

        Args:
            take_over: also where another agent says that it is bringing it back.

        Raises:
            NoCopy: every copy is gone or damaged. Others: it lies where it lay.
        """

    def left_behind(self, name: WorkloadName) -> None:
        """It runs again: its snapshot is of a state it has left."""
