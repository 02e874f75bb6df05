"""What the API says of serving: made from what its parts know at one moment."""

from __future__ import annotations

import os
from typing import Literal

from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.serving import Serving
from kybernate.agent.serving.status_text import again_at, failing, standing
from kybernate.agent.serving.workload_stats import Usage
from kybernate.model import api_serving as words
from kybernate.model.caller import Caller
from kybernate.model.types import ServedKind, WorkloadName, WorkloadState
from kybernate.policy.node_state import Member


def serving_view(serving: Serving, now: float, *, caller: Caller | None = None) -> words.ServingView:
    """`caller`: who sees it; None: everybody may."""
    picture = serving.controller.looking.look()
    address = serving.processes.address
    listening = serving.workers.listening()
    classes = serving.accounts.by_class()
    total = sum(usage.byte_s for usage in classes.values())
    return words.ServingView(
        time=now,
        listen=None if address is None else address.listen,
        policy=serving.settings.serving.policy,
        served=[_served(serving, member, now, caller) for member in picture.members.values()],
        classes=[
            words.ClassView(klass=klass, usage=_usage(usage), share=usage.byte_s / total if total else 0.0)
            for klass, usage in sorted(classes.items())
        ],
        workers=[
            words.WorkerView(worker=each.worker, pid=each.pid, connected=each.pid in listening)
            for each in serving.processes.all()
        ],
        staging=words.StagingView(
            budget_bytes=serving.staging.budget(),
            used_bytes=serving.staging.used_bytes(),
            hits=serving.staging.hits,
            misses=serving.staging.misses,
        ),
        notes=[
            f"activator worker {each} doesn't listen; {serving.places.log} says why"
            for each in serving.processes.missing()
        ],
        advice=serving.advice(),
    )


def _served(serving: Serving, member: Member, now: float, caller: Caller | None) -> words.ServedView:
    name = member.name
    served = serving.controller.served.get(name)
    demand = serving.loads.of(name, now)
    seen = serving.controller.looking.see(name, now)
    entry = seen.entry
    alive = entry is not None and not entry.ended
    state: WorkloadState | Literal["stopped"] = "stopped"
    if entry is not None and (alive or served is None):
        state = entry.state
    tier = None
    if alive:
        assert entry is not None
        tier = str(entry.tier) if entry.state is WorkloadState.PAUSED else "vram"
    endpoint = None if served is None else served.endpoint
    failed = serving.controller.failed(name, public=True)
    return words.ServedView(
        name=name,
        kind=ServedKind.OTHER if served is None else ServedKind(served.kind),
        klass=member.klass,
        priority=member.priority,
        state=state,
        phase=member.phase,
        tier=tier,
        open=serving.gates.is_open(name),
        waiting=demand.waiting,
        oldest_wait_s=None if demand.oldest_wait is None else max(0.0, now - demand.oldest_wait),
        in_flight=demand.in_flight,
        begun=demand.begun,
        ended=demand.ended,
        service_s=demand.service_s,
        bytes=sum(member.bytes.values()),
        cost=words.CostView(
            leave_s=member.cost.leave, come_s=member.cost.come, come_staged_s=member.cost.come_prefetched
        ),
        staged=member.prefetched,
        wanted=member.wanted,
        pinned=member.pinned,
        reason=reason(serving, name, entry, now, caller=caller),
        failing=served is not None and failing(entry, failed),
        again_at=again_at(entry, memory=serving.memories.of(name), failed=failed, now=now),
        last_use=member.last_use,
        usage=_usage(serving.accounts.usage(name)),
        names=[] if endpoint is None else list(endpoint.names),
        hosts=[] if endpoint is None else list(endpoint.hosts),
        paths=[] if endpoint is None else list(endpoint.paths),
        port=None if endpoint is None else endpoint.port,
    )


def reason(serving: Serving, name: WorkloadName, entry: Entry | None, now: float, *, caller: Caller | None) -> str:
    """Why it stands where it stands, as far as serving knows, and the caller may know: output is its owner's."""
    served = serving.controller.served.get(name)
    public = caller is None or not caller.owns(os.geteuid() if entry is None else entry.uid)
    planned = serving.controller.reason(name, public=public)
    refusal = serving.gates.refusal(name)
    if served is None:
        return planned
    return standing(
        served,
        entry,
        memory=serving.memories.of(name),
        planned=planned,
        refused="" if refusal is None else refusal.message,
        failed=serving.controller.failed(name, public=public),
        now=now,
    )


def _usage(usage: Usage) -> words.UsageView:
    return words.UsageView(resident_s=usage.resident_s, busy_s=usage.busy_s, byte_s=usage.byte_s)
