"""Background tasks that may fail without taking the agent down, and without anybody missing them: a failure is an event, counts in
the metrics and shows in `doctor`, and a task that is to run for the agent's life is started again, after a pause that grows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from kybernate.agent.records.events import Events
from kybernate.model.api import TaskView

log = logging.getLogger(__name__)

_AGAIN_S = 0.5
_AGAIN_MAX_S = 30.0
_STEADY_S = 60.0
"""A task that ran so long begins with a short pause when it fails after all."""
_LOGGED_AGAIN_S = 300.0
"""The same failure of the same task is an event so often."""
_KNOWN_MAX = 200
"""Failures that are remembered, one a task."""


@dataclass(slots=True)
class _Failure:
    """Of one task, the last of so many."""

    count: int = 0
    problem: str = ""
    time: float = 0.0
    logged_at: float = float("-inf")
    up: bool = True
    """It runs again, or it was to run once only."""


class Tasks:
    """Starts tasks in a group, so that none is lost and all end with the agent. Use it in the loop's thread."""

    def __init__(self, group: asyncio.TaskGroup, *, events: Events, clock: Callable[[], float]) -> None:
        self._group = group
        self._events = events
        self._clock = clock
        self._running: set[asyncio.Task[None]] = set()
        self._failures: dict[str, _Failure] = {}

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[None]:
        """Run it once."""
        return self._begin(self._once(work, name), name)

    def keep(self, work: Callable[[], Coroutine[Any, Any, Any]], *, name: str) -> asyncio.Task[None]:
        """Run it until it returns; where it fails, again. It must be able to begin anew at any time."""
        return self._begin(self._again_and_again(work, name), name)

    def cancel(self) -> None:
        for task in self._running:
            task.cancel()

    def failed(self, name: str, error: Exception, *, up: bool = True, then: str = "") -> None:
        """Remember and tell a failure; also for those that look after themselves.

        Args:
            up: whether it goes on all the same.
            then: what happens next, for people.
        """
        text = f"{type(error).__name__}: {error}"[:300]
        if name not in self._failures and len(self._failures) >= _KNOWN_MAX:
            del self._failures[min(self._failures, key=lambda known: self._failures[known].time)]
        failure = self._failures.setdefault(name, _Failure())
        now = self._clock()
        again = failure.problem == text and now < failure.logged_at + _LOGGED_AGAIN_S
        failure.count += 1
        failure.problem, failure.time, failure.up = text, now, up
        if again:
            log.warning("background task %r failed again: %s", name, text)
            return
        failure.logged_at = now
        log.error("background task %r failed", name, exc_info=error)
        self._events.record("task-failed", f"{name}: {text}{then}", data={"task": name, "failures": failure.count})

    def views(self) -> list[TaskView]:
        """Those that have failed since the agent's start."""
        return [
            TaskView(task=name, up=failure.up, failures=failure.count, problem=failure.problem, failed=failure.time)
            for name, failure in sorted(self._failures.items())
        ]

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _once(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        try:
            await work
        except Exception as e:
            self.failed(name, e)

    async def _again_and_again(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
        loop, pause = asyncio.get_running_loop(), _AGAIN_S
        while True:
            began = loop.time()
            try:
                await work()
            except Exception as e:
                if loop.time() - began > _STEADY_S:
                    pause = _AGAIN_S
                self.failed(name, e, up=False, then=f"; it starts again in {pause:g} s")
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _AGAIN_MAX_S)
            if (failure := self._failures.get(name)) is not None:
                failure.up = True
