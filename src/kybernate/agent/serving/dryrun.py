"""What a configuration would do, before there is an agent with it: each model is asked once, one after the other, and the policy
says who would be paused for it. Pure: nothing is started, and every switch takes what policy/costs.py guesses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kybernate.model.types import GpuUuid, TierName, WorkloadName
from kybernate.policy.costs import Costs
from kybernate.policy.node_state import Bring, Leave, Member, NodeState, Phase, Plan
from kybernate.policy.registry import Policy
from kybernate.policy.schedule import in_window
from kybernate.policy.settings import PolicySettings
from kybernate.settings.specs import Kind, Served

_APART_S = 120.0
"""Between two requests: long enough that nobody is held back by min_run or hysteresis."""
_LOOKS = 100
"""After so many the model is said not to come at all."""


@dataclass(frozen=True, slots=True)
class Step:
    """One request, or the beginning, when jobs and eager models come by themselves."""

    asked: WorkloadName | None
    plan: Plan
    """Actions of all looks until it had come; the reasons of the last one."""
    came: bool
    waited_s: float
    node: NodeState
    """As it was before."""


def rehearse(
    served: Mapping[WorkloadName, Served],
    *,
    policy: Policy,
    numbers: PolicySettings,
    capacity: Mapping[GpuUuid, int],
    needs: Mapping[WorkloadName, Mapping[GpuUuid, int]],
    now: float,
) -> list[Step]:
    """
    Args:
        capacity: VRAM that each GPU hands out, in bytes.
        needs: VRAM of each on each GPU; who isn't in it is left out.
        now: seconds since 1970: schedules depend on it.
    """
    members = {name: _absent(each, needs[name], now) for name, each in served.items() if name in needs}
    steps = []
    models = [name for name, each in served.items() if each.kind is Kind.MODEL and name in needs]
    for asked in [None, *models]:
        step, members, now = _ask(asked, members, policy, numbers, capacity, now)
        if asked is None:  # eager ones had their turn, or will have it; from now on they wait to be asked like others
            members |= {name: replace(members[name], wanted=False) for name in models}
        steps.append(step)
        now += _APART_S
    return steps


def _ask(
    asked: WorkloadName | None,
    members: dict[WorkloadName, Member],
    policy: Policy,
    numbers: PolicySettings,
    capacity: Mapping[GpuUuid, int],
    now: float,
) -> tuple[Step, dict[WorkloadName, Member], float]:
    began = now
    if asked is not None:
        members = {**members, asked: replace(members[asked], waiting=1, oldest_wait=now, last_use=now)}
    before = _state(members, capacity, now)
    actions = []
    plan = Plan()
    for _ in range(_LOOKS):
        plan = policy(_state(members, capacity, now), numbers)
        for action in plan.actions:
            if isinstance(action, Bring | Leave):
                actions.append(action)
                members = _done(action, members, now)
        settled = members[asked].phase is Phase.RESIDENT if asked is not None else not plan.actions
        if settled or (not plan.actions and plan.next_poll is None):
            break
        now = now + 0.01 if plan.actions or plan.next_poll is None else max(plan.next_poll, now + 0.01)
    came = asked is None or members[asked].phase is Phase.RESIDENT
    if asked is not None:
        members = {**members, asked: replace(members[asked], waiting=0, oldest_wait=None, last_use=now)}
    whole = replace(plan, actions=tuple(actions))
    return Step(asked, whole, came, now - began, before), members, now


def _done(action: Bring | Leave, members: dict[WorkloadName, Member], now: float) -> dict[WorkloadName, Member]:
    left: Sequence[WorkloadName] = action.victims if isinstance(action, Bring) else (action.name,)
    new = dict(members)
    for name in left:
        new[name] = replace(new[name], phase=Phase.AWAY, tier=TierName.RAM, since=now)
    if isinstance(action, Bring):
        new[action.name] = replace(new[action.name], phase=Phase.RESIDENT, tier=None, since=now)
    lies = {Phase.AWAY: TierName.RAM, Phase.RESIDENT: TierName.RAM}
    return {
        name: replace(m, cost=Costs().cost(name, size=sum(m.bytes.values()), source=lies.get(m.phase)))
        for name, m in new.items()
    }


def _state(members: Mapping[WorkloadName, Member], capacity: Mapping[GpuUuid, int], now: float) -> NodeState:
    there = [m for m in members.values() if m.phase is Phase.RESIDENT]
    free = {gpu: size - sum(m.bytes.get(gpu, 0) for m in there) for gpu, size in capacity.items()}
    return NodeState(now=now, members=members, capacity=capacity, free=free)


def _absent(served: Served, sizes: Mapping[GpuUuid, int], now: float) -> Member:
    job = served.kind is Kind.JOB
    return Member(
        name=served.name,
        klass=served.klass,
        priority=served.priority,
        phase=Phase.ABSENT,
        bytes=sizes,
        cost=Costs().cost(served.name, size=sum(sizes.values()), source=None),
        wanted=in_window(served.schedule, now) if job else served.eager,
        idle_s=served.idle_s,
    )
