"""Whom to pause so that bytes become free: the part that all policies and the room for allocations share.

A set of victims covers every GPU it is needed on, spares everybody who isn't needed for that, and is the cheapest such set:
first by how much it hurts (`band`), then by the sum of what its members are worth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kybernate.model.types import GIB, GpuUuid, WorkloadName
from kybernate.policy.node_state import Class, Member, NodeState, Phase
from kybernate.policy.settings import PolicySettings

SETTLING_WAIT_S = 0.1
"""How soon to look again while somebody is switching; short against a switch, long against the look."""
_SEARCHED_MAX = 10
"""Sets of so many candidates are tried one by one (1,024 of them); more are taken in order of price, which is nearly as good."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Exactly one of: victims to pause; a time to wait before asking again; neither, which means no pause can help."""

    victims: tuple[WorkloadName, ...] = ()
    wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody who may be paused now."""

    member: Member
    band: int
    """How much it hurts whoever uses it: any number of a lower band is better than one of a higher."""
    price: float
    """What it is worth to leave it, within its band."""


def rank(member: Member) -> tuple[bool, int]:
    """Who comes before whom: class, then priority."""
    return (member.klass is Class.INTERACTIVE, member.priority)


def coming(member: Member) -> float:
    """Seconds that its coming takes."""
    return member.cost.come_prefetched if member.prefetched else member.cost.come


def idle_for(member: Member, now: float) -> float:
    """Seconds without a request; 0 while there is one. A batch workload that is wanted is never idle."""
    if member.in_flight or member.waiting or (member.klass is Class.BATCH and member.wanted):
        return 0.0
    return max(0.0, now - max(member.last_use, 0.0))


def worth(member: Member, now: float) -> float:
    """What pausing it is expected to cost: seconds of switching, by how soon it will be wanted again.

    Idle for long, likely idle for longer: the chance of a request in the next second falls as 1 / idle time. Bytes
    count by themselves, since a set of victims has to cover what is needed.
    """
    switch = member.cost.leave + member.cost.come
    return switch / (1.0 + idle_for(member, now))


def cover(candidates: Iterable[Candidate], needed: Mapping[GpuUuid, int]) -> tuple[Candidate, ...] | None:
    """The cheapest set that frees `needed` on each GPU, none of them needless; None: even all together don't."""
    lacking = {gpu: size for gpu, size in needed.items() if size > 0}
    if not lacking:
        return ()
    useful = sorted(
        (c for c in candidates if any(c.member.bytes.get(gpu, 0) > 0 for gpu in lacking)),
        key=lambda c: (c.band, c.price, c.member.name),
    )
    if not frees(useful, lacking):
        return None
    if len(useful) == 1:
        return tuple(useful)
    if len(useful) > _SEARCHED_MAX:
        return _in_order(useful, lacking)
    sets = itertools.chain.from_iterable(itertools.combinations(useful, count) for count in range(1, len(useful) + 1))
    return min((chosen for chosen in sets if frees(chosen, lacking)), key=_expense)


def frees(candidates: Sequence[Candidate], needed: Mapping[GpuUuid, int]) -> bool:
    return all(sum(c.member.bytes.get(gpu, 0) for c in candidates) >= size for gpu, size in needed.items())


def _expense(chosen: Sequence[Candidate]) -> tuple[list[int], float, int, list[WorkloadName]]:
    bands = sorted((c.band for c in chosen), reverse=True)
    worst = bands[:1] * bands.count(bands[0])
    return worst, sum(c.price for c in chosen), len(chosen), sorted(c.member.name for c in chosen)


def _in_order(ordered: Sequence[Candidate], lacking: Mapping[GpuUuid, int]) -> tuple[Candidate, ...]:
    taken: list[Candidate] = []
    for candidate in ordered:
        if frees(taken, lacking):
            break
        taken.append(candidate)
    for candidate in reversed(list(taken)):
        without = [c for c in taken if c is not candidate]
        if frees(without, lacking):
            taken = without
    return tuple(taken)


def choose_victims(
    node: NodeState,
    *,
    requester: WorkloadName | None,
    needed: Mapping[GpuUuid, int],
    settings: PolicySettings,
    min_run: float | None = None,
) -> Choice:
    """Whom to pause so that `needed` more bytes on each GPU become free, for an allocation or a resume that a person ordered.

    Whoever ranks higher than the requester gives way only when idle for `batch_idle`; nobody with requests in flight is
    chosen unless its class may be preempted by the requester's; nobody before it has run for `min_run`.

    Args:
        requester: None, or somebody the node doesn't show: ranks as interactive with priority 0.
        needed: beyond what is free; all GPUs with more than 0 have to be covered.
        min_run: seconds, instead of the settings'; a person's order doesn't wait for it.
    """
    now, least = node.now, settings.min_run if min_run is None else min_run
    lacking = {gpu: size for gpu, size in needed.items() if size > 0}
    asking = node.members.get(requester) if requester is not None else None
    others = [
        m
        for m in node.members.values()
        if m.name != requester and not m.pinned and any(m.bytes.get(gpu, 0) > 0 for gpu in lacking)
    ]
    able: list[Candidate] = []
    held_up: list[Candidate] = []
    waits: list[float] = []
    for member in others:
        candidate = Candidate(member=member, band=_band(member, asking), price=worth(member, now))
        if member.phase in (Phase.COMING, Phase.LEAVING) or (member.phase is Phase.RESIDENT and member.settling):
            held_up.append(candidate)
            waits.append(SETTLING_WAIT_S)
        elif member.phase is Phase.RESIDENT and member.pausable:
            wait = _wait(member, asking, now=now, min_run=least, settings=settings)
            if wait <= 0:
                able.append(candidate)
            else:
                held_up.append(candidate)
                waits.append(max(SETTLING_WAIT_S, wait))
    chosen = cover(able, lacking)
    if chosen:
        return Choice(victims=tuple(c.member.name for c in chosen))
    if not frees([*able, *held_up], lacking):
        return Choice()
    return Choice(wait_s=min(waits, default=SETTLING_WAIT_S))


def _band(member: Member, asking: Member | None) -> int:
    """Lower ranks first, then equals, then those who rank higher."""
    own = (True, 0) if asking is None else rank(asking)
    return 0 if rank(member) < own else 1 if rank(member) == own else 2


def _wait(member: Member, asking: Member | None, *, now: float, min_run: float, settings: PolicySettings) -> float:
    """Seconds until it may be paused for that requester; 0: now."""
    own = (True, 0) if asking is None else rank(asking)
    if member.in_flight and not preemptible(member, asking, settings):
        return SETTLING_WAIT_S
    if rank(member) > own:
        return max(min_run - (now - member.since), settings.batch_idle - idle_for(member, now))
    return min_run - (now - member.since)


def missing_bytes(need: Mapping[GpuUuid, int], free: Mapping[GpuUuid, int]) -> dict[GpuUuid, int]:
    """What isn't free of `need`, by GPU."""
    return {gpu: size - free.get(gpu, 0) for gpu, size in need.items() if size > free.get(gpu, 0)}


def preemptible(member: Member, asking: Member | None, settings: PolicySettings) -> bool:
    """Whether an interactive requester's coming may cut off its requests in flight: only ever those of a lower rank."""
    own = (True, 0) if asking is None else rank(asking)
    return own[0] and rank(member) < own and member.klass in settings.preempt


def fits_at_all(node: NodeState, member: Member) -> bool:
    return all(size <= node.capacity.get(gpu, 0) for gpu, size in member.bytes.items())


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
