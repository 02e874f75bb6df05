"""The one task that decides: it collects the state of the node, asks the policy, and begins what the plan says.

A plan is advice: effects.py carries it out and decides again where reading and changing are one, and the next state shows as coming
or leaving who is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from kybernate.agent.serving.effects import Effects
from kybernate.agent.serving.planner import Planner
from kybernate.agent.serving.refusals import Refusals
from kybernate.agent.serving.wake import Wake
from kybernate.agent.workloads.starts import Starts
from kybernate.agent.workloads.tasks import Tasks

_POLL_S = 1.0
"""At least so often: memory that is given back, and time itself, tell nobody."""
_APART_S = 0.01
"""Between two steps, so that a thousand requests a second are not a thousand plans."""


class Polled(Protocol):
    """What is looked at before each plan."""

    def poll(self, now: float) -> None: ...


class Controller:
    """`run` is a task's body."""

    def __init__(
        self,
        *,
        planner: Planner,
        effects: Effects,
        refusals: Refusals,
        polled: Sequence[Polled],
        starts: Starts,
        tasks: Tasks,
        clock: Callable[[], float],
        wake: Wake,
    ) -> None:
        """`polled`: in this order, before each plan."""
        self._planner = planner
        self._effects = effects
        self._refusals = refusals
        self._polled = tuple(polled)
        self._starts = starts
        self._tasks = tasks
        self._clock = clock
        self._wake = wake

    async def run(self) -> None:
        """Ends by cancellation."""
        wait_s = 0.0
        while True:
            await self._wake.wait(wait_s)
            try:
                wait_s = self._step()
            except Exception as e:  # one workload that can't be understood must not end the care for all
                self._tasks.failed("controller", e)
                wait_s = _POLL_S
            await asyncio.sleep(_APART_S)

    def _step(self) -> float:
        """One plan and what follows. Returns how soon to make the next one, in seconds."""
        now = self._clock()
        for each in self._polled:
            each.poll(now)
        node, plan = self._planner.plan()
        for action in plan.actions:
            if not self._starts.closed:
                self._effects.begin(action)
        self._refusals.refuse_unfit(node)
        next_poll = _POLL_S if plan.next_poll is None else min(_POLL_S, plan.next_poll - now)
        return max(0.0, next_poll)
