"""Memory that disks write from directly: pages, zeros, and buffers that are never more than there may be."""

from __future__ import annotations

import ctypes
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.errors import Cancelled
from kybernate.model.types import CHUNK_BYTES
from kybernate.store import view_at
from kybernate.store.memory import PAGE_BYTES, Buffer, BufferPool, address_of, is_aligned, is_zero, padded

pytestmark = pytest.mark.unit


@given(st.integers(0, 1 << 50))
def test_a_length_is_padded_to_the_next_page_and_no_further(length: int) -> None:
    assert padded(length) % PAGE_BYTES == 0
    assert 0 <= padded(length) - length < PAGE_BYTES


@pytest.mark.parametrize(
    ("length", "whole"), [(0, 0), (1, PAGE_BYTES), (PAGE_BYTES, PAGE_BYTES), (PAGE_BYTES + 1, 2 * PAGE_BYTES)]
)
def test_the_borders_of_a_page(length: int, whole: int) -> None:
    assert padded(length) == whole


@given(size=st.integers(1, 5000), at=st.integers(0, 4999))
def test_one_byte_anywhere_is_not_zero(size: int, at: int) -> None:
    content = bytearray(size)
    assert is_zero(memoryview(content))
    content[at % size] = 1
    assert not is_zero(memoryview(content))


def test_foreign_memory_is_seen_and_changed_where_it_lies() -> None:
    owner = (ctypes.c_ubyte * 100)(*range(100))
    view = view_at(ctypes.addressof(owner) + 10, 20)
    assert bytes(view) == bytes(range(10, 30))
    view[0] = 99
    assert owner[10] == 99
    assert address_of(view) == ctypes.addressof(owner) + 10


def test_a_buffer_begins_at_a_page_and_has_room_for_a_chunk_and_what_is_around_it() -> None:
    buffer = Buffer()
    assert address_of(buffer.view) % PAGE_BYTES == 0
    assert len(buffer.view) >= CHUNK_BYTES + PAGE_BYTES
    assert is_aligned(buffer.view[:PAGE_BYTES])
    assert not is_aligned(buffer.view[:100]), "no whole page"
    assert not is_aligned(buffer.view[8 : 8 + PAGE_BYTES]), "not at a page's beginning"
    assert is_zero(buffer.view)
    buffer.close()


def test_a_pool_makes_no_more_than_it_may_and_uses_them_again() -> None:
    pool = BufferPool(2)
    one, two = pool.take(), pool.take()
    assert one is not two
    taken: list[Buffer] = []
    waiting = threading.Thread(target=lambda: taken.append(pool.take()))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive(), "a third one waits"
    pool.give(None)
    waiting.join(0.05)
    assert waiting.is_alive(), "memory of the caller's own is none of the pool's"
    pool.give(two)
    waiting.join(60)
    assert taken == [two]
    pool.close()


def test_who_waits_when_it_is_closed_is_told() -> None:
    pool = BufferPool(1)
    last = pool.take()
    failed: list[str] = []

    def wait() -> None:
        try:
            pool.take()
        except Cancelled as e:
            failed.append(e.message)

    waiting = threading.Thread(target=wait)
    waiting.start()
    pool.close()
    waiting.join(60)
    assert failed == ["the step was given up"]
    pool.give(last)
    with pytest.raises(Cancelled):
        pool.take()
