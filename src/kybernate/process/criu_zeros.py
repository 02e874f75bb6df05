"""Takes pages of zeros out of a dump: private memory that was never touched is zeros too, and costs nothing to restore.

CRIU leaves out pages that don't exist, but not those that exist and hold zeros. GPU processes have very many: measured, of 1.8 GB
of a paused inference server nine tenths, most of it what the driver keeps of VRAM. Each of them would be copied and given a page of
its own in every clone.

Only anonymous private memory: in a mapped file a page that isn't in the dump is the file's. What isn't understood is left alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kybernate.model.errors import BadInput
from kybernate.process import criu_images
from kybernate.process.bulk import Zeros
from kybernate.process.criu_images import PAGE_BYTES, Fields, integer

_LEAST_GAIN = 0.05
"""Of the pages; for less the map is left as it is, since each stretch of it costs a call of CRIU's."""

_VADDR, _COMPATIBLE, _PARENT, _FLAGS, _COUNT = 1, 2, 3, 4, 5
"""Fields of an entry of a page map."""
_PRESENT = 4
_VMAS = 14
_START, _END, _MAP_FLAGS, _STATUS = 1, 2, 6, 7
_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_GROWS_DOWN, _MAP_HUGE = 0x01, 0x02, 0x20, 0x100, 0x40000
_REGULAR, _HEAP, _ANONYMOUS_PRIVATE = 1 << 0, 1 << 5, 1 << 9


@dataclass(frozen=True, slots=True)
class _Entry:
    """One stretch of a page map."""

    fields: Fields
    address: int
    pages: int
    present: bool

    def part(self, first: int, count: int) -> bytes:
        """As CRIU would have written those of its pages."""
        fields = dict(self.fields)
        fields[_VADDR] = [self.address + first * PAGE_BYTES]
        for number in (_COMPATIBLE, _COUNT):
            if number in fields:
                fields[number] = [count]
        return criu_images.message(fields)


def leave_out(directory: Path, zero: Mapping[str, NDArray[np.bool_]]) -> dict[str, Zeros]:
    """Rewrite the page maps of a dump whose page images came without any pages of zeros, for those that may stay away.

    Args:
        zero: of each page image, by name: which of the pages that CRIU wrote were zeros.

    Returns:
        Of each: where the others have to be put in when it is restored: offset in what CRIU reads, length; bytes, ascending.

    Raises:
        BadInput: the dump is damaged.
    """
    maps: dict[str, list[Path]] = {}
    for path in directory.glob("pagemap-*.img"):
        maps.setdefault(f"pages-{_pages_id(path)}.img", []).append(path)
    found: dict[str, Zeros] = {}
    for name, pages in zero.items():
        paths = maps.get(name, [])
        kept = np.ones(len(pages), dtype=np.bool_)
        # Shared memory has a map of its own, called otherwise.
        if len(paths) == 1 and (pid := paths[0].stem.removeprefix("pagemap-")).isdigit():
            kept = _leave_out(directory / f"mm-{pid}.img", paths[0], name, pages)
        stretches = tuple((first * PAGE_BYTES, (end - first) * PAGE_BYTES) for first, end in _runs(pages[kept]))
        if stretches:
            found[name] = stretches
    return found


def _leave_out(mm: Path, page_map: Path, name: str, zero: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns which pages the map still has."""
    kept = np.ones(len(zero), dtype=np.bool_)
    if not mm.exists():
        return kept
    head, *rest = criu_images.entries(page_map)
    found = [_entry(message) for message in rest]
    if any(integer(entry.fields, _PARENT, 0) for entry in found):
        return kept  # of a dump that builds on another
    if len(zero) != sum(entry.pages for entry in found if entry.present):
        raise BadInput(f"the dump in {page_map.parent} is damaged: {name} has {len(zero)} pages")
    areas = _anonymous(mm)
    messages = [head]
    at = 0
    for entry in found:
        if not entry.present:
            messages.append(entry.part(0, entry.pages))
            continue
        droppable = zero[at : at + entry.pages]
        if droppable.any():
            droppable = droppable & areas.covers(entry)
        kept[at : at + entry.pages] = ~droppable
        messages += [entry.part(first, last - first) for first, last in _runs(~droppable)]
        at += entry.pages
    if len(zero) - int(np.count_nonzero(kept)) < _LEAST_GAIN * len(zero):
        return np.ones(len(zero), dtype=np.bool_)
    criu_images.rewrite(page_map, messages)
    return kept


def _pages_id(page_map: Path) -> int:
    head = next(criu_images.entries(page_map), b"")
    return integer(criu_images.fields(head), 1)


def _entry(message: bytes) -> _Entry:
    fields = criu_images.fields(message)
    pages = integer(fields, _COUNT if _COUNT in fields else _COMPATIBLE)
    present = _FLAGS not in fields or bool(integer(fields, _FLAGS) & _PRESENT)
    return _Entry(fields, integer(fields, _VADDR), pages, present)


@dataclass(frozen=True, slots=True)
class _Areas:
    """Stretches of addresses, ascending."""

    starts: Sequence[int]
    ends: Sequence[int]

    def covers(self, entry: _Entry) -> NDArray[np.bool_]:
        """Which of an entry's pages lie in one of them."""
        covered = np.zeros(entry.pages, dtype=np.bool_)
        end = entry.address + entry.pages * PAGE_BYTES
        for number in range(max(0, bisect.bisect_right(self.starts, entry.address) - 1), len(self.starts)):
            if self.starts[number] >= end:
                break
            first = max(0, self.starts[number] - entry.address) // PAGE_BYTES
            last = (min(end, self.ends[number]) - entry.address) // PAGE_BYTES
            covered[first : max(first, last)] = True
        return covered


def _anonymous(mm: Path) -> _Areas:
    """Memory that is zeros where it was never touched, and is no stack: those are few, and grow."""
    found = []
    for message in criu_images.entries(mm):
        for area in criu_images.fields(message).get(_VMAS, []):
            if not isinstance(area, bytes):
                raise BadInput(f"{mm} is damaged: it has an area that is a number")
            fields = criu_images.fields(area)
            flags, status = integer(fields, _MAP_FLAGS), integer(fields, _STATUS)
            if (
                flags & (_MAP_PRIVATE | _MAP_ANONYMOUS) == _MAP_PRIVATE | _MAP_ANONYMOUS
                and not flags & (_MAP_SHARED | _MAP_GROWS_DOWN | _MAP_HUGE)
                and status & _ANONYMOUS_PRIVATE
                and not status & ~(_REGULAR | _HEAP | _ANONYMOUS_PRIVATE)
            ):
                found.append((integer(fields, _START), integer(fields, _END)))
    found.sort()
    return _Areas([start for start, _ in found], [end for _, end in found])


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Where it is true: first and one behind the last."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8))).tolist()
    return zip(edges[::2], edges[1::2], strict=True)
