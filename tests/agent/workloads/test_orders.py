"""An order behind another one of its kind: equals are one, a stronger one strengthens the one under way, others wait."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.agent.conftest import AgentProcess
from tests.agent.workloads.test_operations import owner
from tests.conftest import SLOWER, Eventually

from kybernate.agent.records.ledger import ARBITER, USER
from kybernate.agent.workloads.operations import RunningOrder
from kybernate.agent.workloads.orders import PauseOrder, PrefetchOrder, ResumeOrder, StopOrder, Stored
from kybernate.client import Client
from kybernate.model.api import CloneRequest
from kybernate.model.errors import NoRoom
from kybernate.model.types import MIB, Depth, EndedBy, TierName, WorkloadName, WorkloadState
from kybernate.process.preflight import Connections

pytestmark = pytest.mark.timeout(180 * SLOWER)

A, B = WorkloadName("a"), WorkloadName("b")
BACK = ResumeOrder(may_evict=False, wait_s=0.0, why="resumed by the arbiter")
PERSON = ResumeOrder(may_evict=True, wait_s=30.0, why="resumed by order", by_person=True)
EVICT = PauseOrder(depth=Depth.ZERO, by=ARBITER, why="paused by the arbiter", timeout_s=5.0)
PAUSE = PauseOrder(depth=Depth.ZERO, by=USER, why="paused by order", timeout_s=30.0)


def test_a_resume_is_as_strong_as_all_who_ordered_it() -> None:
    assert BACK.joined(PERSON) == PERSON == PERSON.joined(BACK)
    policy = ResumeOrder(may_evict=True, wait_s=5.0, why="resumed by the policy", victims=(A,))
    both = policy.joined(ResumeOrder(may_evict=True, wait_s=1.0, why="x", take_over=True, victims=(B, A)))
    assert both == ResumeOrder(may_evict=True, wait_s=5.0, why=policy.why, take_over=True, victims=(A, B))
    assert policy.joined(PERSON).by_person


def test_a_pause_becomes_a_persons_and_never_the_arbiters() -> None:
    assert EVICT.joined(PAUSE) == PAUSE == PAUSE.joined(EVICT)
    told = PauseOrder(depth=Depth.ZERO, by=ARBITER, why="w", timeout_s=30.0, freed=lambda *_: None)
    assert told.joined(EVICT) == told
    strengthened = told.joined(PAUSE)
    assert strengthened is not None
    assert strengthened.freed is None, "no byte is told of twice"


def test_a_pause_in_its_call_makes_nobody_wait_for_requests_that_can_not_end() -> None:
    in_its_call = PauseOrder(depth=Depth.ZERO, by=ARBITER, why="w", timeout_s=5.0, drain=False)
    for both in (in_its_call.joined(PAUSE), PAUSE.joined(in_its_call)):
        assert both is not None
        assert (both.by, both.drain) == (USER, False)


@pytest.mark.parametrize(
    "other",
    [
        PauseOrder(depth=Depth.WARM, by=USER, why="w", timeout_s=1.0),
        PauseOrder(depth=Depth.ZERO, tier=TierName.NVME, by=USER, why="w", timeout_s=1.0),
        PauseOrder(depth=Depth.ZERO, connections=Connections.CLOSE, by=USER, why="w", timeout_s=1.0),
    ],
    ids=["depth", "tier", "connections"],
)
def test_pauses_to_different_places_come_one_after_the_other(other: PauseOrder) -> None:
    assert PAUSE.joined(other) is None


def test_the_shorter_grace_and_the_persons_word_hold() -> None:
    patient = StopOrder(grace_s=600.0, by=EndedBy.AGENT)
    assert patient.joined(StopOrder(grace_s=0.0, by=EndedBy.ORDER)) == StopOrder(grace_s=0.0, by=EndedBy.ORDER)
    assert patient.joined(StopOrder(grace_s=700.0, by=EndedBy.AGENT)) == patient
    assert patient.joined(StopOrder(grace_s=0.0, by=EndedBy.AGENT, stored=Stored.STAYS)) is None


def test_a_prefetch_that_a_person_wants_is_not_given_up() -> None:
    assert PrefetchOrder(by_person=False).joined(PrefetchOrder(by_person=True)).by_person


class Room:
    """A resume that finds room only by evicting, and stands before that until it may go on."""

    def __init__(self) -> None:
        self.looks = asyncio.Event()
        self.may_look = asyncio.Event()
        self.done_as: list[ResumeOrder] = []

    async def resume(self, order: RunningOrder[ResumeOrder]) -> str:
        self.looks.set()
        await self.may_look.wait()
        self.done_as.append(order.now)
        if not order.now.may_evict:
            raise NoRoom("others hold it")
        return order.now.why


@pytest.mark.parametrize("already_looking", [False, True], ids=["in line", "under way"])
async def test_a_persons_resume_behind_the_arbiters_evicts(already_looking: bool) -> None:
    async with owner() as one:
        room, before = Room(), asyncio.Event()
        blocked = asyncio.create_task(one.submit("start", before.wait))
        arbiters = asyncio.create_task(one.order("resume", room.resume, BACK))
        if already_looking:
            before.set()
            await room.looks.wait()
        else:
            await asyncio.sleep(0)
        persons = asyncio.create_task(one.order("resume", room.resume, PERSON))
        await asyncio.sleep(0)
        before.set()
        room.may_look.set()
        assert await asyncio.gather(arbiters, persons) == ["resumed by order"] * 2
        assert room.done_as == [PERSON], "once for both"
        await blocked


async def test_what_failed_before_it_knew_of_a_stronger_order_is_tried_as_that() -> None:
    async with owner() as one:
        tries: list[ResumeOrder] = []
        failing, may_fail = asyncio.Event(), asyncio.Event()

        async def resume(order: RunningOrder[ResumeOrder]) -> str:
            tries.append(order.now)
            if not order.now.may_evict:
                failing.set()
                await may_fail.wait()
                raise NoRoom("others hold it")
            return "back"

        arbiters = asyncio.create_task(one.order("resume", resume, BACK))
        await failing.wait()
        persons = asyncio.create_task(one.order("resume", resume, PERSON))
        await asyncio.sleep(0)
        may_fail.set()
        assert await asyncio.gather(arbiters, persons) == ["back"] * 2
        assert tries == [BACK, PERSON]


async def test_a_weaker_order_takes_what_the_stronger_gets_and_its_failure() -> None:
    async with owner() as one:
        may_fail, runs = asyncio.Event(), 0

        async def resume(_: RunningOrder[ResumeOrder]) -> str:
            nonlocal runs
            runs += 1
            await may_fail.wait()
            raise NoRoom("never")

        both = [asyncio.create_task(one.order("resume", resume, each)) for each in (PERSON, BACK)]
        await asyncio.sleep(0)
        may_fail.set()
        assert [type(each) for each in await asyncio.gather(*both, return_exceptions=True)] == [NoRoom, NoRoom]
        assert runs == 1


async def test_a_wait_is_cut_short_by_an_order_with_less_patience() -> None:
    order = RunningOrder(StopOrder(grace_s=600.0, by=EndedBy.AGENT))
    never = asyncio.Event()
    waiting = asyncio.create_task(order.within(lambda now: now.grace_s, never.wait()))
    await asyncio.sleep(0)
    assert order.join(StopOrder(grace_s=0.0, by=EndedBy.ORDER))
    with pytest.raises(TimeoutError):
        await waiting


async def test_clones_that_differ_are_not_one() -> None:
    async with owner() as one:
        made: list[str] = []

        async def clone(image: str) -> str:
            made.append(image)
            return image

        wanted = CloneRequest.of(name="w")
        both = await asyncio.gather(
            *(one.submit("clone", lambda i=image: clone(i), detail=(image, TierName.NVME, wanted)) for image in "xy")  # type: ignore[misc]
        )
        assert both == made == ["x", "y"]


# -- of a real agent -------------------------------------------------------------------------------------------------------


def test_no_grace_cuts_a_long_one_short(plain_agent: AgentProcess, eventually: Eventually) -> None:
    program = "trap '' TERM; echo here; while :; do sleep 1; done"
    plain_agent.run("stubborn", "sh", "-c", program)
    eventually(lambda: "here" in plain_agent.output("stubborn"))
    with ThreadPoolExecutor(1) as pool, Client(plain_agent.state.socket) as other:
        first = pool.submit(other.stop, "stubborn", grace_s=36000)
        eventually(lambda: plain_agent.client.workload("stubborn").state is WorkloadState.STOPPING)
        assert plain_agent.client.stop("stubborn", grace_s=0).exit_status == 137
        assert first.result().exit_status == 137
    events = [event.kind for event in plain_agent.client.events("stubborn")]
    assert (events.count("stop"), events.count("exited")) == (1, 1)


def test_what_a_person_pauses_while_the_arbiter_does_is_the_persons(
    slow_agent: AgentProcess, eventually: Eventually
) -> None:
    slow_agent.run_cuda("one", bytes_=80 * MIB, noise=True)
    eventually(lambda: slow_agent.steps("one") > 1, timeout_s=60)
    slow_agent.run_cuda("two", bytes_=80 * MIB, noise=True)
    eventually(lambda: slow_agent.client.workload("one").state is WorkloadState.PAUSING, timeout_s=60)
    view = slow_agent.client.pause("one")
    assert view.already is False, "it was the arbiter's pause that it joined"
    one = slow_agent.client.workload("one")
    assert (one.state, one.paused_by, one.reason) == (WorkloadState.PAUSED, USER, "paused by order")
