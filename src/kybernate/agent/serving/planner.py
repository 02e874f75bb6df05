"""Asks the policy: for a plan, for victims of an allocation or an ordered resume, and for what it would do if somebody asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.collect_state import NodeStateCollector
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.lease_table import LeaseTable
from kybernate.agent.vram.arbiter import Rank
from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.policy.node_state import Class, NodeState, Plan
from kybernate.policy.registry import policy_named
from kybernate.policy.victims import Choice, choose_victims


@dataclass(frozen=True, slots=True)
class Preview:
    """What would be done now."""

    node: NodeState
    """With the requests that were imagined."""
    plan: Plan
    refused: Mapping[WorkloadName, str] = field(default_factory=dict)
    """Whose request would be answered with an error, and with which."""


class Planner:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        configuration: CurrentConfiguration,
        collector: NodeStateCollector,
        leases: LeaseTable,
        backoff: Backoff,
    ) -> None:
        self._configuration = configuration
        self._collector = collector
        self._leases = leases
        self._backoff = backoff
        self._last = Plan()

    def plan(self) -> tuple[NodeState, Plan]:
        """By the policy of the configuration in force."""
        node = self._collector.collect()
        self._last = self._decide(node)
        return node, self._last

    def preview(self, asking: Sequence[WorkloadName]) -> Preview:
        """What would be done now, were there a request for each of these; nothing is done."""
        node = self._collector.collect()
        members = dict(node.members)
        refused = {name: refusal.message for name in asking if (refusal := self._leases.refusal(name)) is not None}
        for name in asking:
            if name in refused:
                continue
            member = members[name]
            oldest = node.now if member.oldest_wait is None else member.oldest_wait
            members[name] = replace(member, waiting=member.waiting + 1, oldest_wait=oldest, pinned=False)
        node = replace(node, members=members)
        return Preview(node, self._decide(node), refused)

    def choose(self, *, requester: WorkloadName, needed: Mapping[GpuUuid, int], min_run_s: float | None) -> Choice:
        """Victims for an allocation or an ordered resume: see `VictimPolicy` in vram/victims.py."""
        return choose_victims(
            self._collector.collect(),
            requester=requester,
            needed=needed,
            settings=self._configuration.serving.numbers(),
            min_run=min_run_s,
        )

    def rank(self, name: WorkloadName) -> Rank:
        """Who comes before whom where allocations wait for each other."""
        served = self._configuration.served.get(name)
        return (False, 0) if served is None else (served.klass is Class.INTERACTIVE, served.priority)

    def reason(self, name: WorkloadName, *, public: bool) -> str:
        """Why it waits, for people; empty when there is nothing to say. `public`: without what it has written itself."""
        return self._backoff.reason(name, public=public) or self._last.reasons.get(name, "")

    def _decide(self, node: NodeState) -> Plan:
        settings = self._configuration.serving
        return policy_named(settings.policy)(node, settings.numbers())
