"""models, start, plan, reload: what is served, what would be done for whom, and a changed kybernate.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kybernate.cli.common import Common, print_json, table
from kybernate.model.quantities import format_seconds, format_size

if TYPE_CHECKING:
    from kybernate.model.api_serving import ActionView, PlanView, ServedView

_COMMON = Common()


def models(*, common: Common = _COMMON) -> None:
    """Show models and jobs: who has the VRAM, who waits, what switches cost, who had the GPU."""
    with common.client() as client:
        view = client.serving()
    if common.json:
        print_json(view)
        return
    if view.listen is not None:
        connected = sum(worker.connected for worker in view.workers)
        print(f"on {view.listen}, {connected} of {len(view.workers)} workers connected, policy {view.policy}")
    columns = ("NAME", "KIND", "CLASS", "STATE", "TIER", "WAIT", "FLY", "VRAM", "LEAVE", "COME", "GPU", "WHY")
    table(columns, [_row(each) for each in view.served])
    for each in view.classes:
        held = format_seconds(each.usage.resident_s)
        print(f"class {each.klass}: {each.share:.0%} of the VRAM handed out, {held} of GPU")
    for note in view.notes:
        print(note)


def _row(each: ServedView) -> tuple[str, ...]:
    oldest = "" if each.oldest_wait_s is None else f" {format_seconds(each.oldest_wait_s)}"
    return (
        each.name,
        each.kind,
        each.klass,
        each.state,
        each.tier or "-",
        f"{each.waiting}{oldest}",
        str(each.in_flight),
        format_size(each.bytes) if each.bytes else "?",
        format_seconds(each.cost.leave_s),
        format_seconds(each.cost.come_s),
        format_seconds(each.usage.resident_s),
        each.reason,
    )


def start(name: str, /, *, common: Common = _COMMON) -> None:
    """Start a model or a job of kybernate.yaml, also one that has ended, as soon as it gets room."""
    with common.client() as client:
        view = client.start(name)
    print_json(view) if common.json else print(f"{name}: comes as soon as it gets room; `kybernate models` shows it")


def plan(*names: str, common: Common = _COMMON) -> None:
    """Say what the policy would do now, were there a request for each of these models; nothing is done.

    Args:
        names: Models or jobs. None: for what is asked already.
    """
    with common.client() as client:
        view = client.plan(*names)
    if common.json:
        print_json(view)
        return
    print_plan(view)


def print_plan(view: PlanView) -> None:
    for action in view.actions:
        print(_sentence(action))
    for name, reason in view.reasons.items():
        print(f"{name} waits: {reason}")
    if not view.actions and not view.reasons:
        print("nothing would be done")


def _sentence(action: ActionView) -> str:
    verbs = {"bring": "would come", "leave": "would be paused", "stage": "would be read into RAM ahead"}
    text = f"{action.workload} {verbs.get(action.action, 'would not be kept in RAM ahead')}"
    if action.victims:
        cut = ", cut off from their requests" if action.preempt else ""
        text += f", and {', '.join(action.victims)} would be paused for it{cut}"
    if action.expected_s is not None:
        text += f", within {format_seconds(action.expected_s)}"
    return f"{text}: {action.why}" if action.why else text


def reload(*, common: Common = _COMMON) -> None:
    """Have the agent read its kybernate.yaml again: models, jobs, keys, limits. A file that makes no sense changes nothing."""
    with common.client() as client:
        view = client.reload()
    if common.json:
        print_json(view)
        return
    for what, names in (
        ("added", view.added),
        ("removed", view.removed),
        ("changed", [*view.changed, *view.settings]),
    ):
        if names:
            print(f"{what}: {', '.join(names)}")
    if view.restarting:
        print(f"started anew once nobody needs them: {', '.join(view.restarting)}")
    for note in view.notes:
        print(note)
    if not (view.added or view.removed or view.changed or view.settings or view.notes):
        print("nothing has changed")
