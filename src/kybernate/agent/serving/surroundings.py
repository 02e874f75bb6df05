"""What serving needs of the agent's other rooms, as narrow as it needs it. All of it is called in the loop's thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from kybernate.agent.records.ledger import Entry
from kybernate.agent.workloads.orders import Stored
from kybernate.model.api import RunRequest, StoppedView, SwitchView
from kybernate.model.caller import Caller
from kybernate.model.types import EndedBy, TierName, WorkloadName
from kybernate.process.tree import Tree


class LiveWorkloads(Protocol):
    """Processes and owner tasks."""

    def idle(self, name: WorkloadName) -> bool:
        """Nobody does anything to it just now."""

    def tree(self, name: WorkloadName) -> Tree | None:
        """Its processes; None: there are none of ours."""

    async def wait_until(self, true: Callable[[], bool], timeout_s: float | None) -> bool:
        """Look at each change of the ledger. Whether it became true in time. `timeout_s` None: as long as it takes."""


class RunWorkload(Protocol):
    def __call__(self, request: RunRequest, caller: Caller, *, by_itself: bool = False) -> Awaitable[Entry]:
        """Start a workload. `by_itself`: no person ordered it. Raises KybernateError."""


class StopWorkload(Protocol):
    def __call__(
        self,
        name: WorkloadName,
        *,
        grace_s: float,
        remove: bool,
        by: EndedBy = EndedBy.AGENT,
        stored: Stored = Stored.ENDS,
    ) -> Awaitable[StoppedView]:
        """End a workload. Raises KybernateError."""


class Switches(Protocol):
    """The policy's orders; each is carried out in its workload's owner task."""

    async def bring(
        self, name: WorkloadName, *, victims: Sequence[WorkloadName], wait_s: float, why: str
    ) -> SwitchView:
        """Resume it; these victims make room, or others where they don't suffice any more."""

    async def give_back(self, name: WorkloadName, *, why: str) -> SwitchView:
        """Pause it, though nobody needs its room."""


class Demoter(Protocol):
    """Takes workloads that are paused in RAM to a deeper tier."""

    def may_demote(self, entry: Entry) -> bool:
        """Whether the agent may do that by itself now."""

    async def demote(self, entry: Entry, tier: TierName, *, why: str) -> bool:
        """Whether it left."""
