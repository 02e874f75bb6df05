"""Hashes of chunks: the key that is kept, addresses of chunks, and the definition (the twin on the CPU). On a GPU: tests/gpu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.agent.building import gpu

from kybernate.cuda.extents import Extent
from kybernate.cuda.hashing import HashKey, chunk_addresses, load_key, reference
from kybernate.model.errors import KybernateError
from kybernate.model.types import CHUNK_BYTES, ExtentId, HostPid, WorkloadName

pytestmark = pytest.mark.unit

WORDS = CHUNK_BYTES // 8
KEY = HashKey(0x0123456789ABCDEF, 0xFEDCBA9876543210)
GOLDEN = [0xEDD5417C5909BE88, 0x1447225F2C483836]
"""Of the words 0, 1, 2, ... under KEY."""
Chunks = npt.NDArray[np.uint64]


# -- the key -------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_for_its_owner_alone_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = load_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path) == key
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
    assert load_key(tmp_path / "other") != key


@pytest.mark.parametrize("content", [b"", b"x" * 15, b"x" * 17])
def test_a_key_of_another_length_is_damaged_and_not_made_anew(tmp_path: Path, content: bytes) -> None:
    """What was hashed under it would be taken for changed, or for clean."""
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(KybernateError, match="is damaged") as caught:
        load_key(path)
    assert caught.value.hint == "remove it while no workload is paused"
    assert path.read_bytes() == content


def test_where_no_key_can_be_kept_it_says_where(tmp_path: Path) -> None:
    with pytest.raises(KybernateError, match=r"can't keep the hash key at .*missing/key"):
        load_key(tmp_path / "missing" / "key")


# -- addresses -----------------------------------------------------------------------------------------------------------


def extent(pointer: int, chunks: int) -> Extent:
    return Extent(ExtentId(1), WorkloadName("a"), HostPid(1), gpu(), chunks * CHUNK_BYTES, 0, pointer)


def test_chunks_lie_one_after_the_other_in_each_extent_wherever_that_is() -> None:
    assert chunk_addresses([]).tolist() == []
    found = chunk_addresses([extent(1 << 40, 2), extent(0, 1), extent(1 << 63, 3)])
    assert found.tolist() == [
        1 << 40,
        (1 << 40) + CHUNK_BYTES,
        0,
        1 << 63,
        (1 << 63) + CHUNK_BYTES,
        (1 << 63) + 2 * CHUNK_BYTES,
    ]


# -- the definition ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noise() -> Chunks:
    return np.random.default_rng(7).integers(0, 1 << 64, size=(2, WORDS), dtype=np.uint64)


def test_zeros_and_nothing_else_are_zero(noise: Chunks) -> None:
    chunks = np.zeros((3, WORDS), dtype=np.uint64)
    chunks[1, -1] = 1
    chunks[2] = noise[0]
    zero = (reference(chunks, KEY) == 0).all(axis=1)
    assert zero.tolist() == [True, False, False]


def test_a_chunk_has_its_hash_whoever_stands_beside_it_and_another_under_another_key(noise: Chunks) -> None:
    both = reference(noise, KEY)
    assert (both[0] == reference(noise[:1], KEY)[0]).all()
    assert (both[0] != both[1]).all()
    for other in (HashKey(KEY.low ^ 1, KEY.high), HashKey(KEY.low, KEY.high ^ 1), HashKey(KEY.high, KEY.low)):
        assert (reference(noise[:1], other)[0] != both[0]).all()


@pytest.mark.parametrize("word", [0, 1, 2, 1023, 1024, 1025, WORDS // 2, WORDS - 1])
@pytest.mark.parametrize("bit", [0, 63])
def test_a_bit_anywhere_changes_both_halves(noise: Chunks, word: int, bit: int) -> None:
    changed = noise[:1].copy()
    changed[0, word] ^= np.uint64(1 << bit)
    assert (reference(changed, KEY)[0] != reference(noise[:1], KEY)[0]).all()


@pytest.mark.parametrize(
    ("one", "other"), [(0, 1), (0, 2), (0, 1024), (3, WORDS - 1)], ids=["halves", "lanes", "steps", "far"]
)
def test_words_that_change_places_change_the_hash(noise: Chunks, one: int, other: int) -> None:
    changed = noise[:1].copy()
    changed[0, [one, other]] = changed[0, [other, one]]
    assert (reference(changed, KEY)[0] != reference(noise[:1], KEY)[0]).all()


def test_what_was_hashed_by_another_version_has_the_same_hash() -> None:
    """Hashes lie beside paused workloads' content, which the next agent finds."""
    counted = np.arange(WORDS, dtype=np.uint64).reshape(1, -1)
    assert reference(counted, KEY).tolist() == [GOLDEN]
