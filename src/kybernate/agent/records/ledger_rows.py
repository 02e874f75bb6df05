"""The ledger's entries on disk, so that an agent that comes after this one knows what its predecessor knew.

The workload itself is found by its run directory (process.attach); the record adds what only the agent knew: backend, who
paused it and how deep, what it needs back.
"""

from __future__ import annotations

import logging

from pydantic import TypeAdapter, ValidationError

from kybernate.agent.records.database import Database
from kybernate.agent.records.ledger import Entry
from kybernate.model.errors import NoRoom

log = logging.getLogger(__name__)

_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


class LedgerRows:
    """A ledger observer that writes through, and the reader for start-up."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        if new is not None:
            self._database.write(
                "INSERT INTO workloads (name, record) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET record = excluded.record",
                (new.name, _ENTRY.dump_json(new).decode()),
            )
        elif old is not None:
            self._database.write("DELETE FROM workloads WHERE name = ?", (old.name,))

    async def flush(self, *, refuse: bool = False) -> None:
        """Returns once everything written so far is on disk: the database does one thing after the other.

        Args:
            refuse: for what begins with it, and can still be left alone.

        Raises:
            NoRoom: with `refuse`, where it isn't on the disk for want of room there.
        """
        await self._database.read("SELECT 1")
        if refuse and self._database.behind:
            raise NoRoom(
                "the agent's directory is full, so nothing could be remembered of it",
                hint="make room; `kybernate doctor`",
            )

    def load(self) -> list[Entry]:
        """All entries. One that another version wrote and this one can't read is left out and logged."""
        entries = []
        for name, record in self._database.read_now("SELECT name, record FROM workloads ORDER BY name"):
            try:
                entries.append(_ENTRY.validate_json(record))
            except ValidationError as e:
                log.warning("can't read the record of workload %s: %s", name, e.errors()[0]["msg"])
        return entries
