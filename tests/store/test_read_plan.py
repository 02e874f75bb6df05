"""What is read with one call: neighbours together, straight into the caller's memory where it can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as some

from kybernate.model.errors import BadInput
from kybernate.model.types import CHUNK_BYTES
from kybernate.store.media import Medium
from kybernate.store.memory import PAGE_BYTES, Buffer, padded
from kybernate.store.packs import Codec, PackId, Record
from kybernate.store.read_plan import ReadGroup, Request, read_groups
from kybernate.store.space_catalog import ChunkLocation
from kybernate.store.tenants import ChunkId

pytestmark = pytest.mark.unit


@dataclass
class Traits:
    """What a plan asks a medium."""

    wants_alignment: bool = True
    read_bytes: int = 4 * CHUNK_BYTES


class Plan:
    """Chunks to read, as they lie in packs."""

    def __init__(self) -> None:
        self.wanted: dict[ChunkId, list[Request]] = {}
        self.locations: dict[ChunkId, list[ChunkLocation]] = {}

    def want(
        self, pack: str, offset: int, stored: int, *, raw: int | None = None, codec: Codec = Codec.RAW
    ) -> memoryview:
        number = len(self.wanted)
        chunk = ChunkId(number.to_bytes(32, "big"))
        view = Buffer().view[: stored if raw is None else raw]
        self.wanted[chunk] = [(number, view)]
        self.locations[chunk] = [ChunkLocation(PackId(pack), Record(chunk, offset, stored, len(view), codec))]
        return view

    def groups(self, *, encrypted: bool = False, **traits: Any) -> list[ReadGroup]:
        return list(read_groups(self.wanted, self.locations, cast("Medium", Traits(**traits)), encrypted=encrypted))


def shape(groups: list[ReadGroup]) -> list[tuple[str, int, int, bool, int]]:
    return [(group.pack, group.start, group.end, group.direct, len(group.wanted)) for group in groups]


def test_neighbours_are_read_together_up_to_what_the_medium_reads_at_once() -> None:
    plan = Plan()
    for k in (4, 0, 2, 1, 3):  # asked for in any order
        plan.want("a", k * CHUNK_BYTES, CHUNK_BYTES)
    assert shape(plan.groups()) == [
        ("a", 0, 4 * CHUNK_BYTES, True, 4),
        ("a", 4 * CHUNK_BYTES, 5 * CHUNK_BYTES, True, 1),
    ]


def test_a_gap_or_another_pack_begins_anew() -> None:
    plan = Plan()
    plan.want("a", 0, CHUNK_BYTES)
    plan.want("a", CHUNK_BYTES + PAGE_BYTES, CHUNK_BYTES)
    plan.want("b", 2 * CHUNK_BYTES, CHUNK_BYTES)
    assert [group.pack for group in plan.groups()] == ["a", "a", "b"]


def test_what_must_be_decoded_or_does_not_lie_at_a_page_goes_through_a_buffer() -> None:
    plan = Plan()
    plan.want("a", 0, CHUNK_BYTES)
    plan.want("b", 0, 5000, raw=CHUNK_BYTES, codec=Codec.ZSTD)
    plan.want("c", 100, PAGE_BYTES)
    assert [group.direct for group in plan.groups()] == [True, False, False]
    assert [group.direct for group in plan.groups(wants_alignment=False)] == [True, False, True]
    assert not any(group.direct for group in plan.groups(encrypted=True))


def test_small_records_that_follow_each_other_share_a_buffer() -> None:
    plan = Plan()
    for k in range(10):
        plan.want("a", 1000 * k, 990)
    assert shape(plan.groups()) == [("a", 0, 9990, False, 10)]


def test_a_view_of_another_length_is_refused_before_anything_is_read() -> None:
    plan = Plan()
    plan.want("a", 0, CHUNK_BYTES)
    (request,) = plan.wanted[next(iter(plan.wanted))]
    plan.wanted[next(iter(plan.wanted))] = [(request[0], request[1][:100])]
    with pytest.raises(BadInput, match="a view of 100 bytes for a chunk of 2097152"):
        next(iter(read_groups(plan.wanted, plan.locations, cast("Medium", Traits()), encrypted=False)))


@given(
    some.lists(some.tuples(some.sampled_from("abc"), some.integers(1, CHUNK_BYTES)), min_size=1, max_size=30),
    some.booleans(),
)
def test_every_chunk_is_read_once_and_no_group_is_larger_than_its_memory(
    chunks: list[tuple[str, int]], aligned: bool
) -> None:
    plan, ends = Plan(), dict.fromkeys("abc", 0)
    view = Buffer().view
    for number, (pack, length) in enumerate(chunks):
        chunk = ChunkId(number.to_bytes(32, "big"))
        plan.wanted[chunk] = [(number, view[:length])]
        plan.locations[chunk] = [ChunkLocation(PackId(pack), Record(chunk, ends[pack], length, length, Codec.RAW))]
        ends[pack] += padded(length)
    groups = plan.groups(wants_alignment=aligned)
    assert sorted(item.views[0][0] for group in groups for item in group.wanted) == list(range(len(chunks)))
    for group in groups:
        assert group.end - group.start <= (Traits.read_bytes if group.direct else CHUNK_BYTES)
        assert group.start == group.wanted[0].location.record.offset
