"""How a resume cuts a workload's extents into parts that are made and filled one after the other."""

from __future__ import annotations

from itertools import pairwise
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.cuda.copying import ExtentCopy
from kybernate.engine.copies import HeldExtent
from kybernate.engine.resume import PIECE_BYTES, Line, pieces
from kybernate.model.errors import NoRoom
from kybernate.model.types import CHUNK_BYTES, ExtentId, GpuUuid, HostPid

pytestmark = pytest.mark.unit

GPU = GpuUuid("GPU-0")
PIECE_CHUNKS = PIECE_BYTES // CHUNK_BYTES


def held(number: int, chunks: int) -> HeldExtent:
    no_slots, no_hashes = np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.uint64)  # a cut looks at sizes alone
    copy = ExtentCopy(size=chunks * CHUNK_BYTES, rdma=False, slots=no_slots, hashes=no_hashes)
    return HeldExtent(HostPid(1), ExtentId(number), 0, GPU, copy)


def sizes(parts: list[list[HeldExtent]]) -> list[list[int]]:
    return [[each.copy.size // CHUNK_BYTES for each in part] for part in parts]


def cut(*chunks: int) -> list[list[int]]:
    return sizes(list(pieces([held(i, size) for i, size in enumerate(chunks)])))


def test_nothing_is_no_part_at_all() -> None:
    assert cut() == []


def test_a_part_is_filled_to_the_last_byte_and_not_beyond() -> None:
    assert cut(PIECE_CHUNKS - 1, 1) == [[PIECE_CHUNKS - 1, 1]]
    assert cut(PIECE_CHUNKS - 1, 2) == [[PIECE_CHUNKS - 1], [2]]


def test_an_extent_that_is_larger_than_a_part_is_a_part_of_its_own() -> None:
    assert cut(1, 3 * PIECE_CHUNKS, 1, 1) == [[1], [3 * PIECE_CHUNKS], [1, 1]]


@given(chunks=st.lists(st.integers(1, 2 * PIECE_CHUNKS), max_size=30))
def test_every_extent_is_in_one_part_in_order_and_no_two_neighbours_could_be_one(chunks: list[int]) -> None:
    parts = cut(*chunks)
    assert [size for part in parts for size in part] == chunks
    assert all(len(part) == 1 or sum(part) <= PIECE_CHUNKS for part in parts)
    assert all(sum(part) + following[0] > PIECE_CHUNKS for part, following in pairwise(parts))


def test_a_line_ends_with_none_and_gives_on_what_stopped_its_maker() -> None:
    ready: SimpleQueue[object] = SimpleQueue()
    line = Line(GPU, [], ready)  # type: ignore[arg-type]  # what is in it is none of a line's business
    for each in ("first", "second", None):
        ready.put(each)
    assert list(line.batches()) == ["first", "second"]
    ready.put("third")
    ready.put(NoRoom("full"))
    batches = line.batches()
    assert next(batches) == "third"
    with pytest.raises(NoRoom, match="full"):
        next(batches)
