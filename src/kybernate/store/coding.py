"""A chunk's content to a record's bytes and back: compression where it pays, encryption where there is a key.

Whether compression pays is asked of a few samples first (some 50 us a chunk), since GPU data mostly doesn't shrink.
Content is checked on the way back: by the cipher, which binds it to the chunk's id, else by its hash.
"""

from __future__ import annotations

import os
import sys

from cryptography.exceptions import InvalidTag

from kybernate.store.errors import Damaged
from kybernate.store.memory import Buffer
from kybernate.store.packs import Codec, Record, bound
from kybernate.store.tenants import ChunkId, Keys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TAG_BYTES = 16
_LEVEL = 1
"""Higher levels save a few percent more on memory images at a third of the speed."""
_SAMPLES = 4
_SAMPLE_BYTES = 8 << 10
_ZSTD_ERRORS = (zstd.ZstdError, EOFError, ValueError)


def compressed(content: memoryview, *, below: float) -> bytes | None:
    """The content compressed, or None where that saves too little.

    Args:
        below: the largest part of its size that is worth it, such as 0.85; 0 never compresses.
    """
    if not shrinks(content, below=below):
        return None
    packed = zstd.compress(content, _LEVEL)
    return packed if len(packed) <= below * len(content) else None


def shrinks(content: memoryview, *, below: float) -> bool:
    """Whether `compressed` will try it."""
    if below <= 0 or len(content) < 512:
        return False
    if len(content) > 4 * _SAMPLES * _SAMPLE_BYTES:
        step = len(content) // _SAMPLES
        samples = b"".join(bytes(content[k * step : k * step + _SAMPLE_BYTES]) for k in range(_SAMPLES))
        return len(zstd.compress(samples, _LEVEL)) <= below * len(samples)
    return True


def encrypt(
    content: memoryview, buffer: Buffer, chunk: ChunkId, *, raw: int, codec: Codec, keys: Keys
) -> tuple[bytes, bytes]:
    """Encrypt into a buffer; the ciphertext is as long as the content. Returns nonce and tag."""
    assert keys.cipher is not None
    nonce = os.urandom(12)
    end = len(content) + TAG_BYTES
    keys.cipher.encrypt_into(nonce, content, bound(chunk, raw, codec), buffer.view[:end])
    return nonce, bytes(buffer.view[len(content) : end])


def decode(record: Record, stored: memoryview, into: memoryview, keys: Keys) -> None:
    """Put a record's content where it belongs.

    Args:
        stored: the record's bytes, followed by room for the cipher's tag, which is written there.
        into: as long as the content.

    Raises:
        Damaged: the content isn't what was stored.
    """
    content = stored[: record.stored]
    if keys.cipher is not None:
        stored[record.stored : record.stored + TAG_BYTES] = record.tag
        sealed = stored[: record.stored + TAG_BYTES]
        try:
            if record.codec is Codec.RAW:
                keys.cipher.decrypt_into(record.nonce, sealed, record.bound, into)
                return
            content = memoryview(keys.cipher.decrypt(record.nonce, sealed, record.bound))
        except InvalidTag as e:
            raise Damaged(f"chunk {record.id.hex()[:16]} is damaged: its encrypted content was changed") from e
    if record.codec is Codec.ZSTD:
        _decompress(record, content, into)
    elif content.nbytes != into.nbytes:
        raise Damaged(f"chunk {record.id.hex()[:16]} is damaged: {content.nbytes} bytes instead of {into.nbytes}")
    else:
        into[:] = content
    if keys.cipher is None:
        check(record, into, keys)


def _decompress(record: Record, content: memoryview, into: memoryview) -> None:
    decompressor = zstd.ZstdDecompressor()
    try:
        unpacked = decompressor.decompress(content, max_length=record.raw + 1)
    except _ZSTD_ERRORS as e:
        raise Damaged(f"chunk {record.id.hex()[:16]} is damaged: {e}") from e
    if len(unpacked) != len(into):
        raise Damaged(f"chunk {record.id.hex()[:16]} is damaged: it has another length than its index says")
    into[:] = unpacked


def check(record: Record, content: memoryview, keys: Keys) -> None:
    """Raises Damaged unless this is the content that the record is called by."""
    if keys.chunk_id(content) != record.id:
        raise Damaged(f"chunk {record.id.hex()[:16]} is damaged: its content has another hash")
