"""Workloads that have been paused in RAM for longer than `demote_after` go to their lowest tier."""

from __future__ import annotations

from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.action_runner import ActionRunner
from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.surroundings import Demoter
from kybernate.agent.serving.worker_load import Demand
from kybernate.policy.node_state import Phase
from kybernate.settings.specs import Served


class Demotions:
    """Use it in the loop's thread."""

    def __init__(self, *, runner: ActionRunner, demoter: Demoter | None, backoff: Backoff) -> None:
        """`demoter`: None on a node without a GPU, where nothing is paused."""
        self._runner = runner
        self._demoter = demoter
        self._backoff = backoff

    def begin_when_due(self, served: Served, entry: Entry, demand: Demand, now: float) -> None:
        after = served.demote_after_s
        if self._demoter is None or after is None or now - entry.since < after or demand.waiting:
            return
        if self._backoff.until(served.name) <= now and self._demoter.may_demote(entry):
            self._runner.begin(served.name, Phase.LEAVING, self._demote(self._demoter, served, entry))

    async def _demote(self, demoter: Demoter, served: Served, entry: Entry) -> None:
        tier = served.lowest_tier
        if not await demoter.demote(entry, tier, why=f"went to {tier}, being idle for long"):
            self._backoff.add(served.name, f"could not go to {tier}")
