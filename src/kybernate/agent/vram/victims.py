"""What making room needs of others: who pauses whom it chose, and a policy that chooses better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from kybernate.agent.vram.arbiter import Rank
from kybernate.agent.workloads.orders import Freed
from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.policy.victims import Choice


class Pauser(Protocol):
    """Who pauses victims."""

    def idle(self, name: WorkloadName) -> bool:
        """Nobody does anything to it, and nothing is in line."""

    async def evict(self, name: WorkloadName, *, requester: WorkloadName | None, freed: Freed | None = None) -> None:
        """Pause it on the arbiter's behalf. Takes its place in line before the first await. `freed` is told, from another
        thread, of its memory as it becomes free."""

    async def give_way(self, name: WorkloadName, *, why: str) -> None:
        """Pause one that waits for room, in its call. As `evict`; its requests in flight wait with it."""


class VictimPolicy(Protocol):
    """A policy that knows more than the ledger."""

    def choose(self, *, requester: WorkloadName, needed: Mapping[GpuUuid, int], min_run_s: float | None) -> Choice:
        """Whose pause makes room.

        Args:
            min_run_s: 0 for a resume that somebody ordered; None: as it finds right.
        """

    def rank(self, name: WorkloadName) -> Rank:
        """Who comes before whom where allocations wait for each other."""
