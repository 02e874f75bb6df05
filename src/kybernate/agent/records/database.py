"""The agent's SQLite file: one connection, used by one thread, so that there is one writer and no lock.

Writes are queued and return at once, reads are awaited; both keep their order. WAL with synchronous=NORMAL: a crash of
the agent loses nothing, a power failure at most the last moments, which also lost the workloads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kybernate.model.errors import NoRoom

log = logging.getLogger(__name__)

_LATE_MAX = 20_000
"""Writes that wait for room; of more the oldest are forgotten."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    workload TEXT,
    kind TEXT NOT NULL,
    text TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_workload ON events (workload, id);
CREATE TABLE IF NOT EXISTS workloads (
    name TEXT PRIMARY KEY,
    record TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS intervals (
    id INTEGER PRIMARY KEY,
    workload TEXT NOT NULL,
    place TEXT NOT NULL,
    began REAL NOT NULL,
    ended REAL,
    bytes INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS switches (
    time REAL NOT NULL,
    record TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS serving (
    name TEXT PRIMARY KEY,
    record TEXT NOT NULL
);
"""

Row = tuple[Any, ...]


class Database:
    """Open it with `open()`, close it with `close()`, which waits for the writes queued."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        self._connection: sqlite3.Connection | None = None
        self._late: deque[tuple[str, Sequence[Any]]] = deque(maxlen=_LATE_MAX)
        """Writes for which there was no room yet, in their order. The thread's own."""

    def open(self) -> bool:
        """Create or open the file. False when an unreadable one had to be moved aside to `NAME.broken`."""
        return self._thread.submit(self._open).result()

    def write(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Queue one statement. Where the disk is full it is written once there is room. Other failures are logged: the agent works
        on without its memory rather than not at all."""
        self._thread.submit(self._write, sql, parameters).add_done_callback(_log_failure)

    def retry(self) -> None:
        """Write what waits for room, if anything does."""
        if self._late:
            self._thread.submit(self._catch_up).add_done_callback(_log_failure)

    @property
    def behind(self) -> bool:
        """Whether something waits for room: a new agent wouldn't know of it."""
        return bool(self._late)

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return await asyncio.wrap_future(self._thread.submit(self._execute, sql, parameters))

    def read_now(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Blocks; for start-up, when no loop waits."""
        return self._thread.submit(self._execute, sql, parameters).result()

    def close(self) -> None:
        if self._connection is not None:
            self._thread.submit(self._catch_up).add_done_callback(_log_failure)
            self._thread.submit(self._connection.close)
        self._thread.shutdown(wait=True)

    def _open(self) -> bool:
        try:
            self._connection = self._connect()
        except sqlite3.OperationalError as e:
            # Of the place, not of the content: a full disk, no right to write. Moved aside it would be forgotten.
            raise NoRoom(f"can't open {self._path}: {e}", hint="make room in the agent's directory") from e
        except sqlite3.DatabaseError as e:
            log.warning(
                "can't read %s (%s): moved aside to %s.broken, beginning a new one", self._path, e, self._path.name
            )
            self._path.replace(self._path.with_name(self._path.name + ".broken"))
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    self._path.with_name(self._path.name + suffix).unlink()
            self._connection = self._connect()
            return False
        return True

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            self._path.chmod(0o600)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    def _write(self, sql: str, parameters: Sequence[Any]) -> None:
        self._late.append((sql, parameters))
        self._catch_up()

    def _catch_up(self) -> None:
        while self._late:
            try:
                self._execute(*self._late[0])
            except sqlite3.OperationalError as e:
                if _is_full(e):
                    if len(self._late) == 1:  # the first of them
                        log.warning("no room for the agent's database: %s; written once there is", e)
                    return
                self._late.popleft()
                raise
            except BaseException:
                self._late.popleft()
                raise
            self._late.popleft()

    def _execute(self, sql: str, parameters: Sequence[Any]) -> list[Row]:
        if self._connection is None:
            raise sqlite3.ProgrammingError("the database isn't open")
        return self._connection.execute(sql, parameters).fetchall()


def _is_full(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorname in (
        "SQLITE_FULL",
        "SQLITE_IOERR_WRITE",
        "SQLITE_IOERR_SHMSIZE",
        "SQLITE_IOERR_SHMOPEN",
    )


def _log_failure(future: Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("can't write to the agent's database: %s", error)
