"""Pack files as bytes: what is written is read again, and a flipped bit anywhere in header, index or trailer is found."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.types import CHUNK_BYTES
from kybernate.store import Damaged, TooNew, WrongKey, keys_of, tenant_name
from kybernate.store.memory import PAGE_BYTES
from kybernate.store.packs import (
    HEADER_BYTES,
    TRAILER_BYTES,
    VERSION,
    Codec,
    PackId,
    Record,
    bound,
    check_header,
    decode_index,
    decode_trailer,
    encode_end,
    encode_header,
)
from kybernate.store.tenants import ChunkId, Keys

pytestmark = pytest.mark.unit

PACK, OTHER = PackId("0123456789abcdef" * 2), PackId("f" * 32)
PLAIN = keys_of(tenant_name("default"))
SECRET = keys_of(tenant_name("default"), b"k" * 32)
KEYS = pytest.mark.parametrize("keys", [PLAIN, SECRET], ids=["without a key", "with a key"])


def record(number: int = 1, **given_: object) -> Record:
    made = Record(ChunkId(bytes([number]) * 32), HEADER_BYTES, 100, 100, Codec.RAW, bytes(12), bytes(16))
    return replace(made, **given_)  # type: ignore[arg-type]


def end_of(records: list[Record], keys: Keys, *, at: int = 3 * PAGE_BYTES) -> tuple[bytes, int]:
    """Index and trailer, and the size of the whole file."""
    end = encode_end(records, at=at, header=encode_header(PACK, keys), keys=keys)
    return end, at + len(end)


def read(end: bytes, size: int, keys: Keys, pack: PackId = PACK) -> list[Record]:
    trailer = decode_trailer(end[-TRAILER_BYTES:], pack, size)
    at = trailer.index_offset - (size - len(end))
    return decode_index(end[at : at + trailer.index_bytes], trailer, pack, keys)


# -- header --------------------------------------------------------------------------------------------------------------


@KEYS
def test_a_header_is_a_page_and_names_pack_and_key(keys: Keys) -> None:
    header = encode_header(PACK, keys)
    assert len(header) == HEADER_BYTES == PAGE_BYTES
    check_header(header, PACK, keys)
    check_header(header[:80], PACK, keys)


@given(st.integers(0, 79), st.integers(0, 7))
def test_a_flipped_bit_in_a_header_is_found(byte: int, bit: int) -> None:
    header = bytearray(encode_header(PACK, SECRET))
    header[byte] ^= 1 << bit
    with pytest.raises((Damaged, TooNew, WrongKey)):
        check_header(bytes(header), PACK, SECRET)


@pytest.mark.parametrize("content", [b"", b"\x89KYBPCK\n", bytes(PAGE_BYTES), b"x" * PAGE_BYTES])
def test_what_does_not_begin_like_a_pack_is_none(content: bytes) -> None:
    with pytest.raises(Damaged, match="doesn't begin like a pack"):
        check_header(content, PACK, PLAIN)


def test_a_pack_under_another_name_was_renamed() -> None:
    with pytest.raises(Damaged, match=f"pack {OTHER} says it is pack {PACK}: somebody renamed it"):
        check_header(encode_header(PACK, PLAIN), OTHER, PLAIN)


def test_a_pack_of_another_key_is_said_to_be_that_and_not_damaged() -> None:
    with pytest.raises(WrongKey, match=f"written with the key {PLAIN.fingerprint.hex()}, not with"):
        check_header(encode_header(PACK, PLAIN), PACK, SECRET)


@pytest.mark.parametrize(("version", "error"), [(VERSION + 1, TooNew), (0, Damaged)])
def test_another_format_is_told_from_damage(version: int, error: type[Exception]) -> None:
    fields = bytearray(encode_header(PACK, PLAIN)[:48])
    fields[8:12] = struct.pack("<I", version)
    with pytest.raises(error, match=f"format {version}"):
        check_header(bytes(fields) + blake3(bytes(fields)).digest(), PACK, PLAIN)


# -- index and trailer ---------------------------------------------------------------------------------------------------

RECORDS = st.builds(
    lambda id_, page, raw, part, codec, nonce, tag: Record(
        ChunkId(id_),
        HEADER_BYTES * page,
        raw if codec is Codec.RAW else max(1, raw * part // 100),
        raw,
        codec,
        nonce,
        tag,
    ),
    st.binary(min_size=32, max_size=32),
    st.integers(1, 1000),
    st.integers(1, CHUNK_BYTES),
    st.integers(1, 100),
    st.sampled_from(Codec),
    st.binary(min_size=12, max_size=12),
    st.binary(min_size=16, max_size=16),
)


@given(st.lists(RECORDS, max_size=20), st.booleans())
def test_an_index_is_read_as_it_was_written(records: list[Record], encrypted: bool) -> None:
    keys = SECRET if encrypted else PLAIN
    at = 2000 * PAGE_BYTES + CHUNK_BYTES
    end, size = end_of(records, keys, at=at)
    assert size % PAGE_BYTES == 0
    assert read(end, size, keys) == records


@KEYS
def test_a_flipped_bit_anywhere_in_index_or_trailer_is_found(keys: Keys) -> None:
    end, size = end_of([record(1), record(2, offset=2 * PAGE_BYTES)], keys)
    used = [*range(2 * 80), *range(len(end) - TRAILER_BYTES, len(end) - 8)]
    for byte in used:
        broken = bytearray(end)
        broken[byte] ^= 1
        if byte in range(len(end) - TRAILER_BYTES + 20, len(end) - TRAILER_BYTES + 24):
            continue  # a field of the trailer that means nothing yet
        with pytest.raises((Damaged, TooNew)):
            read(bytes(broken), size, keys)


def test_an_index_without_the_key_is_nobodys() -> None:
    """Else who has no key could put records of his own there."""
    end, size = end_of([record()], PLAIN)
    with pytest.raises(Damaged, match="its index is damaged"):
        read(end, size, SECRET)


def test_an_index_of_another_pack_is_not_this_ones() -> None:
    end, size = end_of([record()], SECRET)
    with pytest.raises(Damaged, match="its index is damaged"):
        read(end, size, SECRET, OTHER)


@pytest.mark.parametrize("change", [-PAGE_BYTES, -1, 1, PAGE_BYTES])
def test_a_file_of_another_length_is_cut_off_or_damaged(change: int) -> None:
    end, size = end_of([record()], PLAIN)
    with pytest.raises(Damaged, match=r"cut off|trailer is damaged"):
        decode_trailer(end[-TRAILER_BYTES:], PACK, size + change)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(record(offset=HEADER_BYTES - 1), id="in the header"),
        pytest.param(record(offset=3 * PAGE_BYTES - 99), id="into the index"),
        pytest.param(record(raw=0, stored=0), id="of nothing"),
        pytest.param(record(raw=CHUNK_BYTES + 1, codec=Codec.ZSTD), id="larger than a chunk"),
        pytest.param(record(raw=CHUNK_BYTES, stored=0, codec=Codec.ZSTD), id="a chunk out of nothing"),
        pytest.param(record(raw=99), id="raw, and of another length"),
        pytest.param(record(codec=7), id="in a coding that there isn't"),
    ],
)
def test_records_that_make_no_sense_are_refused_even_with_the_right_seal(wrong: Record) -> None:
    end, size = end_of([wrong], PLAIN)
    with pytest.raises(Damaged, match="its index makes no sense"):
        read(end, size, PLAIN)


def test_an_empty_pack_is_one_too() -> None:
    end, size = end_of([], PLAIN, at=HEADER_BYTES)
    assert read(end, size, PLAIN) == []


# -- what the cipher binds -----------------------------------------------------------------------------------------------


def test_the_cipher_binds_a_record_to_id_codec_and_length() -> None:
    one = record()
    assert one.bound == bound(one.id, one.raw, one.codec)
    others = [record(2), record(raw=101), record(codec=Codec.ZSTD)]
    assert len({each.bound for each in (one, *others)}) == 4
    assert record(offset=9 * PAGE_BYTES).bound == one.bound, "it may be moved to another pack"
