"""What to read from the store into RAM ahead: those likely to come next, within what host memory prefetching may take.

Likely are, in this order: whoever has requests waiting and may not come yet, batch work that is wanted or will be within the
horizon, and whoever is likely asked for within it. Worth it is the time saved at its coming, by that probability and per byte.
Something prefetched gives its room up for what is worth more than twice as much, or when nobody is to be expected any more.
"""

from __future__ import annotations

from collections.abc import Mapping

from kybernate.model.types import TierName, WorkloadName
from kybernate.policy.draft import Draft
from kybernate.policy.forecast import SILENT, Stream
from kybernate.policy.node_state import DropPrefetched, Member, NodeState, Phase, Prefetch
from kybernate.policy.settings import PolicySettings

_TWICE = 2.0
"""Prefetched content is exchanged only for what is worth so many times as much: guesses change more often than what is true."""


def prefetch_ahead(draft: Draft, streams: Mapping[WorkloadName, Stream]) -> None:
    node, settings = draft.node, draft.settings
    lying = [
        m
        for m in sorted(node.members.values(), key=lambda m: m.name)
        if m.phase is Phase.AWAY and m.tier not in (None, TierName.RAM) and m.name not in draft.taken and _size(m)
    ]
    chances = {m.name: _chance(m, node, settings, streams) for m in lying}
    worths = {m.name: chances[m.name] * max(0.0, m.cost.come - m.cost.come_prefetched) / _size(m) for m in lying}
    prefetched = sorted((m for m in lying if m.prefetched), key=lambda m: (worths[m.name], m.name))
    free = node.prefetch_free
    for member in list(prefetched):
        if chances[member.name] < settings.prefetch_min / _TWICE:
            draft.actions.append(DropPrefetched(member.name, "is not to be expected any more"))
            prefetched.remove(member)
            free += _size(member)
    able = [m for m in lying if not m.prefetched and not m.pinned and chances[m.name] >= settings.prefetch_min]
    for member in sorted(able, key=lambda m: (-worths[m.name], m.name)):
        going: list[Member] = []
        room = free
        for other in prefetched:
            if room >= _size(member) or worths[other.name] * _TWICE >= worths[member.name]:
                break
            going.append(other)
            room += _size(other)
        if room < _size(member):
            continue
        for other in going:
            prefetched.remove(other)
            draft.actions.append(DropPrefetched(other.name, f"{member.name} is likelier"))
        free = room - _size(member)
        draft.actions.append(Prefetch(member.name, _why(member, chances[member.name])))


def _chance(member: Member, node: NodeState, settings: PolicySettings, streams: Mapping[WorkloadName, Stream]) -> float:
    if member.waiting or member.wanted:
        return 1.0
    if member.wanted_at is not None and member.wanted_at - node.now <= settings.prefetch_horizon:
        return 1.0
    return streams.get(member.name, SILENT).chance(settings.prefetch_horizon)


def _why(member: Member, chance: float) -> str:
    if member.waiting:
        return "requests wait for it"
    if member.wanted or member.wanted_at is not None:
        return "its schedule wants it"
    return f"likely asked for soon ({chance:.0%})"


def _size(member: Member) -> int:
    return sum(member.bytes.values())
