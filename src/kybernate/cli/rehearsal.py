"""`kybernate check FILE --dry-run`: who would be paused for whom, in sentences."""

from __future__ import annotations

import time

from kybernate.cli.commands.serving import print_plan
from kybernate.cli.common import Common, print_json
from kybernate.model.api_serving import PlanView
from kybernate.model.errors import BadInput, KybernateError
from kybernate.model.quantities import format_size, parse_size
from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.node.policy.registry import policy_named
from kybernate.node.serving.dryrun import Step, rehearse
from kybernate.node.serving.hints import hinted, least_gpus
from kybernate.node.serving.plans import plan_view
from kybernate.node.serving.specs import served_of
from kybernate.node.settings import Settings


def rehearsal(settings: Settings, *, vram: str | None, common: Common) -> None:
    """
    Raises:
        BadInput: nobody knows how much VRAM there is.
    """
    served = served_of(settings)
    limits, sizes = _agent(common)
    limit = parse_size(vram) if vram is not None else settings.agent.vram.limit
    count = len(limits) or least_gpus(list(served.values()))
    if limit is None and not limits:
        raise BadInput("how much VRAM is there?", hint="give --vram SIZE, set agent.vram.limit, or start an agent here")
    each_gpu = limits if limit is None else [limit] * count
    capacity = {GpuUuid(f"gpu {i}"): size for i, size in enumerate(each_gpu)}
    gpus = list(capacity)
    known = {name: {gpus[0]: size} for name, size in sizes.items()}
    said = {name: hinted(each, gpus, None) or known.get(name) for name, each in served.items()}
    needs = {name: sizes for name, sizes in said.items() if sizes}
    steps = rehearse(
        served,
        policy=policy_named(settings.serving.policy),
        numbers=settings.serving.numbers(),
        capacity=capacity,
        needs=needs,
        now=time.time(),
    )
    unknown = [name for name in served if name not in needs]
    policy = settings.serving.policy
    views = [
        (step, plan_view(step.picture, step.plan, policy=policy, asked=() if step.asked is None else (step.asked,)))
        for step in steps
    ]
    if common.json:
        answers = [{"asked": step.asked, "came": step.came, **view.model_dump(mode="json")} for step, view in views]
        print_json({"vram_bytes": each_gpu, "unknown": unknown, "steps": answers})
        return
    sizes_said = " + ".join(format_size(size) for size in each_gpu)
    print(f"with {sizes_said} of VRAM, policy {policy}; nothing is done:")
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


def _agent(common: Common) -> tuple[list[int], dict[WorkloadName, int]]:
    """What the agent here hands out on each of its GPUs, and what it knows workloads to need, on all of them together."""
    try:
        with common.client() as client:
            gpus = client.node().gpus
            known = client.serving().served
    except KybernateError:
        return [], {}
    sizes = {WorkloadName(each.name): each.bytes for each in known if each.bytes}
    return [gpu.limit_bytes for gpu in gpus], sizes
