"""Victims that leave while another comes: all that they held is handed over, and nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from tests.agent.building import GPU, OTHER_GPU, A, B

from kybernate.agent.vram.overlapped_eviction import Leave, OverlappedEviction
from kybernate.agent.workloads.orders import Freed
from kybernate.model.errors import Busy, NoRoom
from kybernate.model.types import GpuUuid, WorkloadName

pytestmark = pytest.mark.unit

RESIDENT = {A: {GPU: 10, OTHER_GPU: 4}, B: {GPU: 7}}


def departure(
    leave: Leave, *, victims: tuple[WorkloadName, ...] = (A,), spare: Mapping[GpuUuid, int] | None = None
) -> OverlappedEviction:
    return OverlappedEviction(victims=victims, resident=RESIDENT, spare=spare or {}, leave=leave)


def taken(departing: OverlappedEviction, gpu: GpuUuid) -> int:
    """All that can be taken there now that nobody is on its way any more."""
    total = 0
    try:
        while True:
            departing.handoff.take(gpu, 1)
            total += 1
    except NoRoom:
        return total


async def test_what_was_told_piece_by_piece_is_not_given_once_more_at_the_end() -> None:
    async def leave(_: WorkloadName, freed: Freed) -> None:
        freed(GPU, 4)
        freed(GPU, 6)
        freed(OTHER_GPU, 4)

    departing = departure(leave)
    assert await departing.settled()
    assert (taken(departing, GPU), taken(departing, OTHER_GPU)) == (10, 4)


async def test_a_pause_that_tells_nobody_gives_all_at_its_end() -> None:
    """As one that was under way already."""

    async def leave(_: WorkloadName, __: Freed) -> None:
        await asyncio.sleep(0)

    departing = departure(leave, victims=(A, B))
    assert await departing.settled()
    assert (taken(departing, GPU), taken(departing, OTHER_GPU)) == (17, 4)


async def test_what_was_freed_beyond_what_it_held_is_handed_over_too() -> None:
    """It may have allocated between the counting and its pause."""

    async def leave(_: WorkloadName, freed: Freed) -> None:
        freed(GPU, 13)

    departing = departure(leave)
    assert await departing.settled()
    assert (taken(departing, GPU), taken(departing, OTHER_GPU)) == (13, 4)


async def test_what_is_free_already_can_be_taken_before_anybody_left() -> None:
    gone = asyncio.Event()

    async def leave(_: WorkloadName, __: Freed) -> None:
        await gone.wait()

    departing = departure(leave, spare={GPU: 5})
    departing.handoff.take(GPU, 5)
    gone.set()
    assert await departing.settled()
    assert taken(departing, GPU) == 10


async def test_a_victim_that_stays_ends_the_waiting_with_its_reason() -> None:
    async def leave(name: WorkloadName, freed: Freed) -> None:
        if name == A:
            raise Busy("a has requests in flight")
        freed(GPU, 7)

    departing = departure(leave, victims=(A, B))
    assert not await departing.settled()
    with pytest.raises(NoRoom, match="10 bytes of VRAM are needed and 7 became free: a has requests in flight"):
        departing.handoff.take(GPU, 10)
    departing.handoff.take(GPU, 7)


async def test_victims_leave_side_by_side() -> None:
    on_their_way: set[WorkloadName] = set()
    both = asyncio.Event()

    async def leave(name: WorkloadName, _: Freed) -> None:
        on_their_way.add(name)
        if len(on_their_way) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 5)

    assert await departure(leave, victims=(A, B)).settled()


async def test_without_victims_there_is_what_was_free_and_nothing_more() -> None:
    async def leave(name: WorkloadName, _: Freed) -> None:
        raise AssertionError(name)

    departing = departure(leave, victims=(), spare={GPU: 3})
    assert await departing.settled()
    assert taken(departing, GPU) == 3


async def test_who_leaves_can_be_read_in_order() -> None:
    async def leave(_: WorkloadName, __: Freed) -> None: ...

    departing = departure(leave, victims=(B, A))
    assert departing.victims == (B, A)
    await departing.settled()
