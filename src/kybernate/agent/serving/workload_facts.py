"""What serving knows of one workload at one moment, but for what its owner task does. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from kybernate.agent.records.ledger import Ledger
from kybernate.agent.serving.build_state import Seen, bytes_of, phase_of, source_of
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.controller_state import ControllerState
from kybernate.agent.serving.lease_table import LeaseTable
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.serving.worker_load import WorkerLoads
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.model.types import WorkloadName
from kybernate.settings.specs import Kind


class WorkloadFacts:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        configuration: CurrentConfiguration,
        stats: WorkloadStats,
        loads: WorkerLoads,
        vram: VramAccess,
        leases: LeaseTable,
        state: ControllerState,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._configuration = configuration
        self._stats = stats
        self._loads = loads
        self._vram = vram
        self._leases = leases
        self._state = state
        self._clock = clock

    def now(self) -> float:
        """By the agent's clock."""
        return self._clock()

    def arrivals(self) -> tuple[tuple[float, WorkloadName], ...]:
        """The last requests that came."""
        return self._loads.arrivals()

    def names(self) -> list[WorkloadName]:
        """Of what the configuration names, and what lives."""
        alive = [entry.name for entry in self._ledger.entries().values() if not entry.ended]
        return sorted({*self._configuration.served, *alive})

    def see(self, name: WorkloadName, now: float | None = None) -> Seen:
        """`now`: seconds by the agent's clock; None: it is asked."""
        served = self._configuration.served.get(name)
        is_model = served is not None and served.kind is Kind.MODEL
        actions = self._state.actions
        return Seen(
            name=name,
            entry=self._ledger.get(name),
            served=served,
            stats=self._stats.of(name),
            demand=self._loads.demand(name, self._clock() if now is None else now),
            hinted=self._vram.hinted(served),
            resident=self._vram.held_by(name),
            ready=not is_model or self._leases.is_open(name) or not actions.is_starting(name),
            acting=actions.of(name),
            requested=name in self._state.requested,
            shortage=self._state.outcomes.shortage(name),
            reserved=self._vram.reserved_for(name),
            wanted=self._vram.wanted_by(name),
            never_ready=not self._state.outcomes.has_been_up(name),
        )

    def expected_come_s(self, name: WorkloadName) -> float:
        """What its coming will take, in seconds."""
        seen = self.see(name)
        phase = phase_of(seen)
        size = sum(bytes_of(seen, phase, list(self._vram.numbers())).values())
        return self._stats.costs.cost(name, size=size, source=source_of(seen, phase)).come
