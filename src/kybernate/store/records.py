"""One record at a time, checked: what verifying, compacting and moving between tiers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kybernate.store import coding
from kybernate.store.memory import PAGE_BYTES, Buffer, padded
from kybernate.store.packs import Codec, PackId, Record
from kybernate.store.progress import Cancel

if TYPE_CHECKING:
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
    content = buffer.view[: record.stored]
    if record.codec is Codec.RAW and not space.keys.encrypted:
        coding.check(record, content, space.keys)
    else:
        scratch = memoryview(bytearray(record.raw))
        coding.decode(record, buffer.view[: record.stored + coding.TAG_BYTES], scratch, space.keys)
    return content
