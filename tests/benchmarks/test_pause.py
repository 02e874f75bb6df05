"""What a benchmark of pauses measures: how much room it needs, how sizes are called, and whose time counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.benchmarks.pause import Measured, Plan
from kybernate.model.api import StepView, SwitchView
from kybernate.model.types import GIB, MIB, Backend, Depth

pytestmark = pytest.mark.unit


def plan(*sizes: int, swap: int | None = None) -> Plan:
    return Plan(sizes=sizes, repeat=3, stock_repeat=2, swap_bytes=swap)


@pytest.mark.parametrize(
    ("size", "name"), [(2 * MIB, "2MiB"), (GIB - MIB, "1023MiB"), (GIB, "1GiB"), (40 * GIB, "40GiB")]
)
def test_a_size_is_called_by_its_largest_unit(size: int, name: str) -> None:
    assert plan(size).name(size) == name


def test_the_pool_holds_the_largest_size_or_both_of_a_swap_and_some_room() -> None:
    assert plan(GIB, 2 * GIB).pool_bytes == 2 * GIB + 64 * MIB
    assert plan(GIB, swap=10 * GIB).pool_bytes == 20 * GIB + 640 * MIB


@given(size=st.integers(1, 40_000), swap=st.none() | st.integers(1, 40_000))
def test_a_pool_is_whole_chunks_where_the_sizes_are_and_never_smaller_than_what_it_holds(
    size: int, swap: int | None
) -> None:
    made = plan(2 * MIB * size, swap=None if swap is None else 2 * MIB * swap)
    assert made.pool_bytes % (2 * MIB) == 0
    assert made.pool_bytes >= max(made.sizes[0], 2 * (made.swap_bytes or 0)) + 64 * MIB


def test_vram_is_limited_only_so_that_one_of_a_swap_must_leave_for_the_other() -> None:
    assert plan(GIB).vram_limit is None
    limit = plan(GIB, swap=8 * GIB).vram_limit
    assert limit == 10 * GIB
    assert plan(40 * GIB, swap=8 * GIB).vram_limit == 40 * GIB, "the largest single one has to fit"


def view(seconds: float) -> SwitchView:
    return SwitchView(
        workload="bench",
        operation="pause",
        depth=Depth.ZERO,
        backend=Backend.BROKER,
        seconds=seconds,
        bytes_total=10,
        bytes_copied=6,
        bytes_clean=3,
        bytes_zero=1,
        steps=[StepView(step="copy", seconds=0.123456)],
    )


def test_what_counts_is_the_larger_of_the_callers_wait_and_the_agents_own_measure() -> None:
    measured = Measured()
    measured.switch("pause.dirty", 2.0, view(1.5))
    measured.switch("pause.dirty", 1.0, view(1.25))
    assert measured.samples["pause.dirty"] == [2.0, 1.25]
    assert measured.agent_seconds["pause.dirty"] == [1.5, 1.25]
    assert measured.steps["pause.dirty"] == {"copy": 0.1235, "bytes_copied": 6, "bytes_clean": 3}
    assert measured.samples["pause.clean"] == []
