"""How a stored file is cut into windows that are read together and fed into a pipe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.types import CHUNK_BYTES
from kybernate.store.feeding import BLOCK_BYTES, _windows
from kybernate.store.manifests import StoredFile

pytestmark = pytest.mark.unit


def file(size: int, cuts: tuple[int, ...] = ()) -> StoredFile:
    return StoredFile(first=0, size=size, path="process/pages-1.img", cuts=cuts)


def test_an_empty_file_has_no_windows() -> None:
    assert list(_windows(file(0))) == []


def test_whole_chunks_fill_a_window_to_its_last_byte() -> None:
    per_window = BLOCK_BYTES // CHUNK_BYTES
    windows = list(_windows(file((2 * per_window + 1) * CHUNK_BYTES - 5)))
    assert [(window.first, len(window.lengths)) for window in windows] == [
        (0, per_window),
        (per_window, per_window),
        (2 * per_window, 1),
    ]
    assert [window.size for window in windows] == [BLOCK_BYTES, BLOCK_BYTES, CHUNK_BYTES - 5]


@given(cuts=st.lists(st.integers(1, CHUNK_BYTES), max_size=40).map(tuple))
def test_every_chunk_is_in_one_window_in_order_and_no_window_is_too_large(cuts: tuple[int, ...]) -> None:
    windows = list(_windows(file(sum(cuts), cuts)))
    assert tuple(length for window in windows for length in window.lengths) == cuts
    first = 0
    for window in windows:
        assert window.first == first
        assert 0 < window.size <= BLOCK_BYTES
        first += len(window.lengths)
