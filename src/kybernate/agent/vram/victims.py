"""What admission.py needs of others: who does what it decides, and who chooses whom to pause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from kybernate.agent.vram.overlapped_eviction import Freed
from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.policy.victims import Choice


class Workloads(Protocol):
    """What room-making needs of the workloads."""

    def idle(self, name: WorkloadName) -> bool: ...

    async def evict(self, name: WorkloadName, *, requester: WorkloadName | None, freed: Freed | None = None) -> None:
        """Pause it on the arbiter's behalf. Takes its place in line before the first await. `freed` is told, from another
        thread, of its memory as it becomes free."""

    async def give_way(self, name: WorkloadName, *, why: str) -> None:
        """Pause one that waits for room, in its call. As `evict`; its requests in flight wait with it."""

    async def bring_back(self, name: WorkloadName, *, may_evict: bool) -> None:
        """Resume it on the arbiter's behalf, if it still fits or, with `may_evict`, others can be paused for it."""


class Chooser(Protocol):
    """A policy that knows more than the ledger."""

    def __call__(self, *, requester: WorkloadName, needed: Mapping[GpuUuid, int], min_run_s: float | None) -> Choice:
        """Whose pause makes room.

        Args:
            min_run_s: 0 for a resume that somebody ordered; None: as it finds right.
        """
