"""The owner's line: one after the other, equal orders join, late ones are withdrawn, callers may go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from kybernate.agent.workloads.operations import QUEUE_MAX, Owner
from kybernate.model.errors import Busy
from kybernate.model.types import WorkloadName

pytestmark = pytest.mark.unit


@asynccontextmanager
async def owner() -> AsyncIterator[Owner]:
    one = Owner(WorkloadName("w"))
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Gate:
    """Work that says when it began and ends when it may."""

    def __init__(self, result: str = "done") -> None:
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.runs = 0
        self.result = result

    async def work(self) -> str:
        self.runs += 1
        self.began.set()
        await self.may_end.wait()
        return self.result


async def test_orders_run_one_after_the_other() -> None:
    async with owner() as one:
        first, second = Gate("1"), Gate("2")
        a = asyncio.create_task(one.submit("pause", first.work))
        b = asyncio.create_task(one.submit("resume", second.work))
        await first.began.wait()
        await asyncio.sleep(0)
        assert not second.began.is_set()
        first.may_end.set()
        second.may_end.set()
        assert (await a, await b) == ("1", "2")
        await one.wait_idle()


async def test_a_process_end_is_noted_however_many_orders_are_in_line() -> None:
    async with owner() as one:
        gate = Gate()
        orders = [asyncio.create_task(one.submit("order", gate.work, detail=0))]
        await gate.began.wait()
        orders += [asyncio.create_task(one.submit("order", gate.work, detail=k + 1)) for k in range(QUEUE_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="in line"):
            await one.submit("one more", gate.work)
        end = Gate("ended")
        end.may_end.set()
        noted = asyncio.create_task(one.submit("end", end.work, order=False))
        await asyncio.sleep(0)
        gate.may_end.set()
        assert await noted == "ended"
        await asyncio.gather(*orders)


async def test_an_equal_order_joins_the_one_that_runs() -> None:
    async with owner() as one:
        gate = Gate()
        both = [asyncio.create_task(one.submit("pause", gate.work, detail="zero")) for _ in range(2)]
        await gate.began.wait()
        both.append(asyncio.create_task(one.submit("pause", gate.work, detail="zero")))
        await asyncio.sleep(0)
        gate.may_end.set()
        assert await asyncio.gather(*both) == ["done"] * 3
        assert gate.runs == 1


async def test_another_detail_does_not_join() -> None:
    async with owner() as one:
        gate = Gate()
        gate.may_end.set()
        await asyncio.gather(
            one.submit("pause", gate.work, detail="warm"), one.submit("pause", gate.work, detail="zero")
        )
        assert gate.runs == 2


async def test_a_late_order_is_withdrawn() -> None:
    async with owner() as one:
        gate, late = Gate(), Gate()
        running = asyncio.create_task(one.submit("start", gate.work))
        await gate.began.wait()
        with pytest.raises(Busy, match="start"):
            await one.submit("pause", late.work, begin_within_s=0.01)
        gate.may_end.set()
        await running
        await one.wait_idle()
        assert late.runs == 0


async def test_a_caller_that_goes_cancels_nothing() -> None:
    async with owner() as one:
        gate = Gate()
        caller = asyncio.create_task(one.submit("pause", gate.work))
        await gate.began.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert not one.idle
        gate.may_end.set()
        await one.wait_idle()


async def test_a_failure_belongs_to_its_caller_and_the_next_order_runs() -> None:
    async def fail() -> None:
        raise Busy("no")

    async with owner() as one:
        with pytest.raises(Busy, match="no"):
            await one.submit("pause", fail)
        gate = Gate()
        gate.may_end.set()
        assert await one.submit("pause", gate.work) == "done"


async def test_the_line_is_bounded() -> None:
    async with owner() as one:
        gate = Gate()
        tasks = [asyncio.create_task(one.submit("x", gate.work, detail=-1))]
        await gate.began.wait()
        tasks += [asyncio.create_task(one.submit("x", gate.work, detail=i)) for i in range(QUEUE_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="in line"):
            await one.submit("y", gate.work)
        gate.may_end.set()
        await asyncio.gather(*tasks)
