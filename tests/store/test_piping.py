"""What comes out of a pipe, in memory: pages of zeros taken out, and the ids of what is left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.store import cutting
from kybernate.store.memory import PAGE_BYTES
from kybernate.store.piping import Piped, _without
from kybernate.store.tenants import ID_BYTES

pytestmark = pytest.mark.unit


def page(word: int) -> bytes:
    return bytes([word]) * PAGE_BYTES


@pytest.mark.parametrize(
    ("words", "left"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([0], [], id="zeros alone"),
        pytest.param([1, 2], [1, 2], id="no zeros: nothing moves"),
        pytest.param([0, 1], [1], id="to the front"),
        pytest.param([1, 0], [1], id="at the end"),
        pytest.param([1, 0, 0, 2, 3, 0, 4], [1, 2, 3, 4], id="runs, in their order"),
        pytest.param([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5], id="a run that is moved onto a part of itself"),
    ],
)
def test_pages_of_zeros_are_taken_out(words: list[int], left: list[int]) -> None:
    content = bytearray(b"".join(map(page, words)))
    size = _without(memoryview(content), np.array([word == 0 for word in words], dtype=np.bool_))
    assert size == len(left) * PAGE_BYTES
    assert bytes(content[:size]) == b"".join(map(page, left))


@given(words=st.lists(st.integers(0, 3), max_size=40))
def test_what_is_left_is_what_came_without_its_zeros(words: list[int]) -> None:
    content = bytearray(b"".join(map(page, words)))
    size = _without(memoryview(content), np.array([word == 0 for word in words], dtype=np.bool_))
    assert [content[at] for at in range(0, size, PAGE_BYTES)] == [word for word in words if word]


@given(parts=st.lists(st.integers(1, 700), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_pages_are_cut_alike_in_whatever_parts_they_come(parts: list[int], seed: int) -> None:
    """A pipe gives a process's memory in blocks, a file gives it whole: both must find the same chunks again."""
    sums = np.random.default_rng(seed).integers(0, 1 << 63, sum(parts), dtype=np.uint64)
    at_once = cutting.Cutter()
    whole = [*at_once.cut(sums), at_once.rest]
    in_parts, found, begin = cutting.Cutter(), [], 0
    for part in parts:
        found += in_parts.cut(sums[begin : begin + part])
        begin += part
    assert [*found, in_parts.rest] == whole
    assert sum(whole) == len(sums) * PAGE_BYTES


def test_ids_stand_in_the_order_of_the_pieces() -> None:
    table = bytearray(b"".join(bytes([number]) * ID_BYTES for number in (7, 0, 9)))
    piped = Piped(size=3 * PAGE_BYTES, zero=np.zeros(3, dtype=np.bool_), pages=True, lengths=(4096,) * 3, table=table)
    assert [chunk[0] for chunk in piped.ids()] == [7, 0, 9]
