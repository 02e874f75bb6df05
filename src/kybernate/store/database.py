"""The file behind the catalog: one SQLite connection for all threads, behind a lock. Made anew where it can't be read."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kybernate.model.errors import KybernateError

log = logging.getLogger(__name__)

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


class Database:
    """See the module. Thread-safe; hold `lock` for several reads that belong together."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it anew where it can't be read."""
        self.lock = threading.RLock()
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
        with self.lock:
            self._connection.close()

    def all(self, statement: str, arguments: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query."""
        with self.lock:
            return self._connection.execute(statement, arguments).fetchall()

    def one(self, statement: str, arguments: Sequence[Any] = ()) -> Any:
        """The first row of a query; None where there is none."""
        with self.lock:
            return self._connection.execute(statement, arguments).fetchone()

    def run(self, statement: str) -> None:
        """A statement of its own, outside of any transaction."""
        with self.lock:
            self._connection.execute(statement)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Raises KybernateError when the catalog can't be written, such as on a full disk."""
        with self.lock:
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
