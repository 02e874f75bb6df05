"""Allocations as the broker asks for them, in threads of its own: answered at once where numbers suffice, else handed to the loop.

This exists before the broker does, and long before those who make room: what has to wait for them lies in a queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kybernate.agent.records.ledger import Ledger
from kybernate.agent.vram.arbiter import Fit
from kybernate.agent.vram.out_of_memory import OutOfMemoryEvents
from kybernate.agent.vram.vram import Vram
from kybernate.cuda.broker import Verdict
from kybernate.cuda.driver import Gpu
from kybernate.model.types import HostPid, WorkloadName

_TOUCH_S = 1.0
"""Last use is written at most this often: allocations come by the thousand."""

MakeRoom = Callable[[WorkloadName, Gpu, int], Awaitable[bool]]
"""Until so many bytes may be asked for again. False: never, or not within the wait limit."""


@dataclass(eq=False, frozen=True, slots=True)
class _Waiting:
    """An allocation that waits for room."""

    workload: WorkloadName
    gpu: Gpu
    size: int
    answer: asyncio.Future[bool]


class AllocationRequests:
    """The broker's `Admission`."""

    def __init__(
        self,
        *,
        vram: Vram,
        ledger: Ledger,
        refusals: OutOfMemoryEvents,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._vram = vram
        self._ledger = ledger
        self._refusals = refusals
        self._clock = clock
        self._loop = loop
        self._touched: dict[WorkloadName, float] = {}
        self._hellos: asyncio.Queue[tuple[WorkloadName, HostPid]] = asyncio.Queue()
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()

    # -- the broker's threads ------------------------------------------------------------------------------------

    def hello(self, *, workload: WorkloadName, pid: HostPid, pid_inside: int) -> None:
        self._loop.call_soon_threadsafe(self._add_hello, workload, pid)

    def may_allocate(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> Verdict:
        """Bookkeeping only; the broker may still find less than this promised and says so itself."""
        fit = self._vram.judge(workload, gpu, size)
        if fit is Fit.NEVER:
            self._loop.call_soon_threadsafe(self._refusals.record_exceeds_capacity, workload, gpu, size)
            return Verdict.NEVER
        if self._untouched(workload, self._clock()):  # looked at here, too: the loop need not wake for each allocation
            self._loop.call_soon_threadsafe(self._touch, workload)
        if fit is Fit.LATER:
            return Verdict.WAIT
        self._vram.take(workload, gpu.uuid)
        return Verdict.GRANT

    def make_room(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> bool:
        """Blocks until `size` bytes may be asked for again. False: never, or not within the wait limit."""
        return asyncio.run_coroutine_threadsafe(self._wait(workload, gpu, size), self._loop).result()

    # -- the loop's thread ---------------------------------------------------------------------------------------

    async def next_hello(self) -> tuple[WorkloadName, HostPid]:
        """A process that says for the first time, or once more, that it uses CUDA."""
        return await self._hellos.get()

    async def serve(self, make_room: MakeRoom) -> None:
        """Has room made for those that wait, for many at the same time. Task body; ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            while True:
                waiting = await self._waiting.get()
                group.create_task(_answer(waiting, make_room))

    def forget(self, name: WorkloadName) -> None:
        """A workload ended or began anew."""
        self._touched.pop(name, None)
        self._refusals.forget(name)

    async def _wait(self, workload: WorkloadName, gpu: Gpu, size: int) -> bool:
        waiting = _Waiting(workload, gpu, size, self._loop.create_future())
        self._waiting.put_nowait(waiting)
        return await waiting.answer

    def _add_hello(self, name: WorkloadName, pid: HostPid) -> None:
        self._hellos.put_nowait((name, pid))
        self._touch(name)

    def _touch(self, name: WorkloadName) -> None:
        now = self._clock()
        if self._untouched(name, now):
            self._touched[name] = now
            self._ledger.update(name, last_use=now)

    def _untouched(self, name: WorkloadName, now: float) -> bool:
        return now - self._touched.get(name, 0.0) >= _TOUCH_S


async def _answer(waiting: _Waiting, make_room: MakeRoom) -> None:
    try:
        made = await make_room(waiting.workload, waiting.gpu, waiting.size)
    except Exception as e:
        if not waiting.answer.done():
            waiting.answer.set_exception(e)
    else:
        if not waiting.answer.done():
            waiting.answer.set_result(made)
