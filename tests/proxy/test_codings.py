"""Content-Encodings: which there are, and how a body is decoded in steps. Under fuzz: test_compressed.py."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.proxy.codings import ACCEPTED, STEP, BadCoding, Decoder, coding_of, is_known

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("field", "coding"),
    [
        (b"gzip", "gzip"),
        (b" GZip ", "gzip"),
        (b"", None),
        (b"identity", None),
        (b"Identity", None),
        (b"gzip, br", "gzip, br"),
        (b"\xff", "ÿ"),
    ],
)
def test_a_coding_is_its_name_in_small_letters_and_identity_is_none(field: bytes, coding: str | None) -> None:
    assert coding_of(field) == coding


def test_what_is_said_to_be_accepted_is_and_several_at_once_are_not() -> None:
    assert all(is_known(name) for name in ACCEPTED.split(", "))
    assert is_known("x-gzip")
    for other in ("compress", "gzip, br", "identity", ""):
        assert not is_known(other)


def decoded(coding: str, body: bytes, *, size_max: int = 1 << 30) -> tuple[bytes, int]:
    """And in how many steps."""
    decoder, steps = Decoder(coding, body, size_max=size_max), 1
    while not decoder.step():
        steps += 1
    assert decoder.size == len(decoder.decoded)
    return decoder.decoded, steps


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


@given(data=st.binary(max_size=300))
def test_deflate_is_understood_with_zlibs_head_and_without(data: bytes) -> None:
    assert decoded("deflate", zlib.compress(data))[0] == data
    assert decoded("deflate", raw_deflate(data))[0] == data


def test_a_step_gives_no_more_than_a_mebibyte() -> None:
    data = bytes(5 * STEP + 1)
    content, steps = decoded("gzip", gzip.compress(data))
    assert content == data
    assert steps >= 6


def test_a_body_of_exactly_the_limit_passes_and_a_byte_more_does_not() -> None:
    body = gzip.compress(b"x" * 1000)
    assert decoded("gzip", body, size_max=1000)[0] == b"x" * 1000
    with pytest.raises(OverflowError):
        decoded("gzip", body, size_max=999)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "br"])
def test_nothing_is_no_stream_of_any_coding(coding: str) -> None:
    with pytest.raises(BadCoding, match=f"{coding} that ends too early"):
        decoded(coding, b"")


@pytest.mark.parametrize("cut", [1, 8, 9])
def test_a_stream_without_its_end_says_so(cut: int) -> None:
    with pytest.raises(BadCoding, match="the body is gzip that ends too early"):
        decoded("gzip", gzip.compress(b"abc" * 100)[:-cut])


def test_what_is_something_else_says_which_coding_it_was_said_to_be() -> None:
    with pytest.raises(BadCoding, match="the body is no zstd, though its Content-Encoding says so"):
        decoded("zstd", gzip.compress(b"abc"))


def test_only_where_streams_may_follow_each_other_do_they() -> None:
    one, two = gzip.compress(b"one "), gzip.compress(b"two")
    assert decoded("gzip", one + two)[0] == b"one two"
    with pytest.raises(BadCoding, match="something behind its deflate"):
        decoded("deflate", zlib.compress(b"a") + zlib.compress(b"b"))
    with pytest.raises(BadCoding):
        decoded("gzip", one + b"no stream")
