"""One record at a time, checked: what verifying, compacting and moving between tiers have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kybernate.model.types import CHUNK_BYTES
from kybernate.store import coding
from kybernate.store.errors import Damaged
from kybernate.store.media import Absent
from kybernate.store.memory import PAGE_BYTES, Buffer, padded
from kybernate.store.packs import Codec, PackId, Record
from kybernate.store.progress import Cancel
from kybernate.store.spaces import Space


def read_record(space: Space, pack: PackId, record: Record, buffer: Buffer, cancel: Cancel) -> memoryview:
    """A record's bytes as they are stored, at the beginning of the buffer, once its content was found right.

    Raises Damaged, Absent (no such pack), TierAway.
    """
    start = record.offset // PAGE_BYTES * PAGE_BYTES
    skip = record.offset - start
    length = padded(skip + record.stored)
    space.medium.read(space.keys.tenant, pack, start, [buffer.view[:length]], cancel)
    if skip:
        buffer.view[: record.stored] = bytes(buffer.view[skip : skip + record.stored])
    _check(space, record, buffer.view[: record.stored + coding.TAG_BYTES])
    return buffer.view[: record.stored]


def spans(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records of one pack by offset, cut into runs that lie close together and are no longer than a chunk."""
    run: list[Record] = []
    for record in records:
        if run and (
            record.offset + record.stored - run[0].offset > CHUNK_BYTES
            or record.offset - (run[-1].offset + run[-1].stored) >= PAGE_BYTES
        ):
            yield run
            run = []
        run.append(record)
    if run:
        yield run


def troubles(space: Space, pack: PackId, run: list[Record], buffer: Buffer, cancel: Cancel) -> dict[Record, str]:
    """What is wrong with which of the records of a span. Raises TierAway, Cancelled."""
    start = run[0].offset // PAGE_BYTES * PAGE_BYTES
    length = padded(run[-1].offset + run[-1].stored - start)
    try:
        space.medium.read(space.keys.tenant, pack, start, [buffer.view[:length]], cancel)
    except Absent:
        return dict.fromkeys(run, f"pack {pack} has gone")
    except Damaged as e:
        return dict.fromkeys(run, e.message)
    found = {}
    for record in reversed(run):  # the cipher's tag is written behind a record, where the next one was
        try:
            _check(space, record, buffer.view[record.offset - start :][: record.stored + coding.TAG_BYTES])
        except Damaged as e:
            found[record] = e.message
    return found


def _check(space: Space, record: Record, stored: memoryview) -> None:
    """Raises Damaged unless this decodes to what the record is called by."""
    if record.codec is Codec.RAW and not space.keys.encrypted:
        coding.check(record, stored[: record.stored], space.keys)
    else:
        coding.decode(record, stored, memoryview(bytearray(record.raw)), space.keys)
