"""Serving's life: begun with the agent, ended with it. What its parts are, wiring/serving.py shows."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from kybernate.agent.records.ledger import Observer
from kybernate.agent.serving.activator import Activator
from kybernate.agent.serving.adoption import Adoption
from kybernate.agent.serving.configuration import Configured
from kybernate.agent.serving.ledger_watch import LedgerWatch
from kybernate.agent.serving.observe import Observations
from kybernate.agent.serving.policy_start import PolicyStart
from kybernate.agent.serving.reload import Applying, Reload
from kybernate.agent.serving.removal import Removal
from kybernate.agent.serving.request_gate import ServingGate
from kybernate.agent.serving.serving_orders import ServingOrders
from kybernate.agent.serving.views import ServingViews
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.types import WorkloadName


class ServingLife:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        stats: WorkloadStats,
        ledger_watch: LedgerWatch,
        applying: Applying,
        observations: Observations,
        activator: Activator,
        policy_start: PolicyStart,
        removal: Removal | None,
        adoption: Adoption,
    ) -> None:
        """`removal`: None of an agent without a file, which says nothing of what earlier ones had."""
        self._stats = stats
        self._ledger_watch = ledger_watch
        self._applying = applying
        self._observations = observations
        self._activator = activator
        self._policy_start = policy_start
        self._removal = removal
        self._adoption = adoption

    async def begin(self, first: Configured) -> None:
        """After the recovery of the workloads, before the API answers."""
        await in_thread("read the statistics", self._stats.load)
        self._ledger_watch.begin()
        self._applying.apply(first)
        self._observations.take_over()
        await self._activator.begin()
        self._applying.want_workers()
        self._policy_start.begin_when_needed()
        if self._removal is not None:
            self._removal.end_unnamed(first)
        self._adoption.begin()

    async def end(self) -> None:
        """The agent goes down."""
        self._ledger_watch.end()
        await self._activator.end()


@dataclass(frozen=True, slots=True)
class Serving:
    """What the rest of the agent uses of it."""

    life: ServingLife
    on_changed: Observer
    gate: ServingGate
    before_stop: Callable[[WorkloadName, float], Coroutine[Any, Any, None]]
    orders: ServingOrders
    file: Reload
    views: ServingViews
    activator: Activator
