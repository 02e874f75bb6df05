"""Pictures for the tests of policies, in few words; sizes in GiB, on one GPU unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kybernate.model.types import GIB, GpuUuid, TierName, WorkloadName
from kybernate.policy.node_state import Class, Cost, Member, NodeState, Phase

GPU = GpuUuid("GPU-0")
OTHER_GPU = GpuUuid("GPU-1")
NOW = 1000.0


def name(text: str) -> WorkloadName:
    return WorkloadName(text)


def member(text: str, gib: float | Mapping[GpuUuid, float] = 30, **given: Any) -> Member:
    """Resident for long, idle for 100 s; `waiting=n` makes it away with the oldest request 1 s old."""
    sizes = gib if isinstance(gib, Mapping) else {GPU: gib}
    away = bool(given.get("waiting")) or (given.get("klass") is Class.BATCH and given.get("wanted", False))
    given.setdefault("phase", Phase.AWAY if away else Phase.RESIDENT)
    if given.get("waiting"):
        given.setdefault("oldest_wait", NOW - 1)
        given.setdefault("last_use", NOW)
    if given["phase"] is Phase.AWAY:
        given.setdefault("tier", TierName.RAM)
    given.setdefault("last_use", NOW - 100)
    given.setdefault("since", NOW - 500)
    return Member(
        name=name(text),
        klass=given.pop("klass", Class.INTERACTIVE),
        priority=given.pop("priority", 0),
        bytes={gpu: int(size * GIB) for gpu, size in sizes.items()},
        cost=given.pop("cost", Cost(leave=0.8, come=0.8, come_prefetched=0.8)),
        **given,
    )


def node_state(*members: Member, capacity: float | Mapping[GpuUuid, float] = 60, **given: Any) -> NodeState:
    """`free` is what the resident, the coming and the leaving ones leave."""
    sizes = capacity if isinstance(capacity, Mapping) else {GPU: capacity}
    whole = {gpu: int(size * GIB) for gpu, size in sizes.items()}
    held = [m for m in members if m.phase in (Phase.RESIDENT, Phase.COMING, Phase.LEAVING)]
    given.setdefault("free", {gpu: size - sum(m.bytes.get(gpu, 0) for m in held) for gpu, size in whole.items()})
    given.setdefault("now", NOW)
    return NodeState(members={m.name: m for m in members}, capacity=whole, **given)


def later(before: NodeState, seconds: float) -> NodeState:
    return replace(before, now=before.now + seconds)
