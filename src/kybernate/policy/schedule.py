"""When a batch workload shall run: windows of the week, such as `22:00-06:00` or `mon-fri 20:00-08:00, sat,sun 00:00-24:00`.

Windows and not cron, because cron names moments and what is meant here has an end. A window that ends before it begins ends on
the next day and belongs to the day it begins on: `fri 22:00-06:00` runs into Saturday.

Daylight saving: a time that the clock shows twice counts from its first to its last reading, one that it skips is the moment
of the skip. So a window begins once and ends once, however the clock is set meanwhile.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from kybernate.model.errors import BadInput

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_WINDOW = re.compile(r"(?:(?P<days>[a-z,\s-]+?)\s+)?(?P<begin>\d\d?:\d\d)\s*-\s*(?P<end>\d\d?:\d\d)")
_HINT = "write [DAYS] HH:MM-HH:MM, e.g. '22:00-06:00', 'mon-fri 20:00-08:00' or 'sat,sun 00:00-24:00'"
_LOCALTIME = Path("/etc/localtime")
_LOOK_DAYS = 9
"""Everything repeats after a week; one day more for a window that began yesterday, one for the clock's changes."""


@dataclass(frozen=True, slots=True)
class Window:
    days: frozenset[int]
    """On which it begins; 0 is Monday."""
    begin: int
    """Minutes after midnight."""
    end: int
    """Likewise, of the same day; more than a day's minutes where it ends on the next."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Inside where any of its windows is. Without windows: always inside."""

    windows: tuple[Window, ...] = ()
    zone: tzinfo = UTC


def parse_schedule(texts: Iterable[str], *, zone: str | None = None) -> Schedule:
    """
    Args:
        zone: as in `Europe/Berlin`; None: the machine's own.

    Raises:
        BadInput: a window or the zone makes no sense.
    """
    return Schedule(windows=tuple(_window(text) for text in texts), zone=_zone(zone))


def in_window(schedule: Schedule, when: float) -> bool:
    """`when`: seconds since 1970, as time.time() says."""
    return not schedule.windows or any(begin <= when < end for begin, end in _stretches(schedule, when))


def next_change(schedule: Schedule, when: float) -> float | None:
    """When the answer of in_window will be another one; None: never."""
    if not schedule.windows:
        return None
    last = when + (_LOOK_DAYS - 2) * 86400
    for begin, end in _stretches(schedule, when):
        for moment in (begin, end):
            if when < moment < last:
                return moment
    return None


def _stretches(schedule: Schedule, when: float) -> list[tuple[float, float]]:
    """Inside from, to (seconds since 1970), around `when` and a week ahead: in order, none touching the next."""
    today = datetime.fromtimestamp(when, schedule.zone).date()
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(_openings(schedule, today)):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif begin < end:  # not so where the clock skips all of it
            merged.append((begin, end))
    return merged


def _openings(schedule: Schedule, today: date) -> Iterator[tuple[float, float]]:
    for offset in range(-2, _LOOK_DAYS):
        day = today + timedelta(days=offset)
        for window in schedule.windows:
            if day.weekday() in window.days:
                begin = _moment(day, window.begin, schedule.zone, last=False)
                yield begin, _moment(day, window.end, schedule.zone, last=True)


def _moment(day: date, minutes: int, zone: tzinfo, *, last: bool) -> float:
    """When the clock there shows this time."""
    day += timedelta(days=minutes // _DAY_MINUTES)
    wall = datetime(day.year, day.month, day.day, tzinfo=zone) + timedelta(minutes=minutes % _DAY_MINUTES)
    first, second = (wall.replace(fold=fold).timestamp() for fold in (0, 1))
    if first <= second:
        return second if last else first
    return _skip(second, first, zone)


def _skip(before: float, after: float, zone: tzinfo) -> float:
    """The second in (before, after] at which the clock is set forward."""
    low, high = int(before), int(after)
    offset = datetime.fromtimestamp(high, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            high = middle
        else:
            low = middle
    return float(high)


def _window(text: str) -> Window:
    found = _WINDOW.fullmatch(text.strip().lower())
    if found is None:
        raise BadInput(f"bad window {text[:80]!r}", hint=_HINT)
    begin, end = (_minutes(found[name], text) for name in ("begin", "end"))
    if begin in (end, _DAY_MINUTES):
        raise BadInput(f"bad window {text[:80]!r}: it has no length", hint="the whole day is 00:00-24:00")
    return Window(
        days=_days(found["days"], text),
        begin=begin,
        end=end if end > begin else end + _DAY_MINUTES,
    )


def _minutes(clock: str, text: str) -> int:
    hours, minutes = (int(part) for part in clock.split(":"))
    if minutes > 59 or hours * 60 + minutes > _DAY_MINUTES:
        raise BadInput(f"bad window {text[:80]!r}: there is no {clock}", hint=_HINT)
    return hours * 60 + minutes


def _days(words: str | None, text: str) -> frozenset[int]:
    if words is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in words.split(","):
        ends = [word.strip() for word in part.split("-")]
        if len(ends) > 2 or any(word not in DAYS for word in ends):
            raise BadInput(f"bad window {text[:80]!r}: no days are called {part.strip()!r}", hint=_HINT)
        first, last = DAYS.index(ends[0]), DAYS.index(ends[-1])
        days.update(day % 7 for day in range(first, last + 1 + (7 if last < first else 0)))
    return frozenset(days)


@functools.cache
def _zone_in(content: bytes) -> tzinfo:
    """Equal content is one zone, so that schedules which say the same are equal."""
    return ZoneInfo.from_file(io.BytesIO(content))


def _zone(name: str | None) -> tzinfo:
    if name is None:
        if not _LOCALTIME.exists():
            return UTC
        return _zone_in(_LOCALTIME.read_bytes())
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as e:
        raise BadInput(f"no time zone is called {name[:80]!r}", hint="use a name as in 'Europe/Berlin' or 'UTC'") from e
