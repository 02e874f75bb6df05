"""The agent's state, gathered into what a policy decides by: ledger, loads, statistics, VRAM, what is under way."""

from __future__ import annotations

from dataclasses import replace

from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.build_state import Seen, member_of
from kybernate.agent.serving.prefetching import Prefetching
from kybernate.agent.serving.surroundings import LiveWorkloads
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.serving.workload_facts import WorkloadFacts
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.agent.workloads.starts import Starts
from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.policy.node_state import Member, NodeState, Phase


class NodeStateCollector:
    """It changes nothing. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        facts: WorkloadFacts,
        workloads: LiveWorkloads,
        prefetching: Prefetching,
        starts: Starts,
        backoff: Backoff,
        stats: WorkloadStats,
        vram: VramAccess,
        auto_resume: bool,
    ) -> None:
        """`auto_resume`: what the arbiter paused comes back by itself."""
        self._facts = facts
        self._workloads = workloads
        self._prefetching = prefetching
        self._starts = starts
        self._backoff = backoff
        self._stats = stats
        self._vram = vram
        self._auto_resume = auto_resume

    def collect(self) -> NodeState:
        """All of it, at one moment."""
        now = self._facts.now()
        numbers = self._vram.numbers()
        members = {name: self._member(name, list(numbers), now) for name in self._facts.names()}
        free: dict[GpuUuid, int] = {}
        for uuid, number in numbers.items():
            promised = dict(number.reserved)
            for member in members.values():
                if member.phase is Phase.COMING:
                    left = member.bytes.get(uuid, 0) - self._vram.held_by(member.name).get(uuid, 0)
                    promised[member.name] = max(promised.get(member.name, 0), left)
            free[uuid] = number.unheld - sum(promised.values())
        return NodeState(
            now=now,
            members=members,
            capacity={uuid: number.capacity for uuid, number in numbers.items()},
            free=free,
            prefetch_free=self._prefetching.free_bytes(),
            arrivals=self._facts.arrivals(),
        )

    def _member(self, name: WorkloadName, gpus: list[GpuUuid], now: float) -> Member:
        return member_of(
            self.see(name, now), costs=self._stats.costs, gpus=gpus, auto_resume=self._auto_resume, now=now
        )

    def see(self, name: WorkloadName, now: float) -> Seen:
        """What is known of one workload."""
        seen = self._facts.see(name, now)
        return replace(
            seen,
            worked_on=not self._workloads.idle(name),
            prefetched=self._prefetching.is_prefetched(seen.entry),
            stopped=self._starts.is_held(name),
            back_off_until=self._backoff.until(name),
            refused_until=self._vram.refused_until(name),
        )
