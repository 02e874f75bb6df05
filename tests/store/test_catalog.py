"""The catalog of all tiers: which store was where, what it holds together, and that a broken file is made anew."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from kybernate.model.errors import KybernateError
from kybernate.model.snapshot_names import SnapshotName
from kybernate.store.catalog import Catalog
from kybernate.store.database import Database
from kybernate.store.packs import PackId
from kybernate.store.space_catalog import SnapshotRow
from kybernate.store.tenants import TenantName

pytestmark = pytest.mark.unit

A, B = TenantName("a"), TenantName("b")


def pack(number: int) -> PackId:
    return PackId(f"{number:032x}")


def row(name: str, manifest_bytes: int) -> SnapshotRow:
    return SnapshotRow(SnapshotName(name), "uid", 0.0, 1 << 40, "{}", manifest_bytes)


def filled(path: Path) -> Catalog:
    """Two stores; the first of two tenants."""
    catalog = Catalog(path)
    for store, tenant, number in (("one", A, 1), ("one", B, 2), ("two", A, 3)):
        space = catalog.space(store, tenant)
        space.add_pack(pack(number), 100 * number, [])
        space.add_snapshot(row(f"s{number}", number))
    catalog.remember_store("/disk", "one")
    catalog.remember_store("s3://bucket", "two")
    return catalog


def test_a_place_that_was_never_seen_had_no_store(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db")
    assert catalog.store_at("/disk") is None
    assert catalog.snapshots_of_store("one") == []
    assert catalog.bytes_of_store("one") == 0
    catalog.close()


def test_what_was_there_last_is_remembered_over_a_restart(tmp_path: Path) -> None:
    filled(tmp_path / "c.db").close()
    catalog = Catalog(tmp_path / "c.db")
    assert catalog.store_at("/disk") == "one"
    catalog.remember_store("/disk", "three")
    assert catalog.store_at("/disk") == "three"
    assert catalog.snapshots_of_store("one") == ["a/s1", "b/s2"], "of all tenants, in order"
    catalog.close()


def test_a_store_has_the_bytes_of_its_packs_and_manifests_and_of_nobody_elses(tmp_path: Path) -> None:
    """What a snapshot's content has is no matter: chunks are shared."""
    catalog = filled(tmp_path / "c.db")
    assert catalog.bytes_of_store("one") == 100 + 200 + 1 + 2
    assert catalog.bytes_of_store("two") == 303
    catalog.close()


def test_a_store_is_forgotten_with_all_that_it_held(tmp_path: Path) -> None:
    catalog = filled(tmp_path / "c.db")
    catalog.forget_store("one")
    assert catalog.store_at("/disk") is None
    assert catalog.snapshots_of_store("one") == []
    assert catalog.bytes_of_store("one") == 0
    assert catalog.space("one", A).packs() == {}
    assert catalog.store_at("s3://bucket") == "two"
    assert catalog.snapshots_of_store("two") == ["a/s3"]
    catalog.forget_store("one")
    catalog.close()


@pytest.mark.parametrize("content", [b"", b"no database, and longer than a page's head" * 100])
def test_a_file_that_is_no_catalog_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.db"
    path.write_bytes(content)
    catalog = filled(path)
    assert catalog.store_at("/disk") == "one"
    catalog.close()


def test_one_of_another_format_is_made_anew_with_nothing_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    filled(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    catalog = Catalog(path)
    assert catalog.store_at("/disk") is None
    catalog.close()


def test_nobody_else_may_read_it_or_look_into_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "made" / "deep" / "c.db"
    Catalog(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_transaction_that_fails_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    database = Database(tmp_path / "c.db")

    def fail() -> None:
        with database.transaction() as t:
            t.execute("INSERT INTO tiers VALUES ('/x', 'one')")
            raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        fail()
    assert database.all("SELECT * FROM tiers") == []
    with database.transaction() as t:
        t.execute("INSERT INTO tiers VALUES ('/x', 'two')")
    assert database.one("SELECT store FROM tiers") == ("two",)
    database.close()


def test_what_the_database_refuses_is_said_with_its_file(tmp_path: Path) -> None:
    database = Database(tmp_path / "c.db")

    def twice() -> None:
        with database.transaction() as t:
            for _ in range(2):
                t.execute("INSERT INTO tiers VALUES ('/x', 'one')")

    with pytest.raises(KybernateError, match="can't write the catalog") as caught:
        twice()
    assert os.fspath(tmp_path / "c.db") in caught.value.message
    assert caught.value.hint == "is its disk full?"
    assert database.all("SELECT * FROM tiers") == []
    database.close()
