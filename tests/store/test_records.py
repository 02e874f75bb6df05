"""Records of a pack that are read together: those that lie close, and no more than a chunk at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.types import CHUNK_BYTES
from kybernate.store.memory import PAGE_BYTES
from kybernate.store.packs import Codec, Record
from kybernate.store.records import spans
from kybernate.store.tenants import ChunkId

pytestmark = pytest.mark.unit


def records(*places: tuple[int, int]) -> list[Record]:
    return [Record(ChunkId(bytes(32)), offset, size, size, Codec.RAW) for offset, size in places]


@pytest.mark.parametrize(
    ("places", "runs"),
    [
        pytest.param([], [], id="none"),
        pytest.param([(4096, 100)], [1], id="one"),
        pytest.param([(4096, 100), (4196, 100)], [2], id="side by side"),
        pytest.param([(4096, 100), (4196 + PAGE_BYTES - 1, 100)], [2], id="less than a page apart"),
        pytest.param([(4096, 100), (4196 + PAGE_BYTES, 100)], [1, 1], id="a page apart"),
        pytest.param([(4096, CHUNK_BYTES - 100), (4096 + CHUNK_BYTES - 100, 100)], [2], id="just a chunk together"),
        pytest.param([(4096, CHUNK_BYTES - 100), (4096 + CHUNK_BYTES - 100, 101)], [1, 1], id="a byte more"),
    ],
)
def test_what_is_read_together(places: list[tuple[int, int]], runs: list[int]) -> None:
    assert [len(run) for run in spans(records(*places))] == runs


@given(st.lists(st.tuples(st.integers(0, 3 * PAGE_BYTES), st.integers(1, CHUNK_BYTES)), max_size=30))
def test_every_record_is_in_one_run_in_order_and_no_run_is_longer_than_a_chunk(gaps: list[tuple[int, int]]) -> None:
    places, at = [], PAGE_BYTES
    for gap, size in gaps:
        places.append((at + gap, size))
        at += gap + size
    whole = records(*places)
    found = list(spans(whole))
    assert [record for run in found for record in run] == whole
    for run in found:
        assert run[-1].offset + run[-1].stored - run[0].offset <= CHUNK_BYTES
