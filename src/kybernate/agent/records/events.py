"""Events: what happened on this node, in order, for people and for `explain`.

Every change of state, every pause and resume with its steps, every refusal and every decision of a recovery. Kept in SQLite and
handed to subscribers (server-sent events). A subscriber that does not read loses the oldest events, never blocks the agent.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kybernate.agent.records.database import Database, Row
from kybernate.model.api import EventView

log = logging.getLogger(__name__)

_BACKLOG = 256
_PRUNE_EVERY = 200
_COLUMNS = "id, time, workload, kind, text, data"


class Events:
    """Record and read. Use it in the loop's thread."""

    def __init__(self, *, database: Database, clock: Callable[[], float], keep: int) -> None:
        self._database = database
        self._clock = clock
        self._keep = keep
        self._subscribers: set[asyncio.Queue[EventView]] = set()
        self._recent: deque[EventView] = deque(maxlen=_BACKLOG)
        last = database.read_now("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'")
        self._last_id: int = last[0][0] if last else 0

    def record(
        self, kind: str, text: str, *, workload: str | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        self._last_id += 1
        event = EventView(
            id=self._last_id, time=self._clock(), workload=workload, kind=kind, text=text, data=dict(data or {})
        )
        self._database.write(
            f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
            (event.id, event.time, workload, kind, text, json.dumps(event.data)),
        )
        if self._last_id % _PRUNE_EVERY == 0:
            self._database.write("DELETE FROM events WHERE id <= ?", (self._last_id - self._keep,))
        log.info(
            "%s%s",
            f"{workload} " if workload else "",
            event.said,
            extra={"workload": workload, "kind": kind, "data": event.data},
        )
        self._recent.append(event)
        for queue in self._subscribers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    async def last(self, count: int, *, workload: str | None = None, after: int = 0) -> list[EventView]:
        """The newest `count` with an id above `after`, oldest first."""
        where, parameters = ("workload = ? AND", [workload]) if workload is not None else ("", [])
        rows = await self._database.read(
            f"SELECT {_COLUMNS} FROM events WHERE {where} id > ? ORDER BY id DESC LIMIT ?",
            [*parameters, after, count],
        )
        found = {event.id: event for event in map(_event, rows)}
        if self._database.behind:  # what there was no room for yet
            found |= {
                event.id: event for event in self._recent if event.id > after and workload in (None, event.workload)
            }
        return [found[number] for number in sorted(found)[-count:]] if count else []

    @contextmanager
    def subscribe(self) -> Iterator[asyncio.Queue[EventView]]:
        """Events from now on."""
        queue: asyncio.Queue[EventView] = asyncio.Queue(maxsize=_BACKLOG)
        self._subscribers.add(queue)
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)


def _event(row: Row) -> EventView:
    number, time, workload, kind, text, data = row
    return EventView(id=number, time=time, workload=workload, kind=kind, text=text, data=json.loads(data))
