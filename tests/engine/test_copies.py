"""Manifests: whole or not there, and never guessed at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.cuda.copying import ExtentCopy
from kybernate.engine.copies import BadManifest, CopyStore, HeldExtent, Manifest, slots_given_up
from kybernate.model.errors import KybernateError
from kybernate.model.types import Depth, ExtentId, GpuUuid, HostPid, WorkloadName

pytestmark = pytest.mark.unit

NAME = WorkloadName("w")


def manifest(*chunk_counts: int) -> Manifest:
    extents = []
    for i, chunks in enumerate(chunk_counts):
        copy = ExtentCopy(
            size=chunks << 21,
            rdma=bool(i % 2),
            slots=np.arange(chunks, dtype=np.int64) + 1000 * i - 1,
            hashes=np.arange(2 * chunks, dtype=np.uint64).reshape(chunks, 2),
        )
        extents.append(HeldExtent(HostPid(7), ExtentId(i + 1), 0x7000_0000 + i, GpuUuid("GPU-1"), copy))
    return Manifest(NAME, Depth.ZERO, extents)


def test_round_trip_with_marks(tmp_path: Path) -> None:
    store = CopyStore(tmp_path / "copies")
    written = manifest(3, 1, 5)
    store.save(written)
    store.mark(written, [0, 2])

    read = store.load(NAME)

    assert read is not None
    assert not read.complete
    assert [e.done for e in read.extents] == [True, False, True]
    assert [(e.pid, e.id, e.address, e.gpu, e.copy.size, e.copy.rdma) for e in read.extents] == [
        (e.pid, e.id, e.address, e.gpu, e.copy.size, e.copy.rdma) for e in written.extents
    ]
    for a, b in zip(read.extents, written.extents, strict=True):
        np.testing.assert_array_equal(a.copy.slots, b.copy.slots)
        np.testing.assert_array_equal(a.copy.hashes, b.copy.hashes)
    assert store.names() == [NAME]


def test_a_workload_without_extents_has_a_complete_manifest(tmp_path: Path) -> None:
    store = CopyStore(tmp_path)
    store.save(manifest())
    read = store.load(NAME)
    assert read is not None
    assert read.complete
    assert len(read.slots()) == 0


def test_zero_chunks_hold_no_slot() -> None:
    assert -1 not in manifest(4).slots()


def test_missing_is_none_and_removed_is_missing(tmp_path: Path) -> None:
    store = CopyStore(tmp_path)
    assert store.load(NAME) is None
    store.save(manifest(2))
    store.remove(NAME)
    store.remove(NAME)
    assert store.load(NAME) is None


@given(cut=st.integers(min_value=0, max_value=400), flip=st.integers(min_value=0, max_value=60))
def test_a_damaged_manifest_is_refused_or_read_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
) -> None:
    directory = tmp_path_factory.mktemp("copies")
    store = CopyStore(directory)
    store.save(manifest(3, 1))
    path = directory / "w.manifest"
    data = bytearray(path.read_bytes()[: cut or None])
    if flip < len(data):
        data[flip] ^= 0x5A
    path.write_bytes(data)
    try:
        read = store.load(NAME)
    except BadManifest:
        return
    assert read is not None
    assert [len(e.copy.slots) for e in read.extents] == [3, 1]


def test_slots_given_up_are_those_of_freed_extents_and_of_chunks_that_became_zero() -> None:
    before, after = manifest(3, 4, 5), manifest(3, 4, 5)
    del after.extents[1]  # freed
    after.extents[0].copy.slots[2] = -1  # became zero
    assert sorted(slots_given_up(before, after)) == [1, 999, 1000, 1001, 1002]
    after.extents[1].copy.size += 1 << 21  # another allocation under the same id
    after.extents[1].copy.slots = np.arange(5000, 5006)
    assert sorted(slots_given_up(before, after)) == [1, 999, 1000, 1001, 1002, 1999, 2000, 2001, 2002, 2003]
    assert len(slots_given_up(before, manifest(3, 4, 5))) == 0


def test_one_that_cannot_be_removed_is_said_in_our_own_words(tmp_path: Path) -> None:
    """Removing it is the undo of a pause."""
    store = CopyStore(tmp_path)
    (tmp_path / f"{NAME}.manifest").mkdir()
    with pytest.raises(KybernateError, match="can't remove the manifest of w"):
        store.remove(NAME)
