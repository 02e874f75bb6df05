"""What follows from time, or from a changed file, and needs no policy: refusals taken back or said, programs that were changed
restarted, the idle sent to their lowest tier.
"""

from __future__ import annotations

from kybernate.agent.serving.build_state import Seen
from kybernate.agent.serving.collect_state import NodeStateCollector
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.demotions import Demotions
from kybernate.agent.serving.refusals import Refusals
from kybernate.agent.serving.restarts import Restarts
from kybernate.agent.serving.user_orders import UserOrders
from kybernate.agent.serving.victims import Victims
from kybernate.agent.workloads.starts import Starts
from kybernate.model.types import WorkloadState
from kybernate.settings.specs import Served


class Periodic:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        configuration: CurrentConfiguration,
        collector: NodeStateCollector,
        starts: Starts,
        user_orders: UserOrders,
        refusals: Refusals,
        victims: Victims,
        restarts: Restarts,
        demotions: Demotions,
    ) -> None:
        self._configuration = configuration
        self._collector = collector
        self._starts = starts
        self._user_orders = user_orders
        self._refusals = refusals
        self._victims = victims
        self._restarts = restarts
        self._demotions = demotions

    def poll(self, now: float) -> None:
        """Nothing while the agent goes down."""
        if self._starts.closed:
            return
        self._user_orders.poll(now)
        for name, served in self._configuration.served.items():
            seen = self._collector.see(name, now)
            self._refusals.take_back(name, seen.entry, now)
            if seen.entry is not None and not seen.entry.ended and seen.acting is None:
                self._care_for(served, seen, now)

    def _care_for(self, served: Served, seen: Seen, now: float) -> None:
        """One that lives, and on which no action is under way."""
        entry = seen.entry
        assert entry is not None
        self._refusals.refuse_paused_by_order(served, entry)
        if entry.state is WorkloadState.RUNNING and seen.stats.was_ready:
            self._victims.let_run(served.name)
        if seen.stats.fingerprint not in ("", served.fingerprint):
            if not seen.worked_on:
                self._restarts.begin_when_idle(served, entry, seen.demand)
        else:
            self._demotions.begin_when_due(served, entry, seen.demand, now)
