"""What the catalog says of one tenant's part of one tier: packs, chunks in several of them, damage, snapshots, garbage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.snapshot_names import SnapshotName
from kybernate.store.catalog import Catalog
from kybernate.store.packs import Codec, PackId, Record
from kybernate.store.space_catalog import ChunkLocation, SnapshotRow, SpaceCatalog
from kybernate.store.tenants import ChunkId, TenantName

pytestmark = pytest.mark.unit

TENANT = TenantName("default")


def pack(number: int) -> PackId:
    return PackId(f"{number:032x}")


def chunk(number: int) -> ChunkId:
    return ChunkId(number.to_bytes(32, "big"))


def record(number: int, *, offset: int = 4096, stored: int = 100, raw: int = 200) -> Record:
    return Record(chunk(number), offset, stored, raw, Codec.ZSTD)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog(tmp_path / "catalog.db")
    yield made
    made.close()


@pytest.fixture
def space(catalog: Catalog) -> SpaceCatalog:
    return catalog.space("store-1", TENANT)


# -- packs and chunks ----------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_with_and_without_a_cipher(space: SpaceCatalog) -> None:
    plain = record(1)
    sealed = Record(chunk(2), 8192, 7, 7, Codec.RAW, nonce=b"n" * 12, tag=b"t" * 16)
    space.add_pack(pack(1), 12288, [sealed, plain])
    assert space.records(pack(1)) == [plain, sealed], "by offset"
    assert space.find(chunk(2)) == ChunkLocation(pack(1), sealed)
    assert space.packs() == {pack(1): 12288}


def test_what_is_in_no_pack_is_nowhere(space: SpaceCatalog) -> None:
    assert space.find(chunk(1)) is None
    assert space.find_all([chunk(1)]) == {}
    assert space.sound([]) == set()
    assert space.undamaged([]) == {}
    assert space.records(pack(1)) == []


def test_a_pack_that_goes_takes_its_chunks_along_and_nobody_elses(space: SpaceCatalog) -> None:
    space.add_pack(pack(1), 10, [record(1), record(2)])
    space.add_pack(pack(2), 20, [record(2), record(3)])
    space.remove_packs([pack(1), pack(99)])
    assert space.packs() == {pack(2): 20}
    assert space.sound([chunk(1), chunk(2), chunk(3)]) == {chunk(2), chunk(3)}
    assert space.find(chunk(2)) == ChunkLocation(pack(2), record(2))


def test_a_pack_said_again_has_its_new_size(space: SpaceCatalog) -> None:
    space.add_pack(pack(1), 10, [record(1)])
    space.add_pack(pack(1), 30, [record(1)])
    assert space.packs() == {pack(1): 30}
    assert space.find(chunk(1)) == ChunkLocation(pack(1), record(1))


def test_a_damaged_chunk_is_shared_no_more_but_is_still_found_to_be_read(space: SpaceCatalog) -> None:
    space.add_pack(pack(1), 10, [record(1), record(2)])
    space.mark_damaged(pack(1), chunk(1))
    assert space.find(chunk(1)) is None
    assert space.sound([chunk(1), chunk(2)]) == {chunk(2)}
    assert space.undamaged([chunk(1), chunk(2)]) == {chunk(2): pack(1)}
    assert space.find_all([chunk(1)]) == {chunk(1): [ChunkLocation(pack(1), record(1))]}
    assert record(1) in space.records(pack(1))


def test_of_two_copies_the_undamaged_one_comes_first_whichever_it_is(space: SpaceCatalog) -> None:
    for first, second in ((1, 2), (2, 1)):
        number = 10 * first
        space.add_pack(pack(number + 1), 10, [record(number)])
        space.add_pack(pack(number + 2), 10, [record(number)])
        space.mark_damaged(pack(number + first), chunk(number))
        assert [each.pack for each in space.find_all([chunk(number)])[chunk(number)]] == [
            pack(number + second),
            pack(number + first),
        ]
        found = space.find(chunk(number))
        assert found is not None
        assert found.pack == pack(number + second)


def test_a_damaged_pack_is_damaged_in_all_its_chunks(space: SpaceCatalog) -> None:
    space.add_pack(pack(1), 10, [record(number) for number in range(5)])
    space.add_pack(pack(2), 10, [record(0)])
    space.mark_pack_damaged(pack(1))
    assert space.sound([chunk(number) for number in range(5)]) == {chunk(0)}


@pytest.mark.parametrize("count", [499, 500, 501, 1500])
def test_any_number_of_chunks_is_looked_up(space: SpaceCatalog, count: int) -> None:
    """In several questions, since SQLite takes only so many values in one."""
    space.add_pack(pack(1), 10, [record(number) for number in range(count)])
    wanted = [chunk(number) for number in range(count + 1)]
    assert len(space.sound(wanted)) == count
    assert len(space.undamaged(wanted)) == count
    assert len(space.find_all(wanted)) == count


# -- tenants and stores --------------------------------------------------------------------------------------------------


def test_tenants_and_stores_know_nothing_of_each_other(catalog: Catalog) -> None:
    """One would else rely on a chunk that it can't read, or that its own agent never wrote."""
    mine = catalog.space("store-1", TENANT)
    others = catalog.space("store-1", TenantName("other")), catalog.space("store-2", TENANT)
    mine.add_pack(pack(1), 10, [record(1)])
    mine.add_snapshot(row("a"))
    for other in others:
        assert other.packs() == {}
        assert other.find(chunk(1)) is None
        assert other.snapshots() == {}
        other.remove_packs([pack(1)])
        other.remove_snapshot(SnapshotName("a"))
        other.mark_damaged(pack(1), chunk(1))
        other.mark_pack_damaged(pack(1))
    assert mine.find(chunk(1)) == ChunkLocation(pack(1), record(1))
    assert list(mine.snapshots()) == ["a"]


def test_a_space_that_is_asked_for_again_is_the_same(catalog: Catalog) -> None:
    catalog.space("store-1", TENANT).add_pack(pack(1), 10, [])
    assert catalog.space("store-1", TENANT).packs() == {pack(1): 10}


# -- snapshots -----------------------------------------------------------------------------------------------------------


def row(name: str, **given_: int) -> SnapshotRow:
    return SnapshotRow(
        SnapshotName(name), f"uid-{name}", 1.5, given_.get("size", 7), '{"a": "b"}', given_.get("manifest", 3)
    )


def test_snapshots_are_listed_by_name_and_replaced_by_name(space: SpaceCatalog) -> None:
    for name in ("b", "a", "c"):
        space.add_snapshot(row(name))
    space.add_snapshot(row("b", size=9))
    space.remove_snapshot(SnapshotName("c"))
    space.remove_snapshot(SnapshotName("never"))
    assert list(space.snapshots().items()) == [("a", row("a")), ("b", row("b", size=9))]


# -- garbage -------------------------------------------------------------------------------------------------------------


def test_live_is_what_is_marked_and_in_no_other_pack_that_stays(space: SpaceCatalog) -> None:
    space.add_pack(pack(1), 10, [record(1), record(2, offset=8192), record(3, offset=12288)])
    space.add_pack(pack(2), 10, [record(2)])
    space.begin_marking()
    space.mark([chunk(1), chunk(2), chunk(1)])
    assert [r.id for r in space.live_records(pack(1), set())] == [chunk(1)], "2 is in pack 2 as well, 3 is unmarked"
    assert [r.id for r in space.live_records(pack(1), {pack(2)})] == [chunk(1), chunk(2)], "pack 2 goes"
    assert [r.id for r in space.live_records(pack(2), {pack(1)})] == [chunk(2)]
    space.end_marking()


def test_a_copy_that_is_damaged_takes_nothing_off_another(space: SpaceCatalog) -> None:
    space.add_pack(pack(1), 10, [record(1)])
    space.add_pack(pack(2), 10, [record(1)])
    space.mark_damaged(pack(2), chunk(1))
    space.begin_marking()
    space.mark([chunk(1)])
    assert space.live_records(pack(1), set()) == [record(1)]
    assert space.live_records(pack(2), set()) == [], "pack 1 has it undamaged"
    space.end_marking()


def test_marks_of_an_earlier_sweep_are_forgotten(space: SpaceCatalog) -> None:
    space.add_pack(pack(1), 10, [record(1)])
    space.begin_marking()
    space.mark([chunk(1)])
    space.begin_marking()
    assert space.live_records(pack(1), set()) == []
    space.end_marking()
    space.end_marking()


@given(
    packs=st.lists(st.sets(st.integers(0, 6), max_size=5), min_size=1, max_size=4),
    marked=st.sets(st.integers(0, 6)),
    data=st.data(),
)
def test_whatever_goes_in_turn_every_marked_chunk_stays_in_some_pack(
    packs: list[set[int]], marked: set[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As a sweep does it: a pack without live records goes, and the next one is judged without it."""
    catalog = Catalog(tmp_path_factory.mktemp("c") / "catalog.db")
    try:
        space = catalog.space("s", TENANT)
        for number, chunks in enumerate(packs):
            space.add_pack(pack(number), 10, [record(each, offset=4096 * (each + 1)) for each in sorted(chunks)])
        space.begin_marking()
        space.mark(chunk(number) for number in marked)
        going: set[PackId] = set()
        for number in data.draw(st.permutations(range(len(packs)))):
            if not space.live_records(pack(number), going):
                going.add(pack(number))
        space.end_marking()
    finally:
        catalog.close()
    left = set().union(*(chunks for number, chunks in enumerate(packs) if pack(number) not in going), set())
    assert marked & set().union(*packs) <= left
