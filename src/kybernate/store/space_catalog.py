"""The catalog's rows of one space, one tenant's part of one tier: its packs, what is in them, its snapshots. See `catalog`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kybernate.model.snapshot_names import SnapshotName
from kybernate.store.database import Database
from kybernate.store.packs import Codec, PackId, Record
from kybernate.store.tenants import ChunkId

_NO_NONCE = bytes(12)
_NO_TAG = bytes(16)
_BATCH = 500


@dataclass(frozen=True, slots=True)
class ChunkLocation:
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


class SpaceCatalog:
    """See the module. Thread-safe. `Catalog.space` makes it."""

    def __init__(self, database: Database, number: int) -> None:
        self._database = database
        self._space = number

    # -- packs and chunks --------------------------------------------------------------------------------------------

    def packs(self) -> dict[PackId, int]:
        """Size of each pack in bytes."""
        rows = self._database.all("SELECT name, size FROM packs WHERE space = ?", (self._space,))
        return {PackId(name): size for name, size in rows}

    def add_pack(self, pack: PackId, size: int, records: Sequence[Record]) -> None:
        with self._database.transaction() as t:
            t.execute("INSERT OR REPLACE INTO packs (space, name, size) VALUES (?, ?, ?)", (self._space, pack, size))
            number = t.execute("SELECT id FROM packs WHERE space = ? AND name = ?", (self._space, pack)).fetchone()[0]
            t.executemany(
                "INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (
                    (
                        self._space,
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

    def remove_packs(self, packs: Iterable[PackId]) -> None:
        with self._database.transaction() as t:
            for pack in packs:
                t.execute(
                    "DELETE FROM chunks WHERE pack IN (SELECT id FROM packs WHERE space = ? AND name = ?)",
                    (self._space, pack),
                )
                t.execute("DELETE FROM packs WHERE space = ? AND name = ?", (self._space, pack))

    def records(self, pack: PackId) -> list[Record]:
        """Of one pack, by offset, damaged ones included."""
        rows = self._database.all(
            "SELECT c.id, name, offset, stored, raw, codec, nonce, tag FROM chunks c JOIN packs p ON p.id = c.pack"
            " WHERE p.space = ? AND name = ? ORDER BY offset",
            (self._space, pack),
        )
        return [_location(row).record for row in rows]

    def find(self, chunk: ChunkId) -> ChunkLocation | None:
        """Where the chunk is, as far as known undamaged."""
        row = self._database.one(
            "SELECT c.id, name, offset, stored, raw, codec, nonce, tag FROM chunks c JOIN packs p ON p.id = c.pack"
            " WHERE c.space = ? AND c.id = ? AND NOT damaged LIMIT 1",
            (self._space, chunk),
        )
        return None if row is None else _location(row)

    def undamaged(self, chunks: Sequence[ChunkId]) -> dict[ChunkId, PackId]:
        """A pack of each of these chunks that lies in one, as far as known undamaged."""
        found: dict[ChunkId, PackId] = {}
        for start in range(0, len(chunks), _BATCH):
            batch = chunks[start : start + _BATCH]
            rows = self._database.all(
                "SELECT c.id, name FROM chunks c JOIN packs p ON p.id = c.pack"
                f" WHERE c.space = ? AND c.id IN ({','.join('?' * len(batch))}) AND NOT damaged",
                (self._space, *batch),
            )
            found.update((ChunkId(chunk), PackId(name)) for chunk, name in rows)
        return found

    def find_all(self, chunks: Sequence[ChunkId]) -> dict[ChunkId, list[ChunkLocation]]:
        """All locations of each of these chunks, undamaged ones first."""
        found: dict[ChunkId, list[ChunkLocation]] = {}
        names: dict[str, PackId] = {}  # one string a pack instead of one a row
        for start in range(0, len(chunks), _BATCH):
            batch = chunks[start : start + _BATCH]
            marks = ",".join("?" * len(batch))
            rows = self._database.all(
                "SELECT c.id, name, offset, stored, raw, codec, nonce, tag FROM chunks c JOIN packs p ON p.id = c.pack"
                f" WHERE c.space = ? AND c.id IN ({marks}) ORDER BY damaged",
                (self._space, *batch),
            )
            for row in rows:
                location = _location(row, names)
                found.setdefault(location.record.id, []).append(location)
        return found

    def mark_damaged(self, pack: PackId, chunk: ChunkId) -> None:
        """New snapshots store such a chunk again instead of sharing it."""
        with self._database.transaction() as t:
            t.execute(
                "UPDATE chunks SET damaged = 1 WHERE space = ? AND id = ?"
                " AND pack = (SELECT id FROM packs WHERE space = ? AND name = ?)",
                (self._space, chunk, self._space, pack),
            )

    def mark_pack_damaged(self, pack: PackId) -> None:
        """All of it: what can still be read from it is read, but nothing new relies on it."""
        with self._database.transaction() as t:
            t.execute(
                "UPDATE chunks SET damaged = 1 WHERE pack = (SELECT id FROM packs WHERE space = ? AND name = ?)",
                (self._space, pack),
            )

    def sound(self, chunks: Sequence[ChunkId]) -> set[ChunkId]:
        """Those of these chunks that are in a pack and, as far as known, undamaged there."""
        found: set[ChunkId] = set()
        for start in range(0, len(chunks), _BATCH):
            batch = chunks[start : start + _BATCH]
            rows = self._database.all(
                f"SELECT id FROM chunks WHERE space = ? AND id IN ({','.join('?' * len(batch))}) AND NOT damaged",
                (self._space, *batch),
            )
            found.update(ChunkId(row[0]) for row in rows)
        return found

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def snapshots(self) -> dict[SnapshotName, SnapshotRow]:
        rows = self._database.all(
            "SELECT name, uid, created, size, labels, manifest_bytes FROM snapshots WHERE space = ? ORDER BY name",
            (self._space,),
        )
        return {SnapshotName(row[0]): SnapshotRow(*row) for row in rows}

    def add_snapshot(self, row: SnapshotRow) -> None:
        with self._database.transaction() as t:
            t.execute(
                "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self._space, row.name, row.uid, row.created, row.size, row.labels, row.manifest_bytes),
            )

    def remove_snapshot(self, name: SnapshotName) -> None:
        with self._database.transaction() as t:
            t.execute("DELETE FROM snapshots WHERE space = ? AND name = ?", (self._space, name))

    # -- garbage -----------------------------------------------------------------------------------------------------

    def begin_marking(self) -> None:
        """Forget the marks of an earlier sweep. Marks lie in a temporary file of SQLite, not in memory."""
        with self._database.lock:
            self._database.run("DROP TABLE IF EXISTS temp.live")
            self._database.run("CREATE TABLE temp.live (id BLOB PRIMARY KEY) WITHOUT ROWID")

    def mark(self, chunks: Iterable[ChunkId]) -> None:
        """These are needed."""
        with self._database.transaction() as t:
            t.executemany("INSERT OR IGNORE INTO temp.live VALUES (?)", ((chunk,) for chunk in chunks))

    def live_records(self, pack: PackId, instead: set[PackId]) -> list[Record]:
        """Of a pack, what is marked and not also, undamaged, in another pack that isn't among `instead`."""
        with self._database.lock:
            rows = self._database.all(
                "SELECT c.id, name, offset, stored, raw, codec, nonce, tag FROM chunks c JOIN packs p ON p.id = c.pack"
                " JOIN temp.live l ON l.id = c.id WHERE p.space = ? AND p.name = ? ORDER BY offset",
                (self._space, pack),
            )
            result = []
            for record in (_location(row).record for row in rows):
                others = self._database.all(
                    "SELECT name FROM chunks c JOIN packs p ON p.id = c.pack"
                    " WHERE c.space = ? AND c.id = ? AND NOT damaged AND name != ?",
                    (self._space, record.id, pack),
                )
                if not any(PackId(name) not in instead for (name,) in others):
                    result.append(record)
        return result

    def end_marking(self) -> None:
        self._database.run("DROP TABLE IF EXISTS temp.live")


def _location(
    row: tuple[bytes, str, int, int, int, int, bytes | None, bytes | None], names: dict[str, PackId] | None = None
) -> ChunkLocation:
    id_, name, offset, stored, raw, codec, nonce, tag = row
    pack = PackId(name) if names is None else names.setdefault(name, PackId(name))
    return ChunkLocation(
        pack, Record(ChunkId(id_), offset, stored, raw, Codec(codec), nonce or _NO_NONCE, tag or _NO_TAG)
    )
