"""What the engine writes into a manifest and reads from one: as it was written, and never believed where it makes no sense."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.cuda.hashing import HashKey
from kybernate.engine.stored import (
    Described,
    DescribedExtent,
    Kind,
    StoredGpu,
    describe,
    pack_hashes,
    state_of,
    unpack_hashes,
)
from kybernate.model.snapshot_names import snapshot_name
from kybernate.model.types import CHUNK_BYTES, Backend, ExtentId, GpuUuid, WorkloadName
from kybernate.store import Damaged, Manifest, Needs, StoredExtent, TooNew

pytestmark = pytest.mark.unit

GPU = GpuUuid("GPU-0123")
STORED_GPU = StoredGpu(uuid=GPU, index=0, name="NVIDIA H200", memory_bytes=141 << 30)
EXTENTS = (
    DescribedExtent(7, ExtentId(1), 0x7F00_0000_0000, GPU, rdma=False, size=2 * CHUNK_BYTES),
    DescribedExtent(8, ExtentId((1 << 64) - 1), 0, GPU, rdma=True, size=CHUNK_BYTES),
)
STATE = state_of(
    kind=Kind.PARKED,
    workload=WorkloadName("a"),
    backend=Backend.BROKER,
    owner=1000,
    group=1001,
    gpus=[STORED_GPU],
    key=HashKey(0xABC, (1 << 64) - 1),
)


def manifest(*extents: DescribedExtent, **changed: Any) -> Manifest:
    return Manifest(
        name=snapshot_name("a-1"),
        uid="0" * 32,
        created=5.0,
        extents=tuple(StoredExtent(first=0, size=each.size, about=each.about()) for each in extents or EXTENTS),
        files=(),
        table=b"",
        state=STATE | changed,
        labels={"kind": "parked"},
        needs=Needs(),
        packs=(),
    )


def with_about(**changed: Any) -> Manifest:
    one = EXTENTS[0]
    return replace(manifest(), extents=(StoredExtent(first=0, size=one.size, about=one.about() | changed),))


def test_a_workload_is_read_as_it_was_written() -> None:
    found = describe(manifest())
    assert (found.snapshot, found.workload, found.kind, found.backend) == ("a-1", "a", Kind.PARKED, Backend.BROKER)
    assert (found.owner, found.group, found.gpus, found.created) == (1000, 1001, (STORED_GPU,), 5.0)
    assert found.extents == EXTENTS
    assert (found.key.low, found.key.high) == (0xABC, (1 << 64) - 1)


def test_what_it_needs_back_is_summed_by_gpu() -> None:
    other = StoredGpu(uuid="GPU-4567", index=1, name="x", memory_bytes=1)
    third = DescribedExtent(7, ExtentId(3), 0, GpuUuid("GPU-4567"), rdma=False, size=CHUNK_BYTES)
    gpus = [STORED_GPU.model_dump(), other.model_dump()]
    assert describe(manifest(*EXTENTS, third, gpus=gpus)).vram_bytes == {GPU: 3 * CHUNK_BYTES, "GPU-4567": CHUNK_BYTES}


def test_a_newer_format_asks_for_an_update_and_new_fields_are_left_out() -> None:
    with pytest.raises(TooNew, match="snapshot a-1 has format 2; this version of Kybernate reads up to 1"):
        describe(manifest(format=2))
    assert describe(manifest(surplus=1)) == describe(manifest())


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(manifest(format="one"), id="no format"),
        pytest.param(manifest(kind="backup"), id="a kind that there isn't"),
        pytest.param(manifest(workload="../a"), id="a name that leads elsewhere"),
        pytest.param(manifest(uid=-1), id="no user"),
        pytest.param(manifest(key=["xyz", "0"]), id="no key"),
        pytest.param(manifest(key=["0" * 17, "0"]), id="a key that is too long"),
        pytest.param(manifest(gpus=[]), id="memory on a GPU of which nothing is said"),
        pytest.param(manifest(EXTENTS[0], EXTENTS[0]), id="an extent twice"),
        pytest.param(manifest(replace(EXTENTS[0], size=CHUNK_BYTES + 1)), id="an extent of no whole chunks"),
        pytest.param(manifest(replace(EXTENTS[0], size=0)), id="an empty extent"),
        pytest.param(with_about(pid=0), id="no process"),
        pytest.param(with_about(id=1 << 64), id="a number that is too large"),
        pytest.param(with_about(address=-1), id="an address below nought"),
        pytest.param(with_about(gpu="x"), id="no GPU"),
        pytest.param(replace(manifest(), state={}), id="not of a workload"),
    ],
)
def test_what_makes_no_sense_is_damaged_and_one_line(wrong: Manifest) -> None:
    with pytest.raises(Damaged, match="snapshot a-1 makes no sense: ") as refused:
        describe(wrong)
    assert "\n" not in refused.value.message


# -- hashes --------------------------------------------------------------------------------------------------------------


def described(*chunks: int) -> Described:
    extents = tuple(
        DescribedExtent(7, ExtentId(number), 0, GPU, rdma=False, size=count * CHUNK_BYTES)
        for number, count in enumerate(chunks)
    )
    return describe(manifest(*extents))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_hashes_come_back_extent_by_extent(chunks: list[int], data: st.DataObject) -> None:
    numbers = st.integers(0, (1 << 64) - 1)
    parts = [
        np.array(data.draw(st.lists(st.tuples(numbers, numbers), min_size=count, max_size=count)), dtype=np.uint64)
        for count in chunks
    ]
    found = unpack_hashes(pack_hashes(parts), described(*chunks))
    assert [each.tolist() for each in found] == [each.tolist() for each in parts]


@pytest.mark.parametrize("length", [0, 16, 31, 33, 48])
def test_hashes_of_another_number_are_damaged(length: int) -> None:
    with pytest.raises(Damaged, match=f"{length} bytes of hashes"):
        unpack_hashes(bytes(length), described(2))


def test_hashes_may_be_changed_by_who_read_them() -> None:
    (found,) = unpack_hashes(bytes(16), described(1))
    found[0, 0] = 7
    assert found[0, 0] == 7
