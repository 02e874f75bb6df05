"""What lies where, in SQLite: chunks of packs, manifests' heads, and which tiers there were.

Nothing in it is the only copy: packs carry their index and manifests are files, so a catalog that is lost or damaged is
made anew from the tier (`Space.refresh`). One fact is its alone: that a tier *was* there, with these snapshots, which is
how a wiped tier is told from a new one. It costs a few MiB of memory, however much is stored.

Thread-safe: one connection behind a lock. A *space* is one tenant's part of one tier.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

from kybernate.model.errors import KybernateError
from kybernate.store.packs import Codec, PackId, Record
from kybernate.store.tenants import ChunkId, SnapshotName, TenantName

log = logging.getLogger(__name__)

SpaceId = NewType("SpaceId", int)

_VERSION = 1
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS tiers (
    location TEXT PRIMARY KEY, store TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS spaces (
    id INTEGER PRIMARY KEY, store TEXT NOT NULL, tenant TEXT NOT NULL, UNIQUE (store, tenant)
);
CREATE TABLE IF NOT EXISTS packs (
    id INTEGER PRIMARY KEY, space INTEGER NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, UNIQUE (space, name)
);
CREATE TABLE IF NOT EXISTS chunks (
    space INTEGER NOT NULL, id BLOB NOT NULL, pack INTEGER NOT NULL, offset INTEGER NOT NULL, stored INTEGER NOT NULL,
    raw INTEGER NOT NULL, codec INTEGER NOT NULL, nonce BLOB, tag BLOB, damaged INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (space, id, pack)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS chunks_by_pack ON chunks (pack);
CREATE TABLE IF NOT EXISTS snapshots (
    space INTEGER NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL, created REAL NOT NULL, size INTEGER NOT NULL,
    labels TEXT NOT NULL, manifest_bytes INTEGER NOT NULL, PRIMARY KEY (space, name)
);
PRAGMA user_version = {_VERSION};
"""
_NO_NONCE = bytes(12)
_NO_TAG = bytes(16)
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk's record is."""

    pack: PackId
    record: Record


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot as listings show it. Sizes in bytes."""

    name: SnapshotName
    uid: str
    created: float
    """Seconds since 1970."""
    size: int
    labels: str
    """JSON."""
    manifest_bytes: int


class Catalog:
    """See the module. One file for all tiers of an agent."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it anew where it can't be read."""
        self._lock = threading.RLock()
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._connection = _connect(path)
        except sqlite3.DatabaseError as e:
            log.warning("can't read %s (%s): it is made anew from the tiers", path, e)
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    path.with_name(path.name + suffix).unlink()
            self._connection = _connect(path)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Raises KybernateError when the catalog can't be written, such as on a full disk."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as e:
                if self._connection.in_transaction:
                    self._connection.rollback()
                raise KybernateError(f"can't write the catalog {self._path}: {e}", hint="is its disk full?") from e

    # -- tiers and spaces --------------------------------------------------------------------------------------------

    def store_at(self, location: str) -> str | None:
        """Which store was at this place when it was last open."""
        with self._lock:
            row = self._connection.execute("SELECT store FROM tiers WHERE location = ?", (location,)).fetchone()
        return None if row is None else str(row[0])

    def remember_store(self, location: str, store: str) -> None:
        with self._transaction() as t:
            t.execute("INSERT OR REPLACE INTO tiers VALUES (?, ?)", (location, store))

    def forget_store(self, store: str) -> None:
        """With all it is known to hold."""
        with self._transaction() as t:
            spaces = "SELECT id FROM spaces WHERE store = ?"
            for table in ("chunks", "packs", "snapshots"):
                t.execute(f"DELETE FROM {table} WHERE space IN ({spaces})", (store,))
            t.execute("DELETE FROM spaces WHERE store = ?", (store,))
            t.execute("DELETE FROM tiers WHERE store = ?", (store,))

    def space(self, store: str, tenant: TenantName) -> SpaceId:
        with self._transaction() as t:
            t.execute("INSERT OR IGNORE INTO spaces (store, tenant) VALUES (?, ?)", (store, tenant))
            row = t.execute("SELECT id FROM spaces WHERE store = ? AND tenant = ?", (store, tenant)).fetchone()
        return SpaceId(row[0])

    def snapshots_of_store(self, store: str) -> list[str]:
        """`tenant/name` of all snapshots known."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT tenant || '/' || name FROM snapshots JOIN spaces ON space = id WHERE store = ? ORDER BY 1",
                (store,),
            ).fetchall()
        return [str(row[0]) for row in rows]

    def bytes_of_store(self, store: str) -> int:
        """Of all packs and manifests known."""
        with self._lock:
            row = self._connection.execute(
                "SELECT (SELECT coalesce(sum(size), 0) FROM packs JOIN spaces s ON space = s.id WHERE store = ?1)"
                " + (SELECT coalesce(sum(manifest_bytes), 0) FROM snapshots JOIN spaces s ON space = s.id WHERE store = ?1)",
                (store,),
            ).fetchone()
        return int(row[0])

    # -- packs and chunks --------------------------------------------------------------------------------------------

    def packs(self, space: SpaceId) -> dict[PackId, int]:
        """Size of each pack in bytes."""
        with self._lock:
            rows = self._connection.execute("SELECT name, size FROM packs WHERE space = ?", (space,)).fetchall()
        return {PackId(name): size for name, size in rows}

    def add_pack(self, space: SpaceId, pack: PackId, size: int, records: Sequence[Record]) -> None:
        with self._transaction() as t:
            t.execute("INSERT OR REPLACE INTO packs (space, name, size) VALUES (?, ?, ?)", (space, pack, size))
            number = t.execute("SELECT id FROM packs WHERE space = ? AND name = ?", (space, pack)).fetchone()[0]
            t.executemany(
                "INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (
                    (
                        space,
                        r.id,
                        number,
                        r.offset,
                        r.stored,
                        r.raw,
                        int(r.codec),
                        None if r.nonce == _NO_NONCE else r.nonce,
                        None if r.tag == _NO_TAG else r.tag,
                    )
                    for r in records
                ),
            )

    def remove_packs(self, space: SpaceId, packs: Iterable[PackId]) -> None:
        with self._transaction() as t:
            for pack in packs:
                t.execute(
                    "DELETE FROM chunks WHERE pack IN (SELECT id FROM packs WHERE space = ? AND name = ?)",
                    (space, pack),
                )
                t.execute("DELETE FROM packs WHERE space = ? AND name = ?", (space, pack))

    def records(self, space: SpaceId, pack: PackId) -> list[Record]:
        """Of one pack, by offset, damaged ones included."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT c.id, name, offset, stored, raw, codec, nonce, tag FROM chunks c JOIN packs p ON p.id = c.pack"
                " WHERE p.space = ? AND name = ? ORDER BY offset",
                (space, pack),
            ).fetchall()
        return [_place(row).record for row in rows]

    def find(self, space: SpaceId, chunk: ChunkId) -> Place | None:
        """A place where the chunk is, as far as known undamaged."""
        with self._lock:
            row = self._connection.execute(
                "SELECT c.id, name, offset, stored, raw, codec, nonce, tag FROM chunks c JOIN packs p ON p.id = c.pack"
                " WHERE c.space = ? AND c.id = ? AND NOT damaged LIMIT 1",
                (space, chunk),
            ).fetchone()
        return None if row is None else _place(row)

    def find_all(self, space: SpaceId, chunks: Sequence[ChunkId]) -> dict[ChunkId, list[Place]]:
        """Each place of each of these chunks, undamaged ones first."""
        found: dict[ChunkId, list[Place]] = {}
        names: dict[str, PackId] = {}  # one string a pack instead of one a row
        for start in range(0, len(chunks), _BATCH):
            batch = chunks[start : start + _BATCH]
            marks = ",".join("?" * len(batch))
            with self._lock:
                rows = self._connection.execute(
                    "SELECT c.id, name, offset, stored, raw, codec, nonce, tag FROM chunks c JOIN packs p ON p.id = c.pack"
                    f" WHERE c.space = ? AND c.id IN ({marks}) ORDER BY damaged",
                    (space, *batch),
                ).fetchall()
            for row in rows:
                place = _place(row, names)
                found.setdefault(place.record.id, []).append(place)
        return found

    def mark_damaged(self, space: SpaceId, pack: PackId, chunk: ChunkId) -> None:
        """New snapshots store such a chunk again instead of sharing it."""
        with self._transaction() as t:
            t.execute(
                "UPDATE chunks SET damaged = 1 WHERE space = ? AND id = ?"
                " AND pack = (SELECT id FROM packs WHERE space = ? AND name = ?)",
                (space, chunk, space, pack),
            )

    def mark_pack_damaged(self, space: SpaceId, pack: PackId) -> None:
        """All of it: what can still be read from it is read, but nothing new relies on it."""
        with self._transaction() as t:
            t.execute(
                "UPDATE chunks SET damaged = 1 WHERE pack = (SELECT id FROM packs WHERE space = ? AND name = ?)",
                (space, pack),
            )

    def sound(self, space: SpaceId, chunks: Sequence[ChunkId]) -> set[ChunkId]:
        """Those of these chunks that are in a pack and, as far as known, undamaged there."""
        found: set[ChunkId] = set()
        for start in range(0, len(chunks), _BATCH):
            batch = chunks[start : start + _BATCH]
            with self._lock:
                rows = self._connection.execute(
                    f"SELECT id FROM chunks WHERE space = ? AND id IN ({','.join('?' * len(batch))}) AND NOT damaged",
                    (space, *batch),
                ).fetchall()
            found.update(ChunkId(row[0]) for row in rows)
        return found

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def snapshots(self, space: SpaceId) -> dict[SnapshotName, SnapshotRow]:
        with self._lock:
            rows = self._connection.execute(
                "SELECT name, uid, created, size, labels, manifest_bytes FROM snapshots WHERE space = ? ORDER BY name",
                (space,),
            ).fetchall()
        return {SnapshotName(row[0]): SnapshotRow(*row) for row in rows}

    def add_snapshot(self, space: SpaceId, row: SnapshotRow) -> None:
        with self._transaction() as t:
            t.execute(
                "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?)",
                (space, row.name, row.uid, row.created, row.size, row.labels, row.manifest_bytes),
            )

    def remove_snapshot(self, space: SpaceId, name: SnapshotName) -> None:
        with self._transaction() as t:
            t.execute("DELETE FROM snapshots WHERE space = ? AND name = ?", (space, name))

    # -- garbage -----------------------------------------------------------------------------------------------------

    def begin_marking(self) -> None:
        """Forget the marks of an earlier sweep. Marks lie in a temporary file of SQLite, not in memory."""
        with self._lock:
            self._connection.execute("DROP TABLE IF EXISTS temp.live")
            self._connection.execute("CREATE TABLE temp.live (id BLOB PRIMARY KEY) WITHOUT ROWID")

    def mark(self, chunks: Iterable[ChunkId]) -> None:
        """These are needed."""
        with self._transaction() as t:
            t.executemany("INSERT OR IGNORE INTO temp.live VALUES (?)", ((chunk,) for chunk in chunks))

    def live_records(self, space: SpaceId, pack: PackId, instead: set[PackId]) -> list[Record]:
        """Of a pack, what is marked and not also, undamaged, in another pack that isn't among `instead`."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT c.id, name, offset, stored, raw, codec, nonce, tag FROM chunks c JOIN packs p ON p.id = c.pack"
                " JOIN temp.live l ON l.id = c.id WHERE p.space = ? AND p.name = ? ORDER BY offset",
                (space, pack),
            ).fetchall()
            places = [_place(row) for row in rows]
            result = []
            for place in places:
                others = self._connection.execute(
                    "SELECT name FROM chunks c JOIN packs p ON p.id = c.pack"
                    " WHERE c.space = ? AND c.id = ? AND NOT damaged AND name != ?",
                    (space, place.record.id, pack),
                ).fetchall()
                if not any(PackId(name) not in instead for (name,) in others):
                    result.append(place.record)
        return result

    def end_marking(self) -> None:
        with self._lock:
            self._connection.execute("DROP TABLE IF EXISTS temp.live")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA temp_store=FILE")
        connection.execute("PRAGMA cache_size=-8192")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"format {version}, not {_VERSION}")
        if version == 0:
            connection.executescript(_SCHEMA)
        connection.execute("SELECT 1 FROM chunks LIMIT 1").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _place(
    row: tuple[bytes, str, int, int, int, int, bytes | None, bytes | None], names: dict[str, PackId] | None = None
) -> Place:
    id_, name, offset, stored, raw, codec, nonce, tag = row
    pack = PackId(name) if names is None else names.setdefault(name, PackId(name))
    return Place(pack, Record(ChunkId(id_), offset, stored, raw, Codec(codec), nonce or _NO_NONCE, tag or _NO_TAG))
