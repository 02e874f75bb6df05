"""The books of each GPU's memory: what is handed out at most, what is free of it, and what is promised to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.building import GPU, OTHER_GPU, A, B, C, Clock, Held, changed, entry, gpu, paused

from kybernate.agent.vram.arbiter import Fit
from kybernate.agent.vram.vram import Vram, VramUsage, default_reserve, holds_unmanaged
from kybernate.cuda.driver import Gpu
from kybernate.model.types import GIB, MIB, Depth, GpuUuid, WorkloadState
from kybernate.settings import VramSettings

pytestmark = pytest.mark.unit

S = WorkloadState


class Node:
    """100 GiB on a GPU of which `reserve` is kept free."""

    def __init__(
        self,
        held: Mapping[tuple[str, GpuUuid], int] | None = None,
        *,
        gpus: Sequence[Gpu] | None = None,
        limit: int | None = None,
        reserve: int | None = 0,
    ) -> None:
        self.clock = Clock()
        self.held = Held(held)
        self.gpus = list(gpus) if gpus is not None else [gpu()]
        self.vram = Vram(
            gpus=self.gpus,
            settings=VramSettings(limit=limit, reserve=reserve),
            usage=self.held,
            clock=self.clock,
        )

    @property
    def gpu(self) -> Gpu:
        return self.gpus[0]


# -- what there is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "reserve"),
    [
        pytest.param(141 * GIB, GIB, id="a large GPU: a context's worth"),
        pytest.param(50 * GIB, GIB, id="the border"),
        pytest.param(24 * GIB, 24 * GIB // 50, id="a small one: two per cent"),
        pytest.param(0, 0, id="nothing of nothing"),
    ],
)
def test_unless_the_settings_say_otherwise_two_per_cent_are_kept_free_and_at_most_a_gib(
    total: int, reserve: int
) -> None:
    assert default_reserve(total) == reserve


@pytest.mark.parametrize(
    ("limit", "reserve", "capacity"),
    [
        pytest.param(None, None, 99 * GIB, id="all but the reserve"),
        pytest.param(None, 10 * GIB, 90 * GIB, id="a reserve of one's own"),
        pytest.param(60 * GIB, 0, 60 * GIB, id="a limit"),
        pytest.param(200 * GIB, 2 * GIB, 98 * GIB, id="a limit above what there is"),
    ],
)
def test_what_is_handed_out_at_most(limit: int | None, reserve: int | None, capacity: int) -> None:
    node = Node(limit=limit, reserve=reserve)
    assert node.vram.capacity(node.gpu) == capacity


def test_free_is_what_the_driver_says_above_the_reserve_and_may_be_less_than_nothing() -> None:
    node = Node(gpus=[gpu(free=5 * GIB)], reserve=8 * GIB)
    assert node.vram.free(node.gpu) == -3 * GIB


def test_holdings_are_by_gpu_and_those_of_nothing_are_left_out() -> None:
    node = Node({("a", GPU): 3, ("a", OTHER_GPU): 0, ("b", OTHER_GPU): 5}, gpus=[gpu(), gpu(OTHER_GPU, index=1)])
    assert node.vram.held_by(A) == {GPU: 3}
    assert (node.vram.held(A), node.vram.held(B), node.vram.held(C)) == (3, 5, 0)
    assert node.vram.resident(None, node.gpus[1]) == 5


# -- whether something fits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "fit"),
    [
        pytest.param(70 * GIB, Fit.FITS, id="just what is free"),
        pytest.param(70 * GIB + 1, Fit.LATER, id="one byte more has to wait"),
        pytest.param(90 * GIB, Fit.LATER, id="all that it may ever have"),
        pytest.param(90 * GIB + 1, Fit.NEVER, id="more than there is, with what it holds"),
    ],
)
def test_the_borders_between_now_later_and_never(size: int, fit: Fit) -> None:
    node = Node({("a", GPU): 10 * GIB, ("b", GPU): 20 * GIB}, gpus=[gpu(free=75 * GIB)])
    assert node.vram.judge(A, node.gpu, size) is fit


def test_it_must_fit_on_each_gpu_and_every_gpu_must_be_there() -> None:
    node = Node(gpus=[gpu(), gpu(OTHER_GPU, total=10 * GIB, index=1)])
    assert node.vram.fits(A, {GPU: 100 * GIB, OTHER_GPU: 10 * GIB})
    assert not node.vram.fits(A, {GPU: GIB, OTHER_GPU: 11 * GIB})
    assert not node.vram.fits(A, {GpuUuid("GPU-gone"): 0})
    assert node.vram.fits(A, {}), "what needs nothing fits"


def test_what_is_missing_is_zero_or_less_exactly_where_it_fits() -> None:
    node = Node({("b", GPU): 60 * GIB}, gpus=[gpu(free=38 * GIB)])
    assert node.vram.missing(A, node.gpu, 40 * GIB) == 2 * GIB, "less is free than was left: others hold it"
    assert node.vram.missing(A, node.gpu, 38 * GIB) == 0
    node.vram.reserve(C, GPU, GIB, for_s=5)
    assert node.vram.missing(A, node.gpu, 38 * GIB) == GIB


# -- promises ------------------------------------------------------------------------------------------------------------


def test_a_promise_keeps_others_out_not_its_own_and_not_for_ever() -> None:
    node = Node()
    node.vram.reserve(A, GPU, 60 * GIB, for_s=5)
    assert node.vram.judge(B, node.gpu, 41 * GIB) is Fit.LATER
    assert node.vram.judge(B, node.gpu, 40 * GIB) is Fit.FITS
    assert node.vram.judge(A, node.gpu, 100 * GIB) is Fit.FITS
    node.clock.passes(5)
    assert node.vram.judge(B, node.gpu, 100 * GIB) is Fit.FITS, "it lapsed"


def test_a_new_promise_takes_the_place_of_the_old_one() -> None:
    node = Node()
    node.vram.reserve(A, GPU, 60 * GIB, for_s=5)
    node.vram.reserve(A, GPU, 10 * GIB, for_s=5)
    assert node.vram.reserved_for_others(B, node.gpu) == 10 * GIB


def test_it_ends_when_it_is_taken_there_or_released_everywhere() -> None:
    node = Node(gpus=[gpu(), gpu(OTHER_GPU, index=1)])
    for uuid in (GPU, OTHER_GPU):
        node.vram.reserve(A, uuid, GIB, for_s=5)
    node.vram.take(A, GPU)
    node.vram.take(A, GPU)  # nothing is left there
    assert [node.vram.reserved_for_others(B, each) for each in node.gpus] == [0, GIB]
    node.vram.release(A)
    assert [node.vram.reserved_for_others(B, each) for each in node.gpus] == [0, 0]


def test_a_promise_of_what_victims_free_claims_only_what_they_no_longer_hold() -> None:
    """30 GiB for `a`, of which the victim `b` still holds 20: nobody else gets those 20 anyway."""
    node = Node({("b", GPU): 20 * GIB})
    node.vram.reserve(A, GPU, 30 * GIB, for_s=60, leaving=[B], spare=10 * GIB)
    assert node.vram.reserved_for_others(C, node.gpu) == 10 * GIB
    node.held.sizes = {("b", GPU): 5 * GIB}
    assert node.vram.reserved_for_others(C, node.gpu) == 25 * GIB, "what it has freed is for `a`"
    node.held.sizes = {("b", GPU): 5 * GIB, ("a", GPU): 25 * GIB}
    assert node.vram.reserved_for_others(C, node.gpu) == 0, "and taken"


def test_spare_room_of_such_a_promise_is_claimed_whatever_the_victims_hold() -> None:
    node = Node({("b", GPU): 50 * GIB})
    node.vram.reserve(A, GPU, 30 * GIB, for_s=60, leaving=[B], spare=10 * GIB)
    assert node.vram.reserved_for_others(C, node.gpu) == 10 * GIB
    node.held.sizes = {("b", GPU): 50 * GIB, ("a", GPU): 4 * GIB}
    assert node.vram.reserved_for_others(C, node.gpu) == 6 * GIB


@given(
    size=st.integers(0, 100),
    spare=st.integers(0, 100),
    taken=st.integers(0, 100),
    held=st.integers(0, 100),
    plain=st.booleans(),
)
def test_a_claim_is_never_negative_nor_more_than_was_promised(
    size: int, spare: int, taken: int, held: int, *, plain: bool
) -> None:
    node = Node({("a", GPU): taken, ("b", GPU): held})
    node.vram.reserve(A, GPU, size, for_s=5, leaving=() if plain else (B,), spare=min(spare, size))
    assert 0 <= node.vram.reserved_for_others(C, node.gpu) <= size


# -- what is kept for one while it runs ----------------------------------------------------------------------------------


def test_what_was_said_of_one_is_kept_for_it_only_while_it_runs() -> None:
    node = Node({("a", GPU): 10 * GIB})
    node.vram.keep_for({A: {GPU: 40 * GIB}})
    assert node.vram.reserved_for_others(B, node.gpu) == 0
    node.vram.set_running([A])
    assert node.vram.reserved_for_others(B, node.gpu) == 30 * GIB, "what it holds of that included"
    assert node.vram.reserved_for_others(A, node.gpu) == 0
    assert node.vram.would_free(A, node.gpu) == 40 * GIB
    node.held.sizes = {("a", GPU): 50 * GIB}
    assert node.vram.reserved_for_others(B, node.gpu) == 0, "it has more than was said"
    assert node.vram.would_free(A, node.gpu) == 50 * GIB


def test_of_what_is_kept_and_what_is_promised_the_larger_counts_not_the_sum() -> None:
    node = Node()
    node.vram.keep_for({A: {GPU: 30 * GIB}})
    node.vram.set_running([A])
    node.vram.reserve(A, GPU, 40 * GIB, for_s=5)
    assert node.vram.reserved_for_others(B, node.gpu) == 40 * GIB
    assert node.vram.numbers()[GPU].reserved == {A: 40 * GIB}
    node.vram.reserve(A, GPU, 20 * GIB, for_s=5)
    assert node.vram.reserved_for_others(B, node.gpu) == 30 * GIB


def test_what_is_said_anew_replaces_all_that_was_said() -> None:
    node = Node()
    node.vram.keep_for({A: {GPU: 1}})
    node.vram.keep_for({B: {GPU: 2}})
    assert (node.vram.kept_for(A), node.vram.kept_for(B)) == ({}, {GPU: 2})


def test_numbers_of_a_gpu_are_what_a_policy_may_count_on() -> None:
    node = Node({("a", GPU): 30 * GIB}, gpus=[gpu(free=60 * GIB)], limit=80 * GIB, reserve=20 * GIB)
    node.vram.reserve(B, GPU, 5 * GIB, for_s=5)
    numbers = node.vram.numbers()[GPU]
    assert (numbers.capacity, numbers.unheld) == (80 * GIB, 40 * GIB), (
        "somebody else holds 10 GiB: the driver's word counts"
    )
    assert numbers.reserved == {B: 5 * GIB}
    node.clock.passes(5)
    assert node.vram.numbers()[GPU].reserved == {}


# -- what processes hold without the library -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "holds"),
    [
        *((entry(state=state), True) for state in (S.STARTING, S.RUNNING, S.PAUSING)),
        *((entry(state=state), False) for state in (S.RESUMING, S.STOPPING, S.EXITED, S.LOST)),
        pytest.param(paused(depth=Depth.WARM), True, id="paused with its context left"),
        pytest.param(paused(depth=Depth.ZERO), False, id="paused with nothing left"),
        pytest.param(entry(external=True), False, id="not ours to count"),
    ],
)
def test_what_is_written_of_unmanaged_vram_is_there_only_in_some_states(one: object, *, holds: bool) -> None:
    assert holds_unmanaged(one) is holds  # type: ignore[arg-type]


def test_books_add_what_the_broker_does_not_know() -> None:
    books = VramUsage(Held({("a", GPU): 10 * MIB, ("b", GPU): MIB}).resident_bytes)
    running = entry("a", unmanaged={GPU: 3 * MIB, OTHER_GPU: 2 * MIB})
    books.changed(None, running)
    assert books.resident_bytes(A) == 15 * MIB
    assert books.resident_bytes(A, gpu()) == 13 * MIB
    assert books.resident_bytes(None, gpu(OTHER_GPU)) == 2 * MIB
    assert (books.unmanaged_bytes(), books.unmanaged_bytes(B)) == (5 * MIB, 0)


def test_books_follow_the_ledger_through_a_pause_and_an_end() -> None:
    books = VramUsage(Held().resident_bytes)
    running = entry("a", unmanaged={GPU: 3})
    other = entry("b", unmanaged={GPU: 4})
    books.changed(None, running)
    books.changed(None, other)
    away = changed(running, state=S.PAUSED, depth=Depth.ZERO)
    books.changed(running, away)
    assert books.unmanaged_bytes() == 4
    books.changed(away, running)
    assert books.unmanaged_bytes() == 7
    books.changed(running, None)
    books.changed(other, changed(other, unmanaged={}))
    assert books.unmanaged_bytes() == 0
    books.changed(None, None)
