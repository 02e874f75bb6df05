"""Who held VRAM when, and what each switch cost: the last hours, in memory and in the agent's database.

Made of what the ledger's entries become, so it costs nothing while nothing changes, but for a look at who holds how much, once a
second. An interval is written when it begins and when it ends; a new agent goes on with those that its predecessor left open where
they still hold, and ends the others at its own start, the first moment that it knows of.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from kybernate.agent.records.database import Database
from kybernate.agent.records.ledger import Entry
from kybernate.agent.records.residency import Residency, residency_of
from kybernate.model.api import StepView
from kybernate.model.api_history import HistoryView, IntervalView, LinkView, SwitchedView
from kybernate.model.types import SwitchReport, WorkloadName

log = logging.getLogger(__name__)

KEPT_MAX = 50_000
"""Intervals, and switches, kept at most, whatever their age: some 20 MB."""
ANSWERED_MAX = 10_000
"""In one answer: what a page can draw and load in a moment. The newest."""
_LOOK_S = 1.0
_PRUNE_EVERY = 500
_COPYING = frozenset({"copy", "fill"})
_LEAST_BYTES = 1 << 20
"""Less than that says nothing of the link."""
_SWITCHED: TypeAdapter[SwitchedView] = TypeAdapter(SwitchedView)


@dataclass(slots=True)
class _Interval:
    id: int
    workload: WorkloadName
    residency: Residency
    began: float
    bytes: int
    ended: float | None = None

    def view(self) -> IntervalView:
        return IntervalView(
            id=self.id,
            workload=self.workload,
            place=self.residency,
            began=self.began,
            ended=self.ended,
            bytes=self.bytes,
        )


class History:
    """`changed` is a ledger observer; `run` a task's body. Use it in the loop's thread.

    Args:
        resident: bytes of VRAM that a workload holds now.
        ended: told of each interval that is over, for whoever counts.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Callable[[], float],
        keep_s: float,
        resident: Callable[[WorkloadName], int],
        links: Callable[[], list[LinkView]],
        ended: Callable[[WorkloadName, Residency, float], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._keep_s = keep_s
        self._resident = resident
        self._links = links
        self._ended = ended
        self._past: deque[_Interval] = deque(maxlen=KEPT_MAX)
        """In the order of their ends."""
        self._open: dict[WorkloadName, _Interval] = {}
        self._switches: deque[SwitchedView] = deque(maxlen=KEPT_MAX)
        self._counted_from: dict[WorkloadName, float] = {}
        self._last_id = 0
        self._load()

    # -- observing ---------------------------------------------------------------------------------------------------

    def changed(self, old: Entry | None, new: Entry | None) -> None:
        """Observer of the ledger."""
        if old is not None and new is not None:
            for before, after in ((old.last_pause, new.last_pause), (old.last_resume, new.last_resume)):
                if after is not None and after is not before:
                    self._switched(after)
        entry = new or old
        assert entry is not None
        residency = residency_of(new)
        open_ = self._open.get(entry.name)
        if open_ is not None and open_.residency is residency:
            if new is not None and (size := sum(new.evicted.values())):
                open_.bytes = size
            return
        now = self._clock()
        if open_ is not None:
            self._close(open_, now)
        if new is not None and residency is not None:
            size = sum(new.evicted.values()) or (0 if open_ is None else open_.bytes)
            self._begin(entry.name, residency, began=now, size=size)

    def settle(self, entries: Iterable[Entry]) -> None:
        """After the recovery: what the predecessor left open and isn't there any more has ended."""
        known = {entry.name for entry in entries if not entry.ended}
        for interval in [interval for name, interval in self._open.items() if name not in known]:
            self._close(interval, self._clock())

    async def run(self) -> None:
        """Ends by cancellation."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self._look()

    def _look(self) -> None:
        now = self._clock()
        for interval in self._open.values():
            if interval.residency is Residency.VRAM:
                interval.bytes = max(interval.bytes, self._resident(interval.workload))
            self._count(interval, now)

    # -- answering ---------------------------------------------------------------------------------------------------

    def view(self, since: float) -> HistoryView:
        """What was since then, what began before and went on included."""
        first = bisect.bisect_left(self._past, since, key=_end)
        past = list(itertools.islice(self._past, first, None))
        if first == 0 and len(self._past) == KEPT_MAX:
            since = max(since, _end(past[0]))
        if len(past) > ANSWERED_MAX:
            since = max(since, _end(past[-ANSWERED_MAX - 1]))
        intervals = sorted([*past[-ANSWERED_MAX:], *self._open.values()], key=lambda interval: interval.id)
        return HistoryView(
            now=self._clock(),
            since=since,
            intervals=[interval.view() for interval in intervals],
            switches=[switch for switch in self._switches if switch.time >= since][-ANSWERED_MAX:],
            links=self._links(),
        )

    # -- keeping -----------------------------------------------------------------------------------------------------

    def _begin(self, name: WorkloadName, residency: Residency, *, began: float, size: int) -> None:
        self._last_id += 1
        interval = self._open[name] = _Interval(self._last_id, name, residency, began, size)
        self._counted_from[name] = began
        self._database.write(
            "INSERT INTO intervals (id, workload, place, began, ended, bytes) VALUES (?, ?, ?, ?, NULL, ?)",
            (interval.id, name, residency, began, size),
        )
        if self._last_id % _PRUNE_EVERY == 0:
            self._prune()

    def _close(self, interval: _Interval, now: float) -> None:
        del self._open[interval.workload]
        # A clock that was set back must not make an interval end before it began, nor the ends go backwards.
        least = max(interval.began, _end(self._past[-1]) if self._past else 0.0)
        interval.ended = max(now, least)
        self._count(interval, interval.ended)
        self._counted_from.pop(interval.workload, None)
        self._past.append(interval)
        self._database.write(
            "UPDATE intervals SET ended = ?, bytes = ? WHERE id = ?", (interval.ended, interval.bytes, interval.id)
        )
        self._forget()

    def _count(self, interval: _Interval, now: float) -> None:
        counted_from = self._counted_from.get(interval.workload, now)
        if now > counted_from:
            self._ended(interval.workload, interval.residency, now - counted_from)
            self._counted_from[interval.workload] = now

    def _switched(self, report: SwitchReport) -> None:
        view = switched_view(report, self._clock())
        self._switches.append(view)
        self._database.write(
            "INSERT INTO switches (time, record) VALUES (?, ?)", (view.time, _SWITCHED.dump_json(view).decode())
        )

    def _forget(self) -> None:
        oldest = self._clock() - self._keep_s
        while self._past and _end(self._past[0]) < oldest:
            self._past.popleft()
        while self._switches and self._switches[0].time < oldest:
            self._switches.popleft()

    def _prune(self) -> None:
        oldest = self._clock() - self._keep_s
        self._database.write(
            "DELETE FROM intervals WHERE ended IS NOT NULL AND (ended < ? OR id <= ?)",
            (oldest, self._last_id - KEPT_MAX),
        )
        self._database.write(
            "DELETE FROM switches WHERE time < ? OR rowid <= (SELECT coalesce(max(rowid), 0) FROM switches) - ?",
            (oldest, KEPT_MAX),
        )

    def _load(self) -> None:
        rows = self._database.read_now(
            "SELECT id, workload, place, began, ended, bytes FROM intervals ORDER BY ended, id"
        )
        now = self._clock()
        for number, workload, residency, began, ended, size in rows:
            self._last_id = max(self._last_id, number)
            if residency not in Residency.__members__.values():
                continue
            interval = _Interval(number, WorkloadName(workload), Residency(residency), began, size, ended)
            if ended is not None:
                self._past.append(interval)
            else:
                self._open[interval.workload] = interval
                self._counted_from[interval.workload] = now
        for (record,) in self._database.read_now("SELECT record FROM switches ORDER BY rowid"):
            try:
                self._switches.append(_SWITCHED.validate_json(record))
            except ValidationError as e:
                log.warning("can't read a switch in the history: %s", e.errors()[0]["msg"])
        self._forget()


def switched_view(report: SwitchReport, now: float) -> SwitchedView:
    copying = [step.seconds for step in report.steps if step.step in _COPYING]
    copy_s = sum(copying) if copying and report.bytes_copied else None
    rate = report.bytes_copied / copy_s if copy_s and report.bytes_copied >= _LEAST_BYTES else None
    return SwitchedView(
        time=now,
        workload=report.workload,
        operation=report.operation,
        depth=report.depth,
        seconds=report.seconds,
        bytes_total=report.bytes_total,
        bytes_copied=report.bytes_copied,
        bytes_clean=report.bytes_clean,
        bytes_zero=report.bytes_zero,
        copy_s=copy_s,
        bytes_per_s=rate,
        steps=[StepView(step=step.step, seconds=step.seconds) for step in report.steps],
    )


def _end(interval: _Interval) -> float:
    assert interval.ended is not None
    return interval.ended
