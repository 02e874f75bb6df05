"""Sizes and durations as people write and read them.

Input knows binary units (KiB, MiB, GiB, TiB, or the short K, M, G, T, which mean the same) and decimal ones
(KB, MB, GB, TB); output is binary. No time zones. The only arithmetic is the sum of sizes by GPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from kybernate.model.errors import BadInput
from kybernate.model.types import GpuUuid

_SIZE = re.compile(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]*)\s*")
_UNITS = {
    "": 1,
    "B": 1,
    **{
        unit: 1 << (10 * power)
        for power, pair in enumerate(("", "K", "M", "G", "T"))
        if pair
        for unit in (pair, f"{pair}IB")
    },
    **{f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T")) if prefix},
}
_DAY_SECONDS = 86400
_NUMBER = r"\d{1,12}(?:\.\d{1,12})?"
_SPAN = re.compile(
    r"\s*"
    + "".join(rf"(?:(?P<{unit}>{_NUMBER})\s*{written}\s*)?" for unit, written in (
        ("d", "d"), ("h", "h"), ("m", "m(?:in)?"), ("s", "s"), ("ms", "ms"),
    )),
    re.IGNORECASE,
)  # fmt: skip
_PLAIN = re.compile(rf"\s*{_NUMBER}\s*")
_SPANS = {"d": float(_DAY_SECONDS), "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def parse_size(value: str | int) -> int:
    """Bytes of `40GiB`, `512 MiB`, `1.5G` or a plain number of bytes.

    Raises:
        BadInput: not a size.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadInput(f"{value!r} is no size", hint="write a number with a unit, such as 40GiB")
    if isinstance(value, int):
        if value < 0:
            raise BadInput(f"{value} is no size: it is negative", hint="write a number with a unit, such as 40GiB")
        return value
    match = _SIZE.fullmatch(value)
    if match is None or match[2].upper() not in _UNITS:
        raise BadInput(f"{value[:40]!r} is no size", hint="write a number with a unit, such as 40GiB")
    # Exact: a double holds no more than 53 bits of a number of bytes.
    return int(Fraction(match[1]) * _UNITS[match[2].upper()])


def parse_seconds(value: str | float) -> float:
    """Seconds of `90`, `90s`, `10m`, `1h30m`, `2 h 10 min`, `1.5h`, `2d`, `500ms`, or of a number of seconds.

    Raises:
        BadInput: not a time.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    if isinstance(value, str) and value.strip():
        if _PLAIN.fullmatch(value):
            return float(value)
        if (match := _SPAN.fullmatch(value)) is not None:
            return sum(float(text) * _SPANS[unit] for unit, text in match.groupdict().items() if text is not None)
    shown = repr(value[:40] if isinstance(value, str) else value)[:60]
    raise BadInput(f"{shown} is no time", hint="write seconds, or numbers with d, h, m, s or ms, such as 10m or 1h30m")


def format_size(size_bytes: int) -> str:
    """`1.5 GiB`: less than 1024 before the unit (but of TiB any number), one digit after the point."""
    amount = float(size_bytes)
    if abs(amount) < 1024:
        return f"{amount:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if abs(amount) < 1023.95:  # more is shown as 1024.0
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """`0.84 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds < 9.995:  # more is shown as 10.00
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < _DAY_SECONDS:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // _DAY_SECONDS} d {whole % _DAY_SECONDS // 3600} h"


def together(*sizes: Mapping[GpuUuid, int]) -> dict[GpuUuid, int]:
    """Sums of what lies on each GPU, in bytes."""
    return {uuid: sum(each.get(uuid, 0) for each in sizes) for uuid in {uuid for each in sizes for uuid in each}}
