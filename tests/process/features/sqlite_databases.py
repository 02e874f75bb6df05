"""SQLite databases in both of its journal modes: a connection from before goes on writing, and a new one sees its lock."""

import contextlib
import sqlite3
import sys
from pathlib import Path

from station import dumped

MODES = ("delete", "wal")


def opened(place: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(place / f"{mode}.db", isolation_level=None, timeout=0)
    assert connection.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
    return connection


def writes(connection: sqlite3.Connection) -> bool:
    with contextlib.suppress(sqlite3.OperationalError):  # it is locked
        connection.execute("INSERT INTO numbers VALUES (2)")
        return True
    return False


def live(place: Path) -> None:
    connections = {mode: opened(place, mode) for mode in MODES}
    for connection in connections.values():
        connection.execute("CREATE TABLE IF NOT EXISTS numbers (number INTEGER)")
    dumped()
    for mode, connection in connections.items():
        other = opened(place, mode)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO numbers VALUES (1)")
        assert not writes(other), f"{mode}: two wrote at once"
        connection.execute("COMMIT")
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        other.close()
        connection.close()


live(Path(sys.argv[1]))
