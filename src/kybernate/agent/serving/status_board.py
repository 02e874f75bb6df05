"""What workers are told besides leases: the configuration, and how each model stands, for the answers to those who wait."""

from __future__ import annotations

from kybernate.agent.records.ledger import Ledger
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.lease_table import LeaseTable
from kybernate.agent.serving.workers import Workers
from kybernate.agent.serving.workload_facts import WorkloadFacts
from kybernate.model.messages import Status
from kybernate.model.types import TierName, WorkloadName, WorkloadState
from kybernate.settings.specs import Kind

STOPPED = "stopped"
"""State of a model that has no processes and lies nowhere."""
VRAM = "vram"
"""Tier of one that runs."""


class StatusBoard:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        configuration: CurrentConfiguration,
        ledger: Ledger,
        facts: WorkloadFacts,
        leases: LeaseTable,
        workers: Workers,
    ) -> None:
        self._configuration = configuration
        self._ledger = ledger
        self._facts = facts
        self._leases = leases
        self._workers = workers
        self._known: dict[WorkloadName, Status] = {}
        """What workers were told last."""

    def greet(self, pid: int) -> None:
        """The first message to a worker."""
        self._workers.tell(pid, self._configuration.now.message())

    def tell_all_to(self, pid: int) -> None:
        """One worker, of every model."""
        for name, status in self._known.items():
            self._workers.tell(pid, status)
            if (refusal := self._leases.refusal(name)) is not None:
                self._workers.tell(pid, refusal)  # which the status took back

    def tell_configuration(self) -> None:
        """All workers."""
        self._workers.tell_all(self._configuration.now.message())

    def update_all(self) -> None:
        for name in self._configuration.served:
            self.update(name)

    def update(self, name: WorkloadName) -> None:
        """Tell all workers how a model stands, if that has changed."""
        served = self._configuration.served.get(name)
        if served is None or served.kind is not Kind.MODEL:
            return
        status = self._status(name)
        if self._known.get(name) == status:
            return
        self._known[name] = status
        self._workers.tell_all(status)
        if (refusal := self._leases.refusal(name)) is not None:
            self._workers.tell_all(refusal)  # which the status took back

    def on_refusal_cleared(self, name: WorkloadName) -> None:
        """It may be asked for again, which workers learn by a status."""
        status = self._known[name] = self._status(name)
        self._workers.tell_all(status)

    def forget(self, name: WorkloadName) -> None:
        """The configuration doesn't name it any more."""
        self._known.pop(name, None)

    def _status(self, name: WorkloadName) -> Status:
        entry = self._ledger.get(name)
        expected = 0.0 if self._leases.is_open(name) else round(self._facts.expected_come_s(name), 1)
        if entry is None or entry.ended:
            return Status(model=name, state=STOPPED, expected_s=expected)
        return Status(model=name, state=str(entry.state), tier=tier_of(entry.state, entry.tier), expected_s=expected)


def tier_of(state: WorkloadState, tier: TierName) -> str:
    """Where one that lives lies, as it is told."""
    return str(tier) if state is WorkloadState.PAUSED else VRAM
