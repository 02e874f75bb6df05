"""What the API says of a policy's plan. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kybernate.model.api_serving import ActionView, PlanView
from kybernate.model.types import WorkloadName
from kybernate.policy.node_state import Action, Bring, Leave, NodeState, Phase, Plan, Prefetch


def plan_view(
    node: NodeState,
    plan: Plan,
    *,
    policy: str,
    asked: Collection[WorkloadName] = (),
    refused: Mapping[WorkloadName, str] | None = None,
) -> PlanView:
    """
    Args:
        asked: each has one request in the node that nobody made.
        refused: of those, who would not be held, and why.
    """
    refused = refused or {}
    there = [name for name in asked if name not in refused and node.members[name].phase is Phase.RESIDENT]
    return PlanView(
        policy=policy,
        actions=[_action(node, action, asked) for action in plan.actions],
        reasons={str(name): reason for name, reason in plan.reasons.items()},
        asked=[str(name) for name in asked],
        answered=[str(name) for name in there],
        refused={str(name): reason for name, reason in refused.items()},
    )


def _action(node: NodeState, action: Action, asked: Collection[WorkloadName]) -> ActionView:
    member = node.members.get(action.name)
    victims = action.victims if isinstance(action, Bring) else ()
    expected: float | None = None
    if isinstance(action, Bring) and member is not None:
        leaving = [node.members[victim].cost.leave for victim in victims]
        come = member.cost.come_prefetched if member.prefetched else member.cost.come
        # Where it lies in RAM it comes while they leave.
        together = member.phase is Phase.AWAY
        expected = max([come, *leaving]) if together else come + max(leaving, default=0.0)
    elif isinstance(action, Leave) and member is not None:
        expected = member.cost.leave
    # A policy's reason counts who waits: of a request that nobody made that would be no reason.
    imagined = action.name in asked and member is not None and member.waiting <= 1
    kind = {Bring: "bring", Leave: "leave", Prefetch: "stage"}.get(type(action), "unstage")
    return ActionView(
        action=kind,
        workload=action.name,
        victims=list(victims),
        preempt=isinstance(action, Bring) and action.preempt,
        why="" if imagined and isinstance(action, Bring) else action.why,
        expected_s=expected,
    )
