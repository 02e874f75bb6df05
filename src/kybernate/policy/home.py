"""While nobody waits: put those in VRAM that are likely asked for next.

A state of the node is as good as what the next request is expected to wait in it: for each one that isn't resident the probability
of being asked soon, times what its coming takes with those who would have to leave for it. One switch is made if it improves that
by a fair part of what the switch itself takes. Whoever has had no request for its own idle time stays away, however likely: that it
goes then is what its owner said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.policy.draft import Draft, out_of_time
from kybernate.policy.forecast import SILENT, Stream
from kybernate.policy.node_state import Class, Member, Phase
from kybernate.policy.victims import Candidate, coming, cover, idle_for, missing_bytes

HORIZON_S = 30.0
"""How soon is next: some requests of a light load."""
WORTH = 0.25
"""A switch must be expected to save this part of its own time at the next request: it may always be for nothing, and whoever asks
for the one that leaves meanwhile waits twice."""
_AGAIN_S = 5.0
CONSIDERED_MAX = 6
"""Of those that are away, the likeliest."""


def go_home(draft: Draft, streams: Mapping[WorkloadName, Stream]) -> None:
    """At most one Bring. Nothing while somebody waits or moves."""
    node, settings = draft.node, draft.settings
    members = sorted(node.members.values(), key=lambda m: m.name)
    if draft.actions or any(m.phase in (Phase.COMING, Phase.LEAVING) for m in members):
        return
    chances = {m.name: streams.get(m.name, SILENT).chance(HORIZON_S) for m in members if m.klass is Class.INTERACTIVE}
    able = [m for m in members if m.phase is Phase.AWAY and m.name in chances and not m.pinned]
    away = [m for m in able if chances[m.name] > 0 and not out_of_time(m, node.now)]
    away = sorted(away, key=lambda m: (-chances[m.name], m.name))[:CONSIDERED_MAX]
    if not away:
        return
    idle: list[Member] = []
    for member in draft.movable():
        if member.klass is not Class.INTERACTIVE or member.in_flight or member.waiting:
            continue
        if idle_for(member, node.now) < settings.hysteresis:
            draft.polls.append(member.last_use + settings.hysteresis)
        else:
            idle.append(member)
    here = _expected(away, idle, draft.free, chances)
    best: tuple[float, Member, tuple[Candidate, ...]] | None = None
    for member in away:
        chosen = cover(_candidates(idle, chances), missing_bytes(member.bytes, draft.free))
        if chosen is None:
            continue
        leaving = [c.member for c in chosen]
        free = dict(draft.free)
        for one, sign in [*((m, 1) for m in leaving), (member, -1)]:
            for gpu, size in one.bytes.items():
                free[gpu] = free.get(gpu, 0) + sign * size
        then = _expected(
            [*(m for m in away if m is not member), *leaving],
            [*(m for m in idle if m not in leaving), member],
            free,
            chances,
        )
        gain = here - then - WORTH * (coming(member) + sum(m.cost.leave for m in leaving))
        if gain > 0 and (best is None or gain > best[0]):
            best = (gain, member, chosen)
    if best is not None:
        draft.bring(best[1], best[2], "is likely asked for next, and nobody waits")
    elif idle:
        # Only silence changes the answer, and the longer it is, the slower.
        draft.polls.append(node.now + max(_AGAIN_S, min(idle_for(m, node.now) for m in idle)))


def _candidates(idle: Sequence[Member], chances: Mapping[WorkloadName, float]) -> list[Candidate]:
    return [Candidate(m, 0, chances[m.name] * (m.cost.leave + m.cost.come)) for m in idle]


def _expected(
    away: Sequence[Member],
    idle: Sequence[Member],
    free: Mapping[GpuUuid, int],
    chances: Mapping[WorkloadName, float],
) -> float:
    """Seconds that the next request is expected to wait."""
    candidates = _candidates(idle, chances)
    seconds = 0.0
    for member in away:
        chosen = cover(candidates, missing_bytes(member.bytes, free)) or ()
        seconds += chances[member.name] * (coming(member) + sum(c.member.cost.leave for c in chosen))
    return seconds
