"""Where bodies end. Under fuzz against a second parser: test_heads.py; here each rule by its name."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.proxy.framing import BadBody, ChunkedBody, Framing, LengthBody, OpenBody

pytestmark = pytest.mark.unit


def take(framing: Framing, *pieces: bytes) -> tuple[int, bytes]:
    """How many bytes belong to the body, and its content."""
    payload: list[bytes] = []
    return sum(framing.take(piece, payload) for piece in pieces), b"".join(payload)


# -- a length ------------------------------------------------------------------------------------------------------------


def test_a_body_of_no_length_is_done_before_it_begins() -> None:
    body = LengthBody(0)
    assert body.done
    assert take(body, b"GET / HTTP/1.1") == (0, b"")


def test_a_length_takes_exactly_its_bytes_and_leaves_the_next_message() -> None:
    body = LengthBody(5)
    assert take(body, b"ab") == (2, b"ab")
    assert not body.done
    assert take(body, b"cdeGET") == (3, b"cde")
    assert body.done
    assert take(body, b"GET") == (0, b"")


def test_content_that_nobody_wants_is_counted_all_the_same() -> None:
    assert LengthBody(3).take(b"abc") == 3
    assert OpenBody().take(b"abc") == 3
    assert ChunkedBody().take(b"3\r\nabc\r\n0\r\n\r\nx") == 13


def test_a_body_until_the_end_takes_everything_and_is_never_done() -> None:
    body = OpenBody()
    assert take(body, b"", b"abc", b"\r\n\r\n") == (7, b"abc\r\n\r\n")
    assert not body.done


# -- chunks --------------------------------------------------------------------------------------------------------------

CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


def chunked(chunks: list[bytes], *, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


@given(chunks=CHUNKS, cuts=st.lists(st.integers(0, 300), max_size=6), behind=st.binary(max_size=10))
def test_wherever_it_is_cut_the_content_and_the_end_are_the_same(
    chunks: list[bytes], cuts: list[int], behind: bytes
) -> None:
    raw = chunked(chunks)
    sent = raw + behind
    places = sorted({0, *(cut for cut in cuts if cut < len(sent)), len(sent)})
    body, taken = ChunkedBody(), 0
    payload: list[bytes] = []
    for begin, end in pairwise(places):
        if not body.done:
            taken += body.take(sent[begin:end], payload)
    assert body.done
    assert taken == len(raw)
    assert b"".join(payload) == b"".join(chunks)


@pytest.mark.parametrize("size", [b"a", b"A", b"0a", b"000000000000000"[:14] + b"a"])
def test_a_size_is_hexadecimal_in_either_case_with_zeros_before_it(size: bytes) -> None:
    body = ChunkedBody()
    assert take(body, size + b"\r\n0123456789\r\n0\r\n\r\n")[1] == b"0123456789"
    assert body.done


@pytest.mark.parametrize("extension", [b";", b";name=value", b';a="b c"', b";\t\x80\xff"])
def test_an_extension_of_a_chunk_is_passed_over(extension: bytes) -> None:
    body = ChunkedBody()
    assert take(body, b"3" + extension + b"\r\nabc\r\n0" + extension + b"\r\n\r\n")[1] == b"abc"
    assert body.done


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        pytest.param(b"\r\n", "no number", id="no size"),
        pytest.param(b"x\r\n", "no number", id="no digit"),
        pytest.param(b"0x3\r\n", "no number", id="as in a program"),
        pytest.param(b"-3\r\n", "no number", id="a sign"),
        pytest.param(b" 3\r\n", "no number", id="a blank before"),
        pytest.param(b"3 \r\n", "no number", id="a blank behind"),
        pytest.param(b"1_0\r\n", "no number", id="an underscore"),
        pytest.param(b"1" * 16 + b"\r\n", "no number", id="more than fits"),
        pytest.param(b"3;\x00\r\n", "no number", id="a control character in an extension"),
        pytest.param(b"3\n", "without carriage return", id="a bare line feed"),
        pytest.param(b"3\r\nabcd\r\n", "longer than it says", id="a chunk that is longer"),
        pytest.param(b"3\r\nabc\n0\r\n", "longer than it says", id="a chunk that ends with a line feed"),
        pytest.param(b"3\r\nabc\rx", "longer than it says", id="half a line end"),
        pytest.param(b"0" * 1025, "without an end", id="a line that is too long"),
        pytest.param(b"0\r\nno field\r\n", "may not stand behind", id="a trailer without a colon"),
        pytest.param(b"0\r\na b: c\r\n", "may not stand behind", id="a name with a blank"),
        pytest.param(b"0\r\n folded: x\r\n", "may not stand behind", id="a folded line"),
        pytest.param(b"0\r\na: \x01\r\n", "may not stand behind", id="a control character"),
        pytest.param(b"0\r\na: b\n\r\n", "without carriage return", id="a trailer with a line feed"),
    ],
)
def test_what_two_parsers_could_read_in_two_ways_is_an_error_in_whatever_pieces(raw: bytes, why: str) -> None:
    for size in (1, 7, len(raw)):
        with pytest.raises(BadBody, match=why):
            take(ChunkedBody(), *(raw[at : at + size] for at in range(0, len(raw), size)))


@pytest.mark.parametrize(
    "name",
    [
        "Content-Length",
        "TRANSFER-ENCODING",
        "host",
        "Authorization",
        "x-api-key",
        "X_Api_Key",
        "Cookie",
        "te",
        "Trailer",
    ],
)
def test_a_trailer_can_not_change_what_was_read_before_it(name: str) -> None:
    with pytest.raises(BadBody, match="may not stand behind a body"):
        ChunkedBody().take(b"0\r\n%b: 1\r\n\r\n" % name.encode())


def test_other_trailers_pass_and_the_end_is_behind_them() -> None:
    body = ChunkedBody()
    raw = b"2\r\nhi\r\n0\r\nx-checksum: 1\r\nempty:\r\n\r\n"
    assert take(body, raw + b"GET") == (len(raw), b"hi")
    assert body.done


def test_trailers_have_16_kib_together() -> None:
    line = b"x: " + b"y" * 995 + b"\r\n"
    assert len(line) == 1000
    fits = ChunkedBody()
    fits.take(b"0\r\n" + line * 16 + b"\r\n")
    assert fits.done
    with pytest.raises(BadBody, match="more than 16 KiB"):
        ChunkedBody().take(b"0\r\n" + line * 17 + b"\r\n")


def test_a_size_line_may_have_1024_bytes() -> None:
    line = b"3;" + b"x" * 1020 + b"\r\n"
    assert len(line) == 1024
    assert take(ChunkedBody(), line + b"abc")[1] == b"abc"
    with pytest.raises(BadBody, match="without an end"):
        ChunkedBody().take(b"3;" + b"x" * 1021 + b"\r\nabc")
