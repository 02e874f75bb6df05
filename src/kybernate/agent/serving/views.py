"""What the API says of serving: made from what its parts know at one moment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, Literal

from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.activator import Activator
from kybernate.agent.serving.advice import advice_on
from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.collect_state import NodeStateCollector
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.gpu_usage import GpuUsage
from kybernate.agent.serving.lease_table import LeaseTable
from kybernate.agent.serving.planner import Planner
from kybernate.agent.serving.plans import plan_view
from kybernate.agent.serving.prefetching import Prefetching
from kybernate.agent.serving.status_board import tier_of
from kybernate.agent.serving.status_text import again_at, failing, standing, unstarted
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.serving.workload_stats import Stats, Usage
from kybernate.model.api import ExplainView
from kybernate.model.api_serving import (
    ClassView,
    CostView,
    PlanView,
    ServedView,
    ServingView,
    StagingView,
    UsageView,
)
from kybernate.model.caller import Caller
from kybernate.model.types import ServedKind, WorkloadName, WorkloadState
from kybernate.policy.node_state import Member
from kybernate.settings.specs import Served

_STOPPED: Final = "stopped"


class ServedViews:
    """Of one model, job or other workload. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        current: CurrentConfiguration,
        collector: NodeStateCollector,
        planner: Planner,
        leases: LeaseTable,
        backoff: Backoff,
        usage: GpuUsage,
    ) -> None:
        self._current = current
        self._collector = collector
        self._planner = planner
        self._leases = leases
        self._backoff = backoff
        self._usage = usage

    def view(self, member: Member, now: float, caller: Caller | None) -> ServedView:
        """`caller`: who sees it; None: everybody may."""
        name = member.name
        seen = self._collector.see(name, now)
        entry, served, demand = seen.entry, seen.served, seen.demand
        endpoint = None if served is None else served.endpoint
        failed = self._backoff.last(name, public=True)
        return ServedView(
            name=name,
            kind=ServedKind.OTHER if served is None else ServedKind(served.kind),
            klass=member.klass,
            priority=member.priority,
            state=_state(entry, served),
            phase=member.phase,
            tier=None if entry is None or entry.ended else tier_of(entry.state, entry.tier),
            open=self._leases.is_open(name),
            waiting=demand.waiting,
            oldest_wait_s=None if demand.oldest_wait is None else max(0.0, now - demand.oldest_wait),
            in_flight=demand.in_flight,
            begun=demand.begun,
            ended=demand.ended,
            service_s=demand.service_s,
            bytes=sum(member.bytes.values()),
            cost=CostView(
                leave_s=member.cost.leave, come_s=member.cost.come, come_staged_s=member.cost.come_prefetched
            ),
            staged=member.prefetched,
            wanted=member.wanted,
            pinned=member.pinned,
            reason=self._reason(name, entry, served, seen.stats, now, caller),
            failing=served is not None and failing(entry, failed),
            again_at=again_at(entry, stats=seen.stats, failed=failed, now=now),
            last_use=member.last_use,
            usage=usage_view(self._usage.usage(name)),
            names=[] if endpoint is None else list(endpoint.names),
            hosts=[] if endpoint is None else list(endpoint.hosts),
            paths=[] if endpoint is None else list(endpoint.paths),
            port=None if endpoint is None else endpoint.port,
        )

    def is_model(self, name: WorkloadName) -> bool:
        served = self._current.served.get(name)
        return served is not None and served.endpoint is not None

    def explain_unstarted(self, name: WorkloadName, now: float, caller: Caller) -> ExplainView | None:
        """Of one that the configuration names and the ledger doesn't know; None of any other."""
        seen = self._collector.see(name, now)
        if seen.served is None or seen.entry is not None:
            return None
        refusal = self._leases.refusal(name)
        for_good = refusal is not None and refusal.retry_after_s is None
        reason = self._reason(name, None, seen.served, seen.stats, now, caller)
        return unstarted(name, seen.served, reason, for_good=for_good)

    def waits_for(self, entry: Entry, now: float, caller: Caller) -> str:
        """Why a workload waits, or doesn't come back; empty when there is nothing to say."""
        if not entry.ended:
            return self._planner.reason(entry.name, public=not caller.owns(entry.uid))
        seen = self._collector.see(entry.name, now)
        return self._reason(entry.name, entry, seen.served, seen.stats, now, caller)

    def _reason(
        self,
        name: WorkloadName,
        entry: Entry | None,
        served: Served | None,
        stats: Stats,
        now: float,
        caller: Caller | None,
    ) -> str:
        """Why it stands where it stands, as far as serving knows, and the caller may know: output is its owner's."""
        public = caller is None or not caller.owns(os.geteuid() if entry is None else entry.uid)
        planned = self._planner.reason(name, public=public)
        if served is None:
            return planned
        refusal = self._leases.refusal(name)
        return standing(
            served,
            entry,
            stats=stats,
            planned=planned,
            refused="" if refusal is None else refusal.message,
            failed=self._backoff.last(name, public=public),
            now=now,
        )


class ServingViews:
    """Of all together. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        current: CurrentConfiguration,
        collector: NodeStateCollector,
        planner: Planner,
        served: ServedViews,
        usage: GpuUsage,
        prefetching: Prefetching,
        activator: Activator,
        vram: VramAccess,
    ) -> None:
        self._current = current
        self._collector = collector
        self._planner = planner
        self.served = served
        self._usage = usage
        self._prefetching = prefetching
        self._activator = activator
        self._vram = vram

    def view(self, now: float, *, caller: Caller | None = None) -> ServingView:
        """`caller`: who sees it; None: everybody may."""
        node = self._collector.collect()
        address = self._activator.address
        classes = self._usage.by_class()
        total = sum(usage.byte_s for usage in classes.values())
        return ServingView(
            time=now,
            listen=None if address is None else address.listen,
            policy=self._current.serving.policy,
            served=[self.served.view(member, now, caller) for member in node.members.values()],
            classes=[
                ClassView(klass=klass, usage=usage_view(usage), share=usage.byte_s / total if total else 0.0)
                for klass, usage in sorted(classes.items())
            ],
            workers=self._activator.views(),
            staging=StagingView(
                budget_bytes=self._prefetching.budget(),
                used_bytes=self._prefetching.used_bytes(),
                hits=self._prefetching.hits,
                misses=self._prefetching.misses,
            ),
            notes=self._activator.notes(),
            advice=self.advice(),
        )

    def plan(self, names: Sequence[WorkloadName]) -> PlanView:
        """What would be done now, were there a request for each of these, which the configuration names."""
        preview = self._planner.preview(names)
        return plan_view(
            preview.node,
            preview.plan,
            policy=self._current.serving.policy,
            asked=names,
            refused=preview.refused,
        )

    def advice(self) -> list[str]:
        """What in the file is most likely not meant so, on this machine; a line each."""
        return advice_on(self._current.now, self._vram)


def _state(entry: Entry | None, served: Served | None) -> WorkloadState | Literal["stopped"]:
    """Of an ended one that the configuration doesn't name, how it ended."""
    if entry is not None and (not entry.ended or served is None):
        return entry.state
    return _STOPPED


def usage_view(usage: Usage) -> UsageView:
    return UsageView(resident_s=usage.resident_s, busy_s=usage.busy_s, byte_s=usage.byte_s)
