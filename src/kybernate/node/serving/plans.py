"""What the API says of a policy's plan. Pure."""

from __future__ import annotations

from kybernate.model import api_serving as words
from kybernate.node.policy.picture import Action, Bring, Leave, Phase, Picture, Plan, Stage


def plan_view(picture: Picture, plan: Plan, *, policy: str) -> words.PlanView:
    return words.PlanView(
        policy=policy,
        actions=[_action(picture, action) for action in plan.actions],
        reasons={str(name): reason for name, reason in plan.reasons.items()},
    )


def _action(picture: Picture, action: Action) -> words.ActionView:
    member = picture.members.get(action.name)
    victims = action.victims if isinstance(action, Bring) else ()
    expected: float | None = None
    if isinstance(action, Bring) and member is not None:
        leaving = [picture.members[victim].cost.leave for victim in victims]
        come = member.cost.come_staged if member.staged else member.cost.come
        # Where it lies in RAM it comes while they leave.
        together = member.phase is Phase.AWAY
        expected = max([come, *leaving]) if together else come + max(leaving, default=0.0)
    elif isinstance(action, Leave) and member is not None:
        expected = member.cost.leave
    kind = {Bring: "bring", Leave: "leave", Stage: "stage"}.get(type(action), "unstage")
    return words.ActionView(
        action=kind,
        workload=action.name,
        victims=list(victims),
        preempt=isinstance(action, Bring) and action.preempt,
        why=action.why,
        expected_s=expected,
    )
