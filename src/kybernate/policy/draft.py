"""A plan while it is made: what policies share, so that each of them is only its rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.policy.node_state import Action, Bring, Class, Leave, Member, NodeState, Phase, Plan
from kybernate.policy.settings import PolicySettings
from kybernate.policy.victims import Candidate, cover, fits_at_all, idle_for, missing_bytes, preemptible, rank


@dataclass(slots=True)
class Draft:
    """Keeps the books: nobody is a victim twice, no byte is given twice."""

    node: NodeState
    settings: PolicySettings
    free: dict[GpuUuid, int] = field(init=False)
    taken: set[WorkloadName] = field(default_factory=set)
    """Those that an action is about already."""
    actions: list[Action] = field(default_factory=list)
    reasons: dict[WorkloadName, str] = field(default_factory=dict)
    polls: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = dict(self.node.free)

    def plan(self) -> Plan:
        polls = [poll for poll in self.polls if poll > self.node.now]
        return Plan(tuple(self.actions), min(polls, default=None), self.reasons)

    def bring(self, member: Member, victims: Iterable[Candidate], why: str) -> None:
        leaving = [candidate.member for candidate in victims]
        self.taken.update(victim.name for victim in leaving)
        self.taken.add(member.name)
        for gpu, size in member.bytes.items():  # what victims free beyond it is free only when they are gone
            freed = sum(victim.bytes.get(gpu, 0) for victim in leaving)
            self.free[gpu] = self.free.get(gpu, 0) - max(0, size - freed)
        preempt = any(victim.in_flight and preemptible(victim, member, self.settings) for victim in leaving)
        self.actions.append(Bring(member.name, tuple(victim.name for victim in leaving), why, preempt=preempt))

    def movable(self) -> list[Member]:
        """Who might be paused at all now, in order of names."""
        return [
            member
            for member in sorted(self.node.members.values(), key=lambda m: m.name)
            if member.phase is Phase.RESIDENT
            and member.pausable
            and not member.pinned
            and member.name not in self.taken
        ]


def queues(node: NodeState) -> list[Member]:
    """Who is away and has requests waiting, the oldest request first. Batch servers come after all interactive ones."""
    waiting = [m for m in node.members.values() if m.waiting and _may_come(m)]
    return sorted(waiting, key=lambda m: (m.klass is Class.BATCH, asked_at(m, node.now), m.name))


def asked_at(member: Member, now: float) -> float:
    return now if member.oldest_wait is None else member.oldest_wait


def _may_come(member: Member) -> bool:
    return member.phase in (Phase.AWAY, Phase.ABSENT) and not member.pinned


def always(_: Member) -> bool:
    return True


def into_gaps(draft: Draft, *, far: Callable[[Member], bool] = always) -> None:
    """Let work come that nobody waits for: batch workloads that are wanted, and what a person wants to run.

    It takes free room, or that of lower ranks, or of interactive workloads that are idle for `batch_idle` and `far` from being
    asked again; and the room of equals which had a long turn. Never while an interactive queue waits on the same GPUs.
    """
    node, settings = draft.node, draft.settings
    now = node.now
    wanted = [m for m in node.members.values() if m.wanted and not m.waiting and _may_come(m)]
    crowded = {gpu for m in queues(node) if m.klass is Class.INTERACTIVE for gpu in m.bytes}
    for member in sorted(wanted, key=lambda m: (tuple(-int(part) for part in rank(m)), m.since, m.name)):
        if member.name in draft.taken:
            continue
        if not fits_at_all(node, member):
            draft.reasons[member.name] = "needs more than this node hands out"
            continue
        if crowded & set(member.bytes):
            draft.reasons[member.name] = "interactive requests come first"
            continue
        settled = member.since + settings.hysteresis
        if (
            member.phase is Phase.AWAY and settled > now
        ):  # who gives memory back and takes it again must not make it swing
            draft.reasons[member.name] = "has been paused a moment ago"
            draft.polls.append(settled)
            continue
        able: list[Candidate] = []
        for other in draft.movable():
            moment = _gives_way_at(other, member, now=now, settings=settings)
            if moment is None or (rank(other) > rank(member) and not far(other)):
                continue
            if moment <= now:
                price = -now if other.klass is Class.BATCH else -idle_for(other, now)
                able.append(Candidate(other, int(rank(other) > rank(member)), price))
            else:
                draft.polls.append(moment)
        chosen = cover(able, missing_bytes(member.bytes, draft.free))
        if chosen is None:
            draft.reasons[member.name] = "waits for a gap: others use its room or were asked a moment ago"
            continue
        draft.bring(member, chosen, "has work to do" + (", and they are idle" if chosen else ", and there is room"))


def _gives_way_at(other: Member, member: Member, *, now: float, settings: PolicySettings) -> float | None:
    """From when on it may be paused for work that nobody waits for; None: not while things are as they are."""
    if other.in_flight or other.waiting:
        return None
    if rank(other) < rank(member):
        return other.since + settings.min_run
    if rank(other) == rank(member) and other.wanted:
        return other.since + settings.batch_quantum
    if not settings.batch_evicts_idle or other.wanted:
        return None
    return max(other.last_use + settings.batch_idle, other.since + settings.min_run)


def out_of_time(member: Member, now: float) -> bool:
    """It has had no request for its own idle time: it goes, and isn't brought back for a guess."""
    return member.idle_s is not None and member.last_use + member.idle_s <= now


def leave_in_time(draft: Draft) -> None:
    """Leaves: those idle for longer than their `idle_s`, and batch workloads that nobody wants any more."""
    now = draft.node.now
    for member in draft.movable():
        if member.in_flight or member.waiting or member.wanted:
            continue
        if member.idle_s is None:
            if member.klass is Class.BATCH:
                draft.actions.append(Leave(member.name, "its time is over or its work is done"))
                draft.taken.add(member.name)
            continue
        ends = max(member.last_use, member.since) + member.idle_s
        if ends <= now:
            draft.actions.append(Leave(member.name, f"no request for {member.idle_s:g} s"))
            draft.taken.add(member.name)
        else:
            draft.polls.append(ends)
