"""Models whose requests are answered with an error: they failed lately, a person paused them, or they never fit."""

from __future__ import annotations

from kybernate.agent.records.ledger import USER, Entry
from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.controller_state import Outcomes
from kybernate.agent.serving.leases import Leases
from kybernate.agent.serving.status_board import StatusBoard
from kybernate.model.quantities import format_size
from kybernate.model.types import WorkloadName, WorkloadState
from kybernate.policy.node_state import NodeState, Phase
from kybernate.policy.victims import fits_at_all
from kybernate.settings.specs import Kind, Served


class Refusals:
    """Use it in the loop's thread."""

    def __init__(self, *, leases: Leases, board: StatusBoard, backoff: Backoff, outcomes: Outcomes) -> None:
        self._leases = leases
        self._board = board
        self._backoff = backoff
        self._outcomes = outcomes
        self._by_order: set[WorkloadName] = set()
        """Refused since an order paused them."""

    def clear(self, name: WorkloadName) -> None:
        """It may be asked for again."""
        if self._leases.admit(name):
            self._board.on_refusal_cleared(name)

    def take_back(self, name: WorkloadName, entry: Entry | None, now: float) -> None:
        """Of one whose pause after a failure is over, or that no order keeps paused any more."""
        if self._outcomes.is_refused(name) and self._backoff.until(name) <= now:
            self._outcomes.set_refused(name, False)
            self.clear(name)  # what comes from now on makes another attempt
        if name in self._by_order and not _paused_by_order(entry):
            self._by_order.discard(name)
            self.clear(name)  # also when it ended meanwhile: the next request starts it anew

    def refuse_paused_by_order(self, served: Served, entry: Entry) -> None:
        """Nobody but a person brings it back."""
        if served.kind is not Kind.MODEL or not _paused_by_order(entry):
            return
        name = served.name
        self._by_order.add(name)
        hint = f"{name} was paused by order; `kybernate resume {name}` lets it answer"
        self._leases.refuse(name, message=hint, retry_after_s=None)

    def on_stopped_by_order(self, name: WorkloadName) -> None:
        """Whoever waits for it is told so."""
        self._leases.refuse(name, message=f"{name} was stopped by order", retry_after_s=None)

    def refuse_unfit(self, node: NodeState) -> None:
        """Those that somebody waits for and that never fit."""
        for member in node.members.values():
            if member.waiting and member.phase in (Phase.AWAY, Phase.ABSENT) and not fits_at_all(node, member):
                needs = format_size(sum(member.bytes.values()))
                largest = format_size(max(node.capacity.values(), default=0))
                text = f"{member.name} needs {needs} of VRAM, which is more than this node hands out ({largest})"
                if member.bytes.keys() - node.capacity.keys():
                    text = f"{member.name} has a `vram` for {len(member.bytes)} GPUs in kybernate.yaml, and sees fewer here"
                self._leases.refuse(member.name, message=text, retry_after_s=None)


def _paused_by_order(entry: Entry | None) -> bool:
    return entry is not None and entry.state is WorkloadState.PAUSED and entry.paused_by == USER
