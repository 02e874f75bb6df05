"""Carries actions out as tasks, and knows on whom one is under way."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from kybernate.agent.serving.controller_state import Acting, ActionsUnderWay
from kybernate.agent.serving.wake import Wake
from kybernate.agent.workloads.tasks import Tasks
from kybernate.model.types import WorkloadName
from kybernate.policy.node_state import Phase


class ActionRunner:
    """Use it in the loop's thread."""

    def __init__(self, *, actions: ActionsUnderWay, tasks: Tasks, clock: Callable[[], float], wake: Wake) -> None:
        self._actions = actions
        self._tasks = tasks
        self._clock = clock
        self._wake = wake

    def is_acted_on(self, names: Iterable[WorkloadName]) -> bool:
        """Whether an action is under way on one of them."""
        return self._actions.any_of(names)

    def begin(
        self,
        name: WorkloadName,
        phase: Phase,
        work: Coroutine[Any, Any, None],
        *,
        victims: tuple[WorkloadName, ...] = (),
    ) -> None:
        """`work` brings it into `phase`, and its victims away. When it has ended, it is time for another look."""
        now = self._clock()
        acting = {victim: Acting(Phase.LEAVING, now) for victim in victims} | {name: Acting(phase, now)}
        self._actions.begin(acting)

        async def body() -> None:
            try:
                await work
            finally:
                self._actions.end(acting)
                self._wake()

        self._tasks.start(body(), name=f"{phase.value} {name}")

    def release(self, victims: Iterable[WorkloadName]) -> None:
        """They have left, or have not: other actions may be begun on them from now on."""
        for victim in victims:
            self._actions.release(victim)
        self._wake()
