"""The policies that most programs of this kind have: what `balanced` is measured against, and a choice for who wants them.

Both serve the oldest waiting request first and switch for it at once; they differ in whom they pause. Neither stays because more
is to come, knows what a switch costs, comes back by itself or looks ahead. Batch workloads run in the gaps as with `balanced`.
"""

from __future__ import annotations

from collections.abc import Callable

from kybernate.policy.draft import Draft, into_gaps, leave_in_time, queues
from kybernate.policy.node_state import Class, Member, NodeState, Plan
from kybernate.policy.settings import PolicySettings
from kybernate.policy.victims import Candidate, cover, fits_at_all, gib, missing_bytes, rank

Pricing = Callable[[Member], tuple[int, float]]
"""Band and price of a victim: lower goes first."""


def fifo(node: NodeState, settings: PolicySettings) -> Plan:
    """Strict order of arrival; whoever came first goes first, busy or not."""
    return _oldest_first(node, settings, lambda member: (0, member.since))


def lru(node: NodeState, settings: PolicySettings) -> Plan:
    """The oldest waiting request first; whoever was used least recently goes, those with requests in flight last."""
    return _oldest_first(node, settings, lambda member: (1 if member.in_flight else 0, member.last_use))


def _oldest_first(node: NodeState, settings: PolicySettings, pricing: Pricing) -> Plan:
    draft = Draft(node, settings)
    blocked = False
    for member in queues(node):
        if not fits_at_all(node, member):
            draft.reasons[member.name] = "needs more than this node hands out"
            continue
        if blocked:
            draft.reasons[member.name] = "waits for its turn: older requests come first"
            continue
        missing = missing_bytes(member.bytes, draft.free)
        able = [Candidate(other, *pricing(other)) for other in draft.movable() if _may_displace(member, other)]
        chosen = cover(able, missing)
        if chosen is None:
            draft.reasons[member.name] = f"needs {gib(sum(missing.values()))} more, and nobody can be paused for it now"
            blocked = member.klass is Class.INTERACTIVE
            continue
        draft.bring(member, chosen, "has the oldest waiting request")
    into_gaps(draft)
    leave_in_time(draft)
    return draft.plan()


def _may_displace(member: Member, other: Member) -> bool:
    """Interactive ones displace anybody, batch ones only batch ones of lower rank."""
    return member.klass is Class.INTERACTIVE or rank(other) < rank(member)
