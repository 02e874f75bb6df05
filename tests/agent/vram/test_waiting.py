"""Who waits for room in VRAM and what stands in the way: in numbers for the arbiter, and in words for a person."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from tests.agent.building import GPU, NOW, OTHER_GPU, A, B, C, Clock, Held, entry, gpu, on_disk, paused

from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.vram.vram import Vram
from kybernate.agent.vram.waiting import RESERVED_S, WaitingAllocations
from kybernate.cuda.driver import Gpu
from kybernate.model.types import GIB, GpuUuid, WorkloadName, WorkloadState
from kybernate.settings import VramSettings

pytestmark = pytest.mark.unit


class Node:
    """100 GiB on each of two GPUs, all of it handed out."""

    def __init__(self, *entries: Entry, held: Mapping[tuple[str, GpuUuid], int] | None = None) -> None:
        self.clock = Clock()
        self.ledger = Ledger(clock=self.clock, flush=on_disk)
        self.held = Held({key: size * GIB for key, size in (held or {}).items()})
        used = self.held.resident_bytes(None, gpu())
        self.gpus: list[Gpu] = [gpu(free=100 * GIB - used), gpu(OTHER_GPU, index=1)]
        self.vram = Vram(gpus=self.gpus, settings=VramSettings(reserve=0), usage=self.held, clock=self.clock)
        self.busy: set[WorkloadName] = set()
        self.refused: dict[WorkloadName, float] = {}
        self.interactive: set[WorkloadName] = set()
        self.waiting = WaitingAllocations(
            vram=self.vram,
            ledger=self.ledger,
            clock=self.clock,
            idle=lambda name: name not in self.busy,
            refused_until=lambda name: self.refused.get(name, 0.0),
            rank=lambda name: (name in self.interactive, 0),
        )
        self.ledger.observed_by([self.waiting.changed])
        for each in entries:
            self.ledger.add(each)

    @property
    def gpu(self) -> Gpu:
        return self.gpus[0]


def test_somebody_waits_for_as_long_as_the_allocation_does() -> None:
    node = Node(entry("a"))
    assert not node.waiting.somebody_waits()
    with node.waiting.while_waiting(A, node.gpu, GIB):
        assert node.waiting.somebody_waits()
        with node.waiting.while_waiting(A, node.gpu, GIB):
            pass
        assert node.waiting.somebody_waits(), "of two equal ones only one has ended"
    assert not node.waiting.somebody_waits()


# -- what stands in the way ----------------------------------------------------------------------------------------------


def test_it_is_hopeless_where_all_who_can_give_way_would_not_help() -> None:
    node = Node(entry("a"), entry("b"), held={("b", GPU): 60})
    assert not node.waiting.hopeless(A, node.gpu, 90 * GIB)
    node.refused[B] = math.inf
    assert node.waiting.hopeless(A, node.gpu, 41 * GIB), "what can't be paused stays"
    assert not node.waiting.hopeless(A, node.gpu, 40 * GIB)


def test_a_refusal_of_the_moment_is_no_reason_to_give_up() -> None:
    node = Node(entry("a"), entry("b"), held={("b", GPU): 60})
    node.refused[B] = NOW + 1000
    assert not node.waiting.hopeless(A, node.gpu, 90 * GIB)


def test_an_external_process_never_gives_way() -> None:
    node = Node(entry("a"), entry("b", external=True), held={("b", GPU): 60})
    assert node.waiting.hopeless(A, node.gpu, 41 * GIB)


def test_whoever_ranks_higher_stands_in_the_way_only_of_one_that_can_be_paused_meanwhile() -> None:
    node = Node(entry("a"), entry("b"), held={("a", GPU): 10, ("b", GPU): 60})
    assert not node.waiting.outranked(node.ledger.entry(A), node.gpu, 40 * GIB), "without ranks all are alike"
    node.interactive.add(B)
    assert node.waiting.outranked(node.ledger.entry(A), node.gpu, 40 * GIB)
    assert not node.waiting.outranked(node.ledger.entry(A), node.gpu, 30 * GIB), "so much is free"
    node.busy.add(A)
    assert not node.waiting.outranked(node.ledger.entry(A), node.gpu, 40 * GIB)


def test_two_that_wait_for_each_other_are_a_circle_and_the_younger_gives_way() -> None:
    node = Node(entry("a"), entry("b"), held={("a", GPU): 40, ("b", GPU): 40})
    with node.waiting.while_waiting(A, node.gpu, 50 * GIB):
        assert node.waiting.deadlock_victim() is None, "one alone waits for nobody who waits"
        node.clock.passes(1)
        with node.waiting.while_waiting(B, node.gpu, 50 * GIB):
            assert node.waiting.deadlock_victim() == B
            node.busy.add(B)
            assert node.waiting.deadlock_victim() == A, "B can't be paused now"


def test_there_is_no_circle_where_a_third_can_make_room() -> None:
    node = Node(entry("a"), entry("b"), entry("c"), held={("a", GPU): 20, ("b", GPU): 20, ("c", GPU): 40})
    with node.waiting.while_waiting(A, node.gpu, 50 * GIB), node.waiting.while_waiting(B, node.gpu, 50 * GIB):
        assert node.waiting.deadlock_victim() is None
        node.refused[C] = math.inf
        assert node.waiting.deadlock_victim() == A, "both have waited for as long: then it is the first by name"


def test_who_waited_before_and_got_nothing_is_no_younger_for_it() -> None:
    node = Node(entry("a"), entry("b"), held={("a", GPU): 40, ("b", GPU): 40})
    with node.waiting.while_waiting(A, node.gpu, 50 * GIB):
        pass
    node.clock.passes(5)
    with node.waiting.while_waiting(B, node.gpu, 50 * GIB):
        node.clock.passes(5)
        with node.waiting.while_waiting(A, node.gpu, 50 * GIB):
            assert node.waiting.deadlock_victim() == B, "A has waited since long before"
            node.waiting.satisfied(A)
    with node.waiting.while_waiting(B, node.gpu, 50 * GIB), node.waiting.while_waiting(A, node.gpu, 50 * GIB):
        assert node.waiting.deadlock_victim() == A, "it got what it waited for: this is another wait"


def test_who_has_the_room_is_said_in_words() -> None:
    node = Node(entry("a"), entry("b"), paused("c"), entry("d", external=True), held={("b", GPU): 60, ("d", GPU): 5})
    node.vram.reserve(C, GPU, 2 * GIB, for_s=60)
    with node.waiting.while_waiting(B, node.gpu, GIB):
        assert node.waiting.describe_obstacles(A, node.gpu) == (
            "b (running, holds 60.0 GiB, waits for more itself), c (paused, holds 0 B, has 2.0 GiB reserved), "
            "d (running, holds 5.0 GiB, can't be paused)"
        )
    assert node.waiting.describe_obstacles(A, node.gpus[1]) == "nobody whom this agent could pause"


# -- what was paused in its call -----------------------------------------------------------------------------------------


def give_way(node: Node) -> None:
    for event in (Event.PAUSE, Event.PAUSED):
        node.ledger.apply(A, event)


def come_back(node: Node) -> None:
    for event in (Event.RESUME, Event.RESUMED):
        node.ledger.apply(A, event)


def test_what_it_asked_for_when_it_was_paused_is_remembered_and_promised_when_it_is_back() -> None:
    node = Node(entry("a"))
    with node.waiting.while_waiting(A, node.gpu, 30 * GIB), node.waiting.while_waiting(A, node.gpus[1], GIB):
        give_way(node)
    assert node.waiting.wanted(A) == {GPU: 30 * GIB, OTHER_GPU: GIB}
    come_back(node)
    assert node.waiting.wanted(A) == {}
    assert node.vram.reserved_for_others(B, node.gpu) == 30 * GIB
    node.clock.passes(RESERVED_S)
    assert node.vram.reserved_for_others(B, node.gpu) == 0, "it asks again within milliseconds, or not at all"


def test_what_does_not_fit_any_more_is_not_promised() -> None:
    node = Node(entry("a"), entry("b"))
    with node.waiting.while_waiting(A, node.gpu, 30 * GIB):
        give_way(node)
    node.held.sizes = {("b", GPU): 80 * GIB}
    come_back(node)
    assert node.vram.reserved_for_others(B, node.gpu) == 0


def test_one_that_was_paused_in_no_call_wants_nothing_more() -> None:
    node = Node(entry("a"))
    give_way(node)
    assert node.waiting.wanted(A) == {}


def test_one_that_has_ended_is_forgotten() -> None:
    node = Node(entry("a"))
    with node.waiting.while_waiting(A, node.gpu, GIB):
        give_way(node)
    node.waiting.forget(A)
    assert node.waiting.wanted(A) == {}
    node.ledger.apply(A, Event.EXITED)
    assert node.ledger.entry(A).state is WorkloadState.EXITED
