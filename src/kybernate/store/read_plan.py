"""Which chunks are read with one call, and which of them straight into the caller's memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kybernate.model.errors import BadInput
from kybernate.model.types import CHUNK_BYTES
from kybernate.store.media import Medium
from kybernate.store.memory import PAGE_BYTES, is_aligned
from kybernate.store.packs import Codec, PackId
from kybernate.store.space_catalog import ChunkLocation
from kybernate.store.tenants import ChunkId

Request = tuple[int, memoryview]
"""A chunk's index in the manifest's table, and a view of its length."""


@dataclass(slots=True)
class WantedChunk:
    """A chunk, and all views it belongs in."""

    location: ChunkLocation
    views: list[Request]


@dataclass(slots=True)
class ReadGroup:
    """What is read with one call: `wanted` lie behind each other from `start` to `end`."""

    pack: PackId
    start: int
    end: int
    direct: bool
    """Straight into the views."""
    wanted: list[WantedChunk]


def read_groups(
    wanted: Mapping[ChunkId, list[Request]],
    locations: Mapping[ChunkId, Sequence[ChunkLocation]],
    medium: Medium,
    *,
    encrypted: bool,
) -> Iterator[ReadGroup]:
    """What to read, in the order of packs. What lies together is read together.

    Raises:
        BadInput: a view has another length than its chunk; before the first group comes.
    """
    items = []
    for chunk, views in wanted.items():
        location = locations[chunk][0]
        if any(view.nbytes != location.record.raw for _, view in views):
            raise BadInput(f"a view of {views[0][1].nbytes} bytes for a chunk of {location.record.raw}")
        items.append(WantedChunk(location, views))
    items.sort(key=lambda item: (item.location.pack, item.location.record.offset))
    last: ReadGroup | None = None
    for item in items:
        record = item.location.record
        direct = not encrypted and _is_direct(item, aligned=medium.wants_alignment)
        end = record.offset + record.stored
        if (
            last is not None
            and last.pack == item.location.pack
            and last.direct == direct
            and (last.end == record.offset if direct else record.offset - last.end < PAGE_BYTES)
            and end - last.start <= (medium.read_bytes if direct else CHUNK_BYTES)
        ):
            last.end = end
            last.wanted.append(item)
        else:
            if last is not None:
                yield last
            last = ReadGroup(item.location.pack, record.offset, end, direct, [item])
    if last is not None:
        yield last


def _is_direct(item: WantedChunk, *, aligned: bool) -> bool:
    """`aligned`: whether the medium reads whole pages to whole pages only."""
    record = item.location.record
    if record.codec is not Codec.RAW:
        return False
    return not aligned or (
        record.stored % PAGE_BYTES == 0 and record.offset % PAGE_BYTES == 0 and is_aligned(item.views[0][1])
    )
