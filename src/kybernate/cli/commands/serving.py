"""models, start, plan, reload: what is served, what would be done for whom, and a changed kybernate.yaml."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from kybernate.cli.common import Common, print_json, table
from kybernate.cli.fitting import plain, whole_columns
from kybernate.cli.names import served
from kybernate.model.quantities import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from kybernate.model.api_serving import ActionView, PlanView, ServedView

_COMMON = Common()


def models(*, common: Common = _COMMON) -> None:
    """Show models and jobs: state, tier, waiting and running requests, costs of switches, GPU time."""
    with common.client() as client:
        view = client.serving()
    if common.json:
        print_json(view)
        return
    if view.listen is not None:
        connected = sum(worker.connected for worker in view.workers)
        print(f"on {view.listen}, {connected} of {len(view.workers)} workers connected, policy {view.policy}")
    _print_served(view.served)
    for each in view.classes:
        held = format_seconds(each.usage.resident_s)
        print(f"class {each.klass}: {each.share:.0%} of the VRAM handed out, {held} of GPU")
    for note in view.notes:
        print(note)


COLUMNS = ("NAME", "KIND", "CLASS", "STATE", "TIER", "WAIT", "FLY", "VRAM", "LEAVE", "COME", "GPU", "WHY")
_DISPENSABLE = ("WHY", "LEAVE", "KIND", "GPU", "CLASS", "FLY", "COME", "VRAM")
"""Left out in this order where the terminal is narrow; the reasons then follow as sentences."""


def _print_served(served: Sequence[ServedView]) -> None:
    rows = [[plain(cell) for cell in _row(each)] for each in served]
    if not sys.stdout.isatty():
        table(COLUMNS, rows)
        return
    width = shutil.get_terminal_size().columns
    shown = whole_columns(rows, width=width, columns=COLUMNS, dispensable=_DISPENSABLE, gap=2)
    table([COLUMNS[i] for i in shown], [[cells[i] for i in shown] for cells in rows], width=width)
    if COLUMNS.index("WHY") not in shown:
        for cells in rows:
            if cells[-1]:
                print(textwrap.fill(f"{cells[0]}: {cells[-1]}", width, subsequent_indent="  ", break_on_hyphens=False))


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


def start(name: Annotated[str, Parameter(completer=served)], /, *, common: Common = _COMMON) -> None:
    """Start a model or a job of kybernate.yaml as soon as it gets VRAM; also one that has ended."""
    with common.client() as client:
        view = client.start(name)
    print_json(view) if common.json else print(f"{name}: comes as soon as it gets room; `kybernate models` shows it")


def plan(*names: Annotated[str, Parameter(completer=served)], common: Common = _COMMON) -> None:
    """Say what the policy would do now if each of these models had a request. Nothing is changed.

    Args:
        names: Models or jobs. Default: those with waiting requests.
    """
    with common.client() as client:
        view = client.plan(*names)
    if common.json:
        print_json(view)
        return
    print_plan(view, asked=view.asked)
    for name in view.answered:
        print(f"a request for {name} now would be answered at once")
    for name, reason in view.refused.items():
        print(f"a request for {name} now would be refused: {reason}")
    if not (view.actions or view.reasons or view.answered or view.refused):
        print("nothing would be done")


def print_plan(view: PlanView, *, asked: Collection[str] = ()) -> None:
    """`asked`: what is said of these is said of a request that would be made now."""
    for action in view.actions:
        print(_sentence(action, asked))
    for name, reason in view.reasons.items():
        waits = reason if reason.startswith("waits ") else f"waits: {reason}"
        print(f"a request for {name} now would wait: {reason}" if name in asked else f"{name} {waits}")


def _sentence(action: ActionView, asked: Collection[str]) -> str:
    verbs = {"bring": "would come", "leave": "would be paused", "stage": "would be read into RAM ahead"}
    text = f"{action.workload} {verbs.get(action.action, 'would not be kept in RAM ahead')}"
    if action.action == "bring" and action.workload in asked:
        text = f"a request for {action.workload} now would bring it"
    if action.victims:
        cut = ", cut off from their requests" if action.preempt else ""
        text += f", and {', '.join(action.victims)} would be paused for it{cut}"
    if action.expected_s is not None:
        text += f", within {format_seconds(action.expected_s)}"
    return f"{text}: {action.why}" if action.why else text


def reload(*, common: Common = _COMMON) -> None:
    """Read kybernate.yaml again: models, jobs, keys, limits. No request is lost; a wrong file changes nothing."""
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
    for line in view.advice:
        print(f"look at {line}")
    if not (view.added or view.removed or view.changed or view.settings or view.notes):
        print("nothing has changed")
