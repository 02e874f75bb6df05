"""One owner task per workload: its operations run one after the other, whoever asks.

Rules, the same for people, arbiter and process end:
- An order equal to the last one in line (same kind, same detail, by value) joins it and gets its result.
- One of that kind that asks for more strengthens it, where orders.py says how: the one under way goes on as the stronger one, and
  should it have failed before it knew, it is tried once more as that.
- Everything else waits in line; one that has not begun within its time is withdrawn and answered with busy.
- An operation that has begun is never cancelled by its caller's going away. But one that only waits (for requests to end, or for
  room) gives up at once for an order that overtakes it, such as the workload's end.

Knows nothing of GPUs or processes: work is a coroutine function.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from kybernate.model.errors import Busy, KybernateError
from kybernate.model.types import WorkloadName

log = logging.getLogger(__name__)

T = TypeVar("T")

QUEUE_MAX = 16
"""More orders than that in line for one workload is a client gone wild."""


class Joinable(Protocol):
    def joined(self, other: Any) -> Any:
        """One order that does what both want; None: they are carried out one after the other."""


O = TypeVar("O", bound=Joinable)  # noqa: E741 - an order


class RunningOrder(Generic[O]):
    """An order while it is carried out: it may become a stronger one at any moment."""

    def __init__(self, order: O) -> None:
        self.now = order
        """May be read in any thread."""
        self._changed = asyncio.Event()
        self._why: str | None = None

    def overtake(self, why: str) -> None:
        """From now on it waits for nothing any more. `why`: in words."""
        if self._why is None:
            self._why = why
            self._changed.set()

    async def waiting(self, work: Coroutine[Any, Any, T]) -> T:
        """Await what may take long and can be given up.

        Raises:
            Busy: another order has overtaken this one; the work was cancelled. What the work raises.
        """
        task = asyncio.ensure_future(work)
        try:
            while self._why is None and not task.done():
                self._changed.clear()
                change = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({task, change}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
            if not task.done():
                raise Busy(f"it was given up: {self._why}")
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def join(self, other: O) -> bool:
        """Whether it does now what the other wants, too."""
        both = self.now.joined(other)
        if both is None:
            return False
        if both != self.now:
            self.now = both
            self._changed.set()
        return True

    async def within(self, seconds: Callable[[O], float], work: Coroutine[Any, Any, T]) -> T:
        """Await the work for as long as the order gives it, also one that comes meanwhile.

        Raises:
            TimeoutError: that is over; the work was cancelled. What the work raises.
        """
        task = asyncio.ensure_future(work)
        began = time.monotonic()
        try:
            while not task.done():
                self._changed.clear()
                left = began + seconds(self.now) - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                change = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({task, change}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


@dataclass(frozen=True, slots=True)
class _Equal:
    """An order that only its equals join."""

    detail: object

    def joined(self, other: object) -> _Equal | None:
        return self if self == other else None


@dataclass(eq=False, slots=True)
class Operation:
    kind: str
    order: RunningOrder[Any]
    work: Callable[[RunningOrder[Any]], Awaitable[Any]]
    result: asyncio.Future[Any]
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    began_at: float = 0.0
    """Monotonic seconds."""
    waiters: int = 0


class Owner:
    """Queue and task of one workload. Use it in the loop's thread."""

    def __init__(self, name: WorkloadName) -> None:
        self.name = name
        self.current: Operation | None = None
        self._line: deque[Operation] = deque()
        self._work_waits = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing is in line: what is submitted now begins at once."""
        return self._idle.is_set()

    def hurry(self, why: str) -> None:
        """What is in line now waits for nothing any more."""
        for operation in (*([] if self.current is None else [self.current]), *self._line):
            operation.order.overtake(why)

    async def wait_idle(self) -> None:
        await self._idle.wait()

    async def submit(
        self,
        kind: str,
        work: Callable[[], Awaitable[T]],
        *,
        detail: object = None,
        begin_within_s: float | None = None,
        order: bool = True,
    ) -> T:
        """`order` for one that only its equals join: those of the same kind and detail.

        Args:
            order: False for what has happened already: it finds its place in a full line, too.
        """
        return await self.order(
            kind, lambda _: work(), _Equal(detail), begin_within_s=begin_within_s, most=QUEUE_MAX if order else None
        )

    async def order(
        self,
        kind: str,
        work: Callable[[RunningOrder[O]], Awaitable[T]],
        order: O,
        *,
        begin_within_s: float | None = None,
        most: int | None = QUEUE_MAX,
        overtakes: str | None = None,
    ) -> T:
        """Put in line, or join the last one there, and await the result. That happens before the first await.

        Args:
            work: what is done, by the order as it stands then.
            most: with so many in line it is refused.
            overtakes: why those before it wait for nothing any more.

        Raises:
            Busy: the line is full, or it had not begun within `begin_within_s`.
            What `work` raises.
        """
        last = self._line[-1] if self._line else self.current
        if last is not None and last.kind == kind and not last.result.done() and last.order.join(order):
            operation = last
        else:
            if most is not None and len(self._line) >= most:
                raise Busy(
                    f"{len(self._line)} orders are in line for workload {self.name} already", hint="try again later"
                )
            operation = Operation(kind, RunningOrder(order), work, asyncio.get_running_loop().create_future())
            # The exception is retrieved here even if every caller has gone.
            operation.result.add_done_callback(lambda future: future.cancelled() or future.exception())
            if overtakes is not None:
                self.hurry(overtakes)
            self._line.append(operation)
            self._idle.clear()
            self._work_waits.set()
        operation.waiters += 1
        try:
            if begin_within_s is not None and not operation.begun.is_set():
                await self._wait_begun(operation, begin_within_s)
            return await asyncio.shield(operation.result)
        finally:
            operation.waiters -= 1

    async def _wait_begun(self, operation: Operation, seconds: float) -> None:
        try:
            await asyncio.wait_for(operation.begun.wait(), seconds)
        except TimeoutError:
            if operation.begun.is_set():
                return
            ahead = self.current.kind if self.current is not None else "another operation"
            if operation.waiters == 1 and operation in self._line:
                self._line.remove(operation)
                operation.result.cancel()
            raise Busy(
                f"workload {self.name} is in the middle of {ahead} and was not free within {seconds:g} s",
                hint="try again, or give a longer --timeout",
            ) from None

    async def run(self) -> None:
        """The owner task's body; ends only by cancellation."""
        while True:
            while not self._line:
                self._idle.set()
                self._work_waits.clear()
                await self._work_waits.wait()
            operation = self._line.popleft()
            self.current = operation
            operation.began_at = time.monotonic()
            operation.begun.set()
            try:
                result = await _carry_out(operation)
            except asyncio.CancelledError:
                operation.result.cancel()
                raise
            except Exception as e:
                operation.result.set_exception(e)
            else:
                operation.result.set_result(result)
            finally:
                self.current = None


async def _carry_out(operation: Operation) -> Any:
    while True:
        order = operation.order.now
        try:
            return await operation.work(operation.order)
        except KybernateError as e:
            if operation.order.now == order:
                raise
            log.info("%s is tried again, as a stronger order wants it: %s", operation.kind, e)
