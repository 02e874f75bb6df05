"""`kybernate check FILE --dry-run`: who would be paused for whom, in sentences."""

from __future__ import annotations

import time

from kybernate.agent.serving.dryrun import Step, rehearse
from kybernate.agent.serving.plans import plan_view
from kybernate.cli.commands.serving import print_plan
from kybernate.cli.common import Common, print_json
from kybernate.cli.known import known
from kybernate.model.api_serving import PlanView
from kybernate.policy.registry import policy_named
from kybernate.settings import Settings
from kybernate.settings.specs import served_of


def rehearsal(settings: Settings, *, vram: str | None, common: Common) -> None:
    """
    Raises:
        BadInput: nobody knows how much VRAM there is.
    """
    served = served_of(settings)
    found = known(settings, served, vram=vram, common=common)
    steps = rehearse(
        served,
        policy=policy_named(settings.serving.policy),
        numbers=settings.serving.numbers(),
        capacity=found.capacity,
        needs=found.needs,
        now=time.time(),
    )
    unknown = [name for name in served if name not in found.needs]
    policy = settings.serving.policy
    views = [
        (step, plan_view(step.node, step.plan, policy=policy, asked=() if step.asked is None else (step.asked,)))
        for step in steps
    ]
    if common.json:
        answers = [{"came": step.came, **view.model_dump(mode="json")} for step, view in views]
        print_json({"vram_bytes": list(found.capacity.values()), "unknown": unknown, "steps": answers})
        return
    print(f"with {found.capacity_text} of VRAM, policy {policy}; nothing is done:")
    for step, view in views:
        _tell(step, view)
    for name in unknown:
        print(f"{name}: nobody knows what it needs; set its `vram`")


def _tell(step: Step, view: PlanView) -> None:
    if step.asked is None:
        if view.actions:
            print("at the start:")
            print_plan(view)
        return
    print(f"a request for {step.asked}:")
    if not step.came and not view.reasons:
        print(f"{step.asked} would not come")
        return
    if step.came and not view.actions:
        print(f"{step.asked} is there already")
        return
    print_plan(view)
