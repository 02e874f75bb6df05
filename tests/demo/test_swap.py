"""What two that change places may take of a machine, and the table that says what each turn took."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kybernate.demo.swap import PART, SIMULATED_BYTES, Row, Setting, choose, pool_for, swap, table
from kybernate.model.errors import BadInput
from kybernate.model.types import GIB, MIB

pytestmark = pytest.mark.unit


@given(st.integers(32 * MIB, 200 * GIB))
def test_a_pool_holds_both_and_is_whole_chunks(each: int) -> None:
    pool = pool_for(each)
    assert pool >= 2 * each
    assert pool % (2 * MIB) == 0
    assert pool >= 64 * MIB


@given(st.integers(64 * MIB, 1 << 40))
def test_two_do_not_fit_together_and_each_of_them_does(total: int) -> None:
    setting = choose(limit=None, simulated=total)
    assert setting.each <= setting.limit == total
    assert 2 * setting.each > total, "else nobody would have to leave"
    assert setting.each % (2 * MIB) == 0
    assert setting.simulated


def test_a_limit_is_that_of_a_simulated_gpu_where_no_size_is_said() -> None:
    assert choose(limit=None, simulated=SIMULATED_BYTES).each == int(SIMULATED_BYTES * PART) // (2 * MIB) * (2 * MIB)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"turns": 0, "simulated": "128MiB"}, "0 turns are none"),
        ({"turns": 1, "simulated": "32MiB"}, "32.0 MiB of VRAM are too little for two workloads"),
        ({"turns": 1, "simulated": "many"}, "'many' is no size"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_started(given_: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        swap(**given_)  # type: ignore[arg-type]


def test_the_table_has_a_line_a_turn_with_rates_of_all_that_left_and_came() -> None:
    setting = Setting(simulated=False, gpu="NVIDIA H200", limit=40 * GIB, each=24 * GIB, pool=1)
    rows = [
        Row(1, "second", "first", 24 * GIB, 6 * GIB, out_s=0.5, in_s=1.0, waited_s=1.75, steps=9),
        Row(2, "first", "second", 24 * GIB, 6 * GIB, out_s=0.0, in_s=0.0, waited_s=0.1, steps=9),
    ]
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(table(setting, rows))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "NVIDIA H200, 40.0 GiB shared by two of 24.0 GiB" in shown
    first, second = [line.split("│")[1:-1] for line in shown.splitlines() if "exact" in line]
    assert [cell.strip() for cell in first] == [
        "1", "second", "first", "24.0 GiB", "6.0 GiB", "0.500", "48.0", "1.000", "24.0", "1.750", "exact (9 steps)",
    ]  # fmt: skip
    assert [cell.strip() for cell in second][6] == "-", "no rate of no time"
