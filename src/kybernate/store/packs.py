"""The format of pack files: pure functions over bytes.

    header   one page: magic, version, the pack's id, the key's fingerprint, and their hash
    records  contents of chunks; those of 64 KiB and more begin at a page, smaller ones follow each other closely
    index    one entry a record: the chunk's id, where it lies, how it is coded, and the cipher's nonce and tag
    trailer  the last 72 bytes of the file: where the index is, and the seal of header and index

All numbers are little-endian. Files are whole pages long. A record carries its own check: its content must have the hash
that is its id, and an encrypted one must pass the cipher, which binds id, codec and length.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

from blake3 import blake3

from kybernate.model.types import CHUNK_BYTES
from kybernate.store.errors import Damaged, TooNew, WrongKey
from kybernate.store.memory import PAGE_BYTES, padded
from kybernate.store.tenants import ChunkId, Keys

PackId = NewType("PackId", str)
"""32 hexadecimal digits, random: packs are named before their content is known."""

VERSION = 1
HEADER_BYTES = PAGE_BYTES
TIGHT_BELOW = 64 << 10
"""Records smaller than this are packed without padding: at most 3 % of larger ones is padding."""

_MAGIC = b"\x89KYBPCK\n"
_END_MAGIC = b"\x89KYBEND\n"
_HEADER = struct.Struct("<8sII16s16s")
_ENTRY = struct.Struct("<32sQIII12s16s")
_TRAILER = struct.Struct("<QIIII32s8s8x")
TRAILER_BYTES = _TRAILER.size
_RECORDS_MAX = 1 << 20


class Codec(enum.IntEnum):
    """How a record's bytes become the chunk's."""

    RAW = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One chunk in a pack. Offsets and sizes in bytes."""

    id: ChunkId
    offset: int
    stored: int
    """Length in the pack."""
    raw: int
    """Length of the content: at most a chunk."""
    codec: Codec
    nonce: bytes = bytes(12)
    tag: bytes = bytes(16)

    @property
    def bound(self) -> bytes:
        """What the cipher binds the content to."""
        return bound(self.id, self.raw, self.codec)


def bound(chunk: ChunkId, raw: int, codec: Codec) -> bytes:
    """The cipher's associated data of a record."""
    return struct.pack("<32sII", chunk, raw, codec)


def encode_header(pack: PackId, keys: Keys) -> bytes:
    fields = _HEADER.pack(_MAGIC, VERSION, 0, bytes.fromhex(pack), keys.fingerprint)
    return (fields + blake3(fields).digest()).ljust(HEADER_BYTES, b"\0")


def check_header(content: bytes, pack: PackId, keys: Keys) -> None:
    """Raises Damaged, TooNew or WrongKey unless these first bytes of a file are of this pack and key."""
    if len(content) < _HEADER.size + 32 or not content.startswith(_MAGIC):
        raise Damaged(f"pack {pack} doesn't begin like a pack")
    fields = content[: _HEADER.size]
    _magic, version, _flags, name, fingerprint = _HEADER.unpack(fields)
    if blake3(fields).digest() != content[_HEADER.size : _HEADER.size + 32]:
        raise Damaged(f"pack {pack}: its header is damaged")
    _check_version(pack, version)
    if name.hex() != pack:
        raise Damaged(f"pack {pack} says it is pack {name.hex()}: somebody renamed it")
    if fingerprint != keys.fingerprint:
        raise WrongKey(f"pack {pack} was written with the key {fingerprint.hex()}, not with {keys.fingerprint.hex()}")


def encode_end(records: Sequence[Record], *, at: int, header: bytes, keys: Keys) -> bytes:
    """Index and trailer for a pack whose records end at `at`, a whole page; the result is whole pages long."""
    index = b"".join(_ENTRY.pack(r.id, r.offset, r.stored, r.raw, r.codec, r.nonce, r.tag) for r in records)
    extent = struct.pack("<QIII", at, len(index), len(records), VERSION)
    seal = keys.seal(header, index, extent)
    total = padded(len(index) + TRAILER_BYTES)
    trailer = _TRAILER.pack(at, len(index), len(records), VERSION, 0, seal, _END_MAGIC)
    return index.ljust(total - TRAILER_BYTES, b"\0") + trailer


@dataclass(frozen=True, slots=True)
class Trailer:
    index_offset: int
    index_bytes: int
    count: int
    seal: bytes


def decode_trailer(content: bytes, pack: PackId, size: int) -> Trailer:
    """From the last `TRAILER_BYTES` of a pack of this size. Raises Damaged or TooNew."""
    if len(content) != TRAILER_BYTES or size % PAGE_BYTES:
        raise Damaged(f"pack {pack} is cut off: {size} bytes")
    offset, length, count, version, _, seal, magic = _TRAILER.unpack(content)
    if magic != _END_MAGIC:
        raise Damaged(f"pack {pack} is cut off: it doesn't end like a pack")
    _check_version(pack, version)
    if (
        count > _RECORDS_MAX
        or length != count * _ENTRY.size
        or offset < HEADER_BYTES
        or offset + padded(length + TRAILER_BYTES) != size
    ):
        raise Damaged(f"pack {pack}: its trailer is damaged")
    return Trailer(offset, length, count, seal)


def decode_index(content: bytes, trailer: Trailer, pack: PackId, keys: Keys) -> list[Record]:
    """The records of a pack. Raises Damaged when the seal isn't right."""
    extent = struct.pack("<QIII", trailer.index_offset, trailer.index_bytes, trailer.count, VERSION)
    if len(content) != trailer.index_bytes or keys.seal(encode_header(pack, keys), content, extent) != trailer.seal:
        raise Damaged(f"pack {pack}: its index is damaged")
    records = []
    for id_, offset, stored, raw, codec, nonce, tag in _ENTRY.iter_unpack(content):
        if (
            offset < HEADER_BYTES
            or offset + stored > trailer.index_offset
            or not 0 < raw <= CHUNK_BYTES
            or not 0 < stored <= CHUNK_BYTES
            or codec not in (Codec.RAW, Codec.ZSTD)
            or (codec == Codec.RAW and stored != raw)
        ):
            raise Damaged(f"pack {pack}: its index makes no sense")
        records.append(Record(ChunkId(id_), offset, stored, raw, Codec(codec), nonce, tag))
    return records


def _check_version(pack: PackId, version: int) -> None:
    if version > VERSION:
        raise TooNew(
            f"pack {pack} has format {version}; this version of Kybernate reads up to {VERSION}",
            hint="update Kybernate",
        )
    if version < 1:
        raise Damaged(f"pack {pack}: format {version}")
