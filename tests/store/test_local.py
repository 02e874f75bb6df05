"""A directory as a tier: small things whole or not at all, listings, the lock, damage or absence. Packs: test_objects.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kybernate.model.errors import BadInput, Busy, KybernateError
from kybernate.store.errors import Damaged
from kybernate.store.local import LocalMedium
from kybernate.store.media import SMALL_BYTES_MAX, Absent
from kybernate.store.packs import PackId
from kybernate.store.progress import Cancel
from kybernate.store.tenants import tenant_name

pytestmark = pytest.mark.unit

TENANT = tenant_name("default")
PACK = PackId("0f" * 16)


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[LocalMedium]:
    made = LocalMedium(tmp_path / "store")
    made.open()
    yield made
    made.close()


# -- the directory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["store", "./store", "/a/../b", "../x"])
def test_a_directory_is_absolute_and_leads_where_it_seems_to(path: str) -> None:
    with pytest.raises(BadInput, match="bad directory") as caught:
        LocalMedium(Path(path))
    assert caught.value.hint == "use an absolute path without '..'"


def test_nothing_is_touched_before_it_is_opened_and_then_nobody_else_may_look(tmp_path: Path) -> None:
    medium = LocalMedium(tmp_path / "store")
    assert not medium.root.exists()
    assert medium.free_bytes() is None
    medium.open()
    assert medium.root.stat().st_mode & 0o777 == 0o700
    assert (medium.free_bytes() or 0) > 0
    medium.close()
    medium.close()


def test_only_the_last_directory_is_made(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"can't use .* for snapshots: No such file or directory"):
        LocalMedium(tmp_path / "not mounted" / "store").open()


def test_one_agent_at_a_time_and_the_next_one_once_it_has_closed(medium: LocalMedium) -> None:
    other = LocalMedium(medium.root)
    with pytest.raises(Busy, match="another agent uses") as caught:
        other.open()
    assert caught.value.hint == "give each agent a directory of its own"
    medium.close()
    other.open()
    other.close()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    (root / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput):
        LocalMedium(root).open()
    assert not (tmp_path / "elsewhere").exists()


def test_what_an_agent_left_half_written_is_removed_at_the_next_opening(medium: LocalMedium) -> None:
    medium.create("default/manifests/whole", b"x")
    half = medium.root / "default" / "manifests" / ".partial-0123"
    half.write_bytes(b"half")
    medium.close()
    medium.open()
    assert not half.exists()
    assert medium.get("default/manifests/whole") == b"x"


# -- small things --------------------------------------------------------------------------------------------------------


def test_what_was_put_there_is_there_and_takes_nobodys_place(medium: LocalMedium) -> None:
    assert medium.create("default/manifests/a", b"first")
    assert not medium.create("default/manifests/a", b"second")
    assert medium.get("default/manifests/a") == b"first"
    assert [each.name for each in (medium.root / "default" / "manifests").iterdir()] == ["a"], "and nothing beside it"


def test_nothing_is_something_too(medium: LocalMedium) -> None:
    assert medium.create("default/key", b"")
    assert medium.get("default/key") == b""


def test_what_is_not_there_is_absent_and_may_be_deleted(medium: LocalMedium) -> None:
    for key in ("default/key", "nobody/manifests/a"):
        with pytest.raises(Absent):
            medium.get(key)
        medium.delete(key)
    medium.create("default/key", b"x")
    with pytest.raises(Absent):
        medium.get("default/key/below")
    medium.delete("default/key")
    with pytest.raises(Absent):
        medium.get("default/key")


def test_a_thing_of_exactly_the_maximum_is_read_and_one_byte_more_is_damage(medium: LocalMedium) -> None:
    medium.create("default/key", b"x" * 100)
    assert len(medium.get("default/key", maximum=100)) == 100
    with pytest.raises(Damaged, match="it has 100 bytes, and at most 99 make sense"):
        medium.get("default/key", maximum=99)
    huge = medium.root / "default" / "huge"
    huge.touch()
    os.truncate(huge, SMALL_BYTES_MAX + 1)
    with pytest.raises(Damaged):
        medium.get("default/huge")


def test_a_directory_in_place_of_a_thing_is_damage_and_not_absence(medium: LocalMedium) -> None:
    (medium.root / "default" / "key").mkdir(parents=True)
    with pytest.raises(Damaged, match=r"can't read .*: Is a directory"):
        medium.get("default/key")
    assert not medium.create("default/key", b"x")
    with pytest.raises(KybernateError, match="can't remove"):
        medium.delete("default/key")


# -- listings ------------------------------------------------------------------------------------------------------------


def test_a_listing_has_files_by_name_and_nothing_of_ours_beside_them(medium: LocalMedium) -> None:
    for name in ("b", "a", "c"):
        medium.create(f"default/manifests/{name}", name.encode() * 3)
    directory = medium.root / "default" / "manifests"
    (directory / ".partial-1").touch()
    (directory / "directory").mkdir()
    (directory / "link").symlink_to(directory / "a")
    found = list(medium.entries("default/manifests/"))
    assert [(entry.name, entry.size) for entry in found] == [("a", 3), ("b", 3), ("c", 3)]
    assert all(entry.modified > 1e9 for entry in found)


def test_of_what_is_not_there_nothing_is_listed_and_a_file_is_no_listing(medium: LocalMedium) -> None:
    assert list(medium.entries("nobody/manifests/")) == []
    medium.create("default/key", b"x")
    with pytest.raises(Damaged, match="can't list"):
        list(medium.entries("default/key/"))


def test_tenants_are_directories_and_links_lead_to_none(medium: LocalMedium, tmp_path: Path) -> None:
    assert medium.tenants() == []
    for name in ("b", "a"):
        medium.create(f"{name}/key", b"x")
    (medium.root / "tier").touch()
    (medium.root / "linked").symlink_to(tmp_path)
    assert medium.tenants() == ["a", "b"]


# -- packs that others wrote ---------------------------------------------------------------------------------------------


def test_a_pack_that_is_not_there_is_absent_and_one_that_is_too_short_is_cut_off(medium: LocalMedium) -> None:
    with pytest.raises(Absent):
        medium.pack_size(TENANT, PACK)
    with pytest.raises(Absent):
        medium.read(TENANT, PACK, 0, [memoryview(bytearray(1))], Cancel())
    medium.sync(TENANT)
    medium.create(f"default/packs/{PACK}", bytes(range(100)))
    assert medium.pack_size(TENANT, PACK) == 100
    with pytest.raises(Damaged, match="is cut off: it ends before 100"):
        medium.read(TENANT, PACK, 90, [memoryview(bytearray(11))], Cancel())


def test_several_views_are_filled_from_places_that_follow_each_other(medium: LocalMedium) -> None:
    medium.create(f"default/packs/{PACK}", bytes(range(100)))
    views = [bytearray(size) for size in (3, 0, 7, 1)]
    medium.read(TENANT, PACK, 10, [memoryview(view) for view in views], Cancel())
    assert b"".join(views) == bytes(range(10, 21))
