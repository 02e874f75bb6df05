"""A chunk's content to a record's bytes and back: compression only where it pays, and nothing comes back that wasn't stored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.store import Damaged, keys_of, tenant_name
from kybernate.store.coding import TAG_BYTES, check, compressed, decode, encrypt
from kybernate.store.memory import Buffer
from kybernate.store.packs import Codec, Record
from kybernate.store.tenants import ChunkId, Keys

pytestmark = pytest.mark.unit

PLAIN = keys_of(tenant_name("default"))
SECRET = keys_of(tenant_name("default"), b"k" * 32)
OTHER = keys_of(tenant_name("default"), b"o" * 32)
TEXT = b"weights and more weights, " * 4000
NOISE = random.Random(1).randbytes(100_000)


@pytest.fixture
def buffer() -> Iterator[Buffer]:
    made = Buffer()
    yield made
    made.close()


# -- compression ---------------------------------------------------------------------------------------------------------


def test_what_shrinks_is_compressed_and_what_does_not_is_left() -> None:
    packed = compressed(memoryview(TEXT), below=0.85)
    assert packed is not None
    assert len(packed) < len(TEXT) / 10
    assert compressed(memoryview(NOISE), below=0.85) is None


@pytest.mark.parametrize(
    ("content", "below"),
    [
        pytest.param(TEXT, 0.0, id="nobody wants it"),
        pytest.param(TEXT, -1.0, id="likewise"),
        pytest.param(b"a" * 511, 0.85, id="too short to be worth it"),
        pytest.param(NOISE[:60_000] + bytes(9_000), 0.85, id="too little would be saved"),
    ],
)
def test_when_it_does_not_pay(content: bytes, below: float) -> None:
    assert compressed(memoryview(content), below=below) is None


def test_a_large_chunk_is_judged_by_samples_and_then_by_itself() -> None:
    """Samples that shrink are no proof: what is left must be worth it, too."""
    size = 1 << 20
    misleading = bytearray(random.Random(2).randbytes(size))
    for k in range(4):
        misleading[k * size // 4 : k * size // 4 + (8 << 10)] = bytes(8 << 10)
    assert compressed(memoryview(misleading), below=0.85) is None


# -- and back ------------------------------------------------------------------------------------------------------------


def stored(content: bytes, keys: Keys, buffer: Buffer, *, codec: Codec) -> tuple[Record, bytearray]:
    """As a writer does it: the record, and its bytes with room for the tag behind them."""
    chunk = keys.chunk_id(memoryview(content))
    body = content
    if codec is Codec.ZSTD:
        packed = compressed(memoryview(content), below=100.0)
        assert packed is not None
        body = packed
    nonce, tag = bytes(12), bytes(16)
    if keys.encrypted:
        nonce, tag = encrypt(memoryview(body), buffer, chunk, raw=len(content), codec=codec, keys=keys)
        body = bytes(buffer.view[: len(body)])
    record = Record(chunk, 4096, len(body), len(content), codec, nonce, tag)
    return record, bytearray(body) + bytearray(TAG_BYTES)


CASES = pytest.mark.parametrize(
    ("keys", "codec"),
    [(PLAIN, Codec.RAW), (PLAIN, Codec.ZSTD), (SECRET, Codec.RAW), (SECRET, Codec.ZSTD)],
    ids=["as it is", "compressed", "encrypted", "both"],
)


@CASES
def test_what_was_stored_comes_back(keys: Keys, codec: Codec, buffer: Buffer) -> None:
    record, raw = stored(TEXT, keys, buffer, codec=codec)
    into = bytearray(len(TEXT))
    decode(record, memoryview(raw), memoryview(into), keys)
    assert bytes(into) == TEXT
    if keys.encrypted:
        assert TEXT[:64] not in bytes(raw), "and nobody can read it meanwhile"


@CASES
def test_a_changed_byte_never_comes_back_as_content(keys: Keys, codec: Codec, buffer: Buffer) -> None:
    """A frame of zstd has bits that mean nothing: only there it may go unnoticed, since what comes out is right."""
    content = TEXT[:5000]
    record, raw = stored(content, keys, buffer, codec=codec)
    found = 0
    for at in range(min(record.stored, 200)):
        broken = bytearray(raw)
        broken[at] ^= 0x10
        into = bytearray(len(content))
        try:
            decode(record, memoryview(broken), memoryview(into), keys)
        except Damaged as e:
            assert e.message.startswith(f"chunk {record.id.hex()[:16]} is damaged")  # noqa: PT017
            found += 1
        else:
            assert bytes(into) == content
    assert found >= min(record.stored, 200) - (4 if codec is Codec.ZSTD and not keys.encrypted else 0)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: Record(ChunkId(bytes(32)), r.offset, r.stored, r.raw, r.codec, r.nonce, r.tag), id="id"),
        pytest.param(lambda r: Record(r.id, r.offset, r.stored, r.raw, Codec.ZSTD, r.nonce, r.tag), id="codec"),
        pytest.param(lambda r: Record(r.id, r.offset, r.stored, r.raw, r.codec, bytes(12), r.tag), id="nonce"),
        pytest.param(lambda r: Record(r.id, r.offset, r.stored, r.raw, r.codec, r.nonce, bytes(16)), id="tag"),
    ],
)
def test_an_encrypted_record_that_is_called_otherwise_is_damaged(
    change: Callable[[Record], Record], buffer: Buffer
) -> None:
    record, raw = stored(TEXT, SECRET, buffer, codec=Codec.RAW)
    with pytest.raises(Damaged, match="encrypted content was changed"):
        decode(change(record), memoryview(raw), memoryview(bytearray(len(TEXT))), SECRET)


def test_nobody_reads_it_with_another_key(buffer: Buffer) -> None:
    record, raw = stored(TEXT, SECRET, buffer, codec=Codec.RAW)
    with pytest.raises(Damaged):
        decode(record, memoryview(raw), memoryview(bytearray(len(TEXT))), OTHER)


def test_a_bomb_ends_at_the_length_that_the_index_says(buffer: Buffer) -> None:
    record, raw = stored(bytes(1 << 20), PLAIN, buffer, codec=Codec.ZSTD)
    short = Record(record.id, record.offset, record.stored, 1000, record.codec)
    with pytest.raises(Damaged, match="another length than its index says"):
        decode(short, memoryview(raw), memoryview(bytearray(1000)), PLAIN)


def test_plain_content_of_another_length_is_damaged(buffer: Buffer) -> None:
    record, raw = stored(TEXT, PLAIN, buffer, codec=Codec.RAW)
    with pytest.raises(Damaged, match=f"{len(TEXT)} bytes instead of 10"):
        decode(record, memoryview(raw), memoryview(bytearray(10)), PLAIN)


def test_each_encryption_is_another_one(buffer: Buffer) -> None:
    """Of two that were equal a stranger would know that their contents are."""
    first = encrypt(memoryview(TEXT), buffer, ChunkId(bytes(32)), raw=len(TEXT), codec=Codec.RAW, keys=SECRET)
    content = bytes(buffer.view[: len(TEXT)])
    second = encrypt(memoryview(TEXT), buffer, ChunkId(bytes(32)), raw=len(TEXT), codec=Codec.RAW, keys=SECRET)
    assert first != second
    assert content != bytes(buffer.view[: len(TEXT)])


@given(st.binary(min_size=1, max_size=2000), st.binary(min_size=1, max_size=2000))
def test_content_is_right_only_if_it_is_what_the_record_is_called_by(content: bytes, other: bytes) -> None:
    record = Record(PLAIN.chunk_id(memoryview(content)), 4096, len(content), len(content), Codec.RAW)
    check(record, memoryview(content), PLAIN)
    if other != content:
        with pytest.raises(Damaged, match="its content has another hash"):
            check(record, memoryview(other), PLAIN)
