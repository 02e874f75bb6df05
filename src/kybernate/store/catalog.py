"""What lies where, in SQLite: chunks of packs, manifests' heads, and which tiers there were.

Nothing in it is the only copy: packs carry their index and manifests are files, so a catalog that is lost or damaged is
made anew from the tier (`Space.refresh`). One fact is its alone: that a tier *was* there, with these snapshots, which is
how a wiped tier is told from a new one. It costs a few MiB of memory, however much is stored.

Thread-safe: one connection behind a lock. A *space* is one tenant's part of one tier.
"""

from __future__ import annotations

from pathlib import Path

from kybernate.store.database import Database
from kybernate.store.space_catalog import SpaceCatalog
from kybernate.store.tenants import TenantName


class Catalog:
    """See the module. One file for all tiers of an agent."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it anew where it can't be read."""
        self._database = Database(path)

    def close(self) -> None:
        self._database.close()

    def store_at(self, location: str) -> str | None:
        """Which store was at this place when it was last open."""
        row = self._database.one("SELECT store FROM tiers WHERE location = ?", (location,))
        return None if row is None else str(row[0])

    def remember_store(self, location: str, store: str) -> None:
        with self._database.transaction() as t:
            t.execute("INSERT OR REPLACE INTO tiers VALUES (?, ?)", (location, store))

    def forget_store(self, store: str) -> None:
        """With all it is known to hold."""
        with self._database.transaction() as t:
            spaces = "SELECT id FROM spaces WHERE store = ?"
            for table in ("chunks", "packs", "snapshots"):
                t.execute(f"DELETE FROM {table} WHERE space IN ({spaces})", (store,))
            t.execute("DELETE FROM spaces WHERE store = ?", (store,))
            t.execute("DELETE FROM tiers WHERE store = ?", (store,))

    def space(self, store: str, tenant: TenantName) -> SpaceCatalog:
        """A tenant's part of a store; made where it isn't known."""
        with self._database.transaction() as t:
            t.execute("INSERT OR IGNORE INTO spaces (store, tenant) VALUES (?, ?)", (store, tenant))
            row = t.execute("SELECT id FROM spaces WHERE store = ? AND tenant = ?", (store, tenant)).fetchone()
        return SpaceCatalog(self._database, row[0])

    def snapshots_of_store(self, store: str) -> list[str]:
        """`tenant/name` of all snapshots known."""
        rows = self._database.all(
            "SELECT tenant || '/' || name FROM snapshots JOIN spaces ON space = id WHERE store = ? ORDER BY 1",
            (store,),
        )
        return [str(row[0]) for row in rows]

    def bytes_of_store(self, store: str) -> int:
        """Of all packs and manifests known."""
        row = self._database.one(
            "SELECT (SELECT coalesce(sum(size), 0) FROM packs JOIN spaces s ON space = s.id WHERE store = ?1)"
            " + (SELECT coalesce(sum(manifest_bytes), 0) FROM snapshots JOIN spaces s ON space = s.id WHERE store = ?1)",
            (store,),
        )
        return int(row[0])
