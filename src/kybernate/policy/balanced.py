"""The default policy; design.md beside it says why.

The oldest request goes first, as far as ranks are equal. What makes the difference is when whoever is in its way has to leave,
and who that is:

- Whoever came for its requests stays open for some durations of a request while more of them come than wait elsewhere. It can't
  leave before its first answers end anyway, and everything that comes until then is answered with them.
- Victims are those whose absence is expected to cost the least: by the probability of being asked soon, the measured
  switches, and how long whoever waits would wait for their requests in flight.
- A request that has waited for `due_after`, less its switch, waits for nobody's stay any more.
- While nobody waits, batch work comes into the gaps, and else those come back that are likely asked for next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kybernate.model.types import WorkloadName
from kybernate.policy.draft import Draft, asked_at, into_gaps, leave_in_time, queues
from kybernate.policy.forecast import SILENT, Stream, streams
from kybernate.policy.home import go_home
from kybernate.policy.node_state import Class, Member, NodeState, Plan
from kybernate.policy.prefetching import prefetch_ahead
from kybernate.policy.settings import PolicySettings
from kybernate.policy.victims import (
    Candidate,
    coming,
    cover,
    fits_at_all,
    gib,
    idle_for,
    missing_bytes,
    preemptible,
    rank,
)

SERVICE_GUESS_S = 2.0
"""Duration of a request of which nothing is known yet."""
_SOON_S = 20.0
"""Whom it hurts to be away: those asked for within so long. Some switches, some answers."""
_FAR = 0.7
"""An idle workload makes room for batch work unless it will be asked again within `batch_idle` with this probability."""
_STAY_GAIN = 4.0
"""How much more a request counts that comes while its model is there than one that waits elsewhere: leaving makes it wait for a
whole turn of the others, of which what one switch there and back takes is only a part."""
_READ_FIRST_S = 2.0
"""Staging first must save so much: shorter than an answer, it isn't worth the detour."""
_TRAINING_WORTH = 1.0
"""A batch workload is as dear to pause as an interactive one that is surely asked for soon: it loses its switches and the time
until the next gap. Nobody waits for it, so whoever answers, or did a moment ago, is dearer still, by its band."""


def balanced(node: NodeState, settings: PolicySettings) -> Plan:
    ahead = streams(node)
    draft = Draft(node, settings)
    waiting = sorted(
        (m for m in queues(node) if fits_at_all(node, m)),
        key=lambda m: (m.klass is Class.BATCH, not _due(m, draft), -m.priority, asked_at(m, node.now), m.name),
    )
    blocked: list[Member] = []
    for member in waiting:
        before = next((b for b in blocked if rank(b) >= rank(member) and set(b.bytes) & set(member.bytes)), None)
        # Free room may be used meanwhile, except that of one whose time is up: it might take it piece by piece for ever.
        if before is not None and (_due(before, draft) or missing_bytes(member.bytes, draft.free)):
            draft.reasons[member.name] = f"{before.name} has waited longer or comes first"
        elif not _serve(member, draft, ahead, sum(m.waiting for m in waiting)):
            blocked.append(member)
    for member in queues(node):
        if member not in waiting:
            draft.reasons[member.name] = "needs more than this node hands out"
    into_gaps(draft, far=lambda m: ahead.get(m.name, SILENT).chance(settings.batch_idle) < _FAR)
    leave_in_time(draft)
    if settings.return_home and not waiting:
        go_home(draft, ahead)
    prefetch_ahead(draft, ahead)
    return draft.plan()


def _serve(member: Member, draft: Draft, ahead: Mapping[WorkloadName, Stream], held: int) -> bool:
    """Whether it needs nothing that others could take from it meanwhile: it comes, or waits for the disk.

    `held`: requests that wait for anybody who is away.
    """
    missing = missing_bytes(member.bytes, draft.free)
    now = draft.node.now
    due = _due(member, draft)
    able: list[Candidate] = []
    for other in draft.movable() if missing else []:
        free_at = now if due else _free_at(other, member, draft, ahead.get(other.name, SILENT), held)
        if free_at is None:
            continue
        if free_at > now:
            draft.polls.append(free_at)
        else:
            able.append(Candidate(other, _band(other, member, draft), _price(other, member, ahead, draft)))
    chosen = cover(able, missing)
    if chosen is None:
        draft.reasons[member.name] = (
            f"needs {gib(sum(missing.values()))} more: others answer, came just now or are switching"
        )
        draft.polls.append(_due_at(member, draft))
        return False
    if not due and _read_first(member, chosen, draft):
        draft.reasons[member.name] = "is read into host memory first; who is in its way computes meanwhile"
        draft.polls.append(_due_at(member, draft))
        return True  # it isn't VRAM that it waits for: others may use that
    asked = now - asked_at(member, now)
    draft.bring(member, chosen, f"{member.waiting} waiting, the oldest for {asked:.1f} s")
    return True


def _read_first(member: Member, victims: Sequence[Candidate], draft: Draft) -> bool:
    """Whether VRAM would stand empty while it is read from a slow tier, and prefetching can do that beforehand."""
    useful = any(v.member.in_flight or (v.member.klass is Class.BATCH and v.member.wanted) for v in victims)
    room = draft.node.prefetch_free >= sum(member.bytes.values())
    return useful and room and not member.prefetched and member.cost.come - member.cost.come_prefetched > _READ_FIRST_S


def _due_at(member: Member, draft: Draft) -> float:
    """A switch of its own and one of somebody else before it have to fit in; a slow tier must not make it due from the start."""
    longest = draft.settings.due_after
    return asked_at(member, draft.node.now) + max(longest / 2, longest - 2 * coming(member))


def _due(member: Member, draft: Draft) -> bool:
    return member.klass is Class.INTERACTIVE and draft.node.now >= _due_at(member, draft)


def _free_at(other: Member, member: Member, draft: Draft, stream: Stream, held: int) -> float | None:
    """From when on it may be closed for this one; None: not for this one."""
    if rank(other) > rank(member):
        if other.in_flight or other.waiting or (other.wanted and other.klass is Class.BATCH):
            return None
        return other.last_use + draft.settings.batch_idle
    busy = other.in_flight + other.waiting
    if not busy or other.klass is Class.BATCH:
        return draft.node.now
    service = SERVICE_GUESS_S if other.service_s is None else other.service_s
    turn = coming(member) + member.cost.leave + other.cost.come + other.cost.leave
    turn += SERVICE_GUESS_S if member.service_s is None else member.service_s
    if busy > 1 or _STAY_GAIN * stream.rate * turn >= held:
        return other.since + draft.settings.stay * service
    return draft.node.now


def _band(other: Member, member: Member, draft: Draft) -> int:
    """Lower ranks first, and with them whoever is idle; then equals; then those that rank higher."""
    if rank(other) > rank(member):
        return 2
    lower = rank(other) < rank(member) or idle_for(other, draft.node.now) >= draft.settings.batch_idle
    return 0 if lower else 1


def _price(other: Member, member: Member, ahead: Mapping[WorkloadName, Stream], draft: Draft) -> float:
    """Seconds that requests are expected to wait for its leaving, its own and those of the one that comes."""
    switch = other.cost.leave + other.cost.come
    if other.klass is Class.BATCH and other.wanted:
        return _TRAINING_WORTH * switch
    drain = 0.0
    if other.in_flight and not preemptible(other, member, draft.settings):
        drain = SERVICE_GUESS_S if other.service_s is None else other.service_s
    return ahead.get(other.name, SILENT).chance(_SOON_S) * switch * (1 + other.waiting) + member.waiting * drain
