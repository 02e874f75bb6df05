"""The policies that most programs of this kind have: what `balanced` is measured against, and a choice for who wants them.

Both serve the oldest waiting request first and switch for it at once; they differ in whom they pause. Neither waits for a queue to
grow, knows what a switch costs, comes back by itself or looks ahead. Batch workloads run where there is room, and leave for
interactive ones.
"""

from __future__ import annotations

from collections.abc import Callable

from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.node.policy.picture import Action, Bring, Class, Leave, Member, Phase, Picture, Plan
from kybernate.node.policy.settings import PolicySettings
from kybernate.node.policy.victims import Candidate, cover, fits_at_all, gib, missing_bytes, preemptible, rank

Pricing = Callable[[Member], tuple[int, float]]
"""Band and price of a victim: lower goes first."""


def fifo(picture: Picture, settings: PolicySettings) -> Plan:
    """Strict order of arrival; whoever came first goes first, busy or not."""
    return _oldest_first(picture, settings, lambda member: (0, member.since))


def lru(picture: Picture, settings: PolicySettings) -> Plan:
    """The oldest waiting request first; whoever was used least recently goes, those with requests in flight last."""
    return _oldest_first(picture, settings, lambda member: (1 if member.in_flight else 0, member.last_use))


def _oldest_first(picture: Picture, settings: PolicySettings, pricing: Pricing) -> Plan:
    actions: list[Action] = []
    reasons: dict[WorkloadName, str] = {}
    free = dict(picture.free)
    taken: set[WorkloadName] = set()
    blocked = False
    for member in queue(picture):
        if not fits_at_all(picture, member):
            reasons[member.name] = "needs more than this node hands out"
            continue
        if blocked:
            reasons[member.name] = "waits for its turn: older requests come first"
            continue
        missing = missing_bytes(member.bytes, free)
        able = [
            Candidate(other, *pricing(other))
            for other in picture.members.values()
            if other.phase is Phase.RESIDENT
            and other.name not in taken
            and other.pausable
            and not other.pinned
            and may_displace(member, other)
        ]
        chosen = cover(able, missing)
        if chosen is None:
            reasons[member.name] = f"needs {gib(sum(missing.values()))} more, and nobody can be paused for it now"
            blocked = member.klass is Class.INTERACTIVE
            continue
        victims = [c.member for c in chosen]
        taken.update(victim.name for victim in victims)
        settle(free, member, victims)
        preempt = any(victim.in_flight and preemptible(victim, member, settings) for victim in victims)
        why = "has the oldest waiting request" if member.waiting else "has work to do and room for it"
        actions.append(Bring(member.name, tuple(victim.name for victim in victims), why, preempt=preempt))
    actions += out_of_time(picture, taken=frozenset(taken))
    return Plan(actions=tuple(actions), look_again=next_timeout(picture), reasons=reasons)


def queue(picture: Picture) -> list[Member]:
    """Who wants to come: interactive ones by their oldest request, then batch ones by priority."""
    wanting = [
        m
        for m in picture.members.values()
        if m.phase in (Phase.AWAY, Phase.ABSENT) and (m.waiting or m.wanted) and not m.pinned
    ]

    def order(member: Member) -> tuple[bool, float, int, WorkloadName]:
        since = picture.now if member.oldest_wait is None else member.oldest_wait
        return (member.klass is Class.BATCH, since, -member.priority, member.name)

    return sorted(wanting, key=order)


def may_displace(member: Member, other: Member) -> bool:
    """Interactive ones displace anybody, batch ones only batch ones of lower rank."""
    return member.klass is Class.INTERACTIVE or rank(other) < rank(member)


def settle(free: dict[GpuUuid, int], member: Member, victims: list[Member]) -> None:
    """Take from `free` what a Bring will use: what its victims free beyond that is free only when they are gone."""
    for gpu, size in member.bytes.items():
        freed = sum(victim.bytes.get(gpu, 0) for victim in victims)
        free[gpu] = free.get(gpu, 0) - max(0, size - freed)


def out_of_time(picture: Picture, *, taken: frozenset[WorkloadName]) -> list[Action]:
    """Those idle for longer than their `idle_s`, and batch workloads that nobody wants any more."""
    actions: list[Action] = []
    for member in sorted(picture.members.values(), key=lambda m: m.name):
        if member.phase is not Phase.RESIDENT or member.name in taken or member.pinned or not member.pausable:
            continue
        if member.in_flight or member.waiting or member.wanted:
            continue
        if member.klass is Class.BATCH and member.idle_s is None:
            actions.append(Leave(member.name, "its schedule is over, or its work is done"))
        elif member.idle_s is not None and picture.now - _idle_since(member) >= member.idle_s:
            actions.append(Leave(member.name, f"no request for {member.idle_s:g} s"))
    return actions


def next_timeout(picture: Picture) -> float | None:
    """When the next idle timeout is over."""
    ends = [
        _idle_since(m) + m.idle_s
        for m in picture.members.values()
        if m.phase is Phase.RESIDENT
        and m.idle_s is not None
        and not (m.in_flight or m.waiting or m.wanted or m.pinned)
        and m.pausable
    ]
    return min((end for end in ends if end > picture.now), default=None)


def _idle_since(member: Member) -> float:
    return max(member.last_use, member.since)
