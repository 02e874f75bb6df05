"""Names for the shell's completion, asked of the agent when Tab is pressed; none without an agent, and nothing is ever said."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kybernate.cli.common import Common
from kybernate.model.errors import KybernateError

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

    from kybernate.client import Client
    from kybernate.model.api import WorkloadView

Completer = Callable[["CompletionContext"], list[str]]
_ENDED = ("exited", "lost")


def alive(workload: WorkloadView) -> bool:
    return workload.state not in _ENDED and not workload.external


def ended(workload: WorkloadView) -> bool:
    return workload.state in _ENDED


def paused(workload: WorkloadView) -> bool:
    return workload.state == "paused" and not workload.external


def with_vram(workload: WorkloadView) -> bool:
    """What a pause is for."""
    return alive(workload) and not paused(workload)


def below_ram(workload: WorkloadView) -> bool:
    return paused(workload) and workload.tier != "ram"


def workloads(meant: Callable[[WorkloadView], bool] = lambda _: True) -> Completer:
    """Names of the workloads of a kind."""
    return _completer(lambda client: [each.name for each in client.workloads() if meant(each)])


def _snapshots(client: Client) -> list[str]:
    return [each.name for each in client.snapshots().snapshots]


def _served(client: Client) -> list[str]:
    return [each.name for each in client.serving().served]


def _paused_or_stored(client: Client) -> list[str]:
    return [*(each.name for each in client.workloads() if paused(each)), *_snapshots(client)]


def _completer(names: Callable[[Client], list[str]]) -> Completer:
    def complete(context: CompletionContext) -> list[str]:
        with contextlib.suppress(KybernateError, OSError), _common(context).client() as client:
            typed = {token.value for token in context.argument.tokens}
            return sorted({name for name in names(client) if name not in typed})
        return []

    return complete


def _common(context: CompletionContext) -> Common:
    """Of the agent that the line names."""
    return Common(state_dir=next((Path(text) for text in _state_dir(context)), None))


def _state_dir(context: CompletionContext) -> Iterator[str]:
    option: Any = context.get("--state-dir")
    if option is not None and option.raw:
        yield option.raw


snapshots = _completer(_snapshots)
served = _completer(_served)
paused_or_stored = _completer(_paused_or_stored)
