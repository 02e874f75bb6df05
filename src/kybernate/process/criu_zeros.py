"""Takes pages of zeros out of a dump: private memory that was never touched is zeros too, and costs nothing to restore.

CRIU leaves out pages that don't exist, but not those that exist and hold zeros. GPU processes have very many: measured, of 1.8 GB
of a paused inference server nine tenths, most of it what the driver keeps of VRAM. Each of them would be copied and given a page of
its own in every clone.

Only anonymous private memory: in a mapped file a page that isn't in the dump is the file's. What isn't understood is left alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kybernate.model.errors import BadInput
from kybernate.process import criu_images
from kybernate.process.criu_images import PAGE_BYTES, Fields, integer

_WORDS = PAGE_BYTES // 8
_BLOCK_PAGES = 8192
_THREADS = 4
_LEAST_GAIN = 0.05
"""Of the pages; for less nothing is written anew."""

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


def drop(directory: Path) -> int:
    """Rewrite a dump without them. Returns the bytes that it is shorter now.

    Raises:
        BadInput: it is damaged.
    """
    saved = 0
    maps: dict[int, list[Path]] = {}
    for path in directory.glob("pagemap-*.img"):
        maps.setdefault(_pages_id(path), []).append(path)
    for identity, paths in maps.items():
        # Shared memory has a map of its own, called otherwise.
        if len(paths) == 1 and (pid := paths[0].stem.removeprefix("pagemap-")).isdigit():
            saved += _drop(directory, paths[0], directory / f"pages-{identity}.img", int(pid))
    return saved


def _drop(directory: Path, page_map: Path, pages: Path, pid: int) -> int:
    mm = directory / f"mm-{pid}.img"
    if not pages.exists() or not pages.stat().st_size or not mm.exists():
        return 0
    head, *rest = criu_images.entries(page_map)
    found = [_entry(message) for message in rest]
    if any(integer(entry.fields, _PARENT, 0) for entry in found):
        return 0  # of a dump that builds on another
    content: NDArray[np.uint64] = np.memmap(pages, dtype="<u8", mode="r").reshape(-1, _WORDS)
    if len(content) != sum(entry.pages for entry in found if entry.present):
        raise BadInput(f"the dump in {directory} is damaged: {pages.name} has {len(content)} pages")
    zero = _zero_pages(content)
    areas = _anonymous(mm)
    kept = np.ones(len(content), dtype=np.bool_)
    messages = [head]
    at = 0
    for entry in found:
        if not entry.present:
            messages.append(entry.part(0, entry.pages))
            continue
        droppable = zero[at : at + entry.pages] & areas.covers(entry)
        kept[at : at + entry.pages] = ~droppable
        messages += [entry.part(first, last - first) for first, last in _runs(~droppable)]
        at += entry.pages
    gone = len(content) - int(np.count_nonzero(kept))
    if gone < _LEAST_GAIN * len(content):
        return 0
    new = pages.with_suffix(".new")
    with new.open("xb") as file:
        new.chmod(pages.stat().st_mode & 0o7777)
        for first, last in _runs(kept):
            file.write(content[first:last].data.cast("B"))
    new.replace(pages)
    criu_images.rewrite(page_map, messages)
    return gone * PAGE_BYTES


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


def _zero_pages(content: NDArray[np.uint64]) -> NDArray[np.bool_]:
    zero = np.empty(len(content), dtype=np.bool_)

    def look(first: int) -> None:
        block = content[first : first + _BLOCK_PAGES]
        zero[first : first + len(block)] = block.max(axis=1) == 0

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="kybernate-zeros") as threads:
        list(threads.map(look, range(0, len(content), _BLOCK_PAGES)))
    return zero


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Where it is true: first and one behind the last."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8))).tolist()
    return zip(edges[::2], edges[1::2], strict=True)
