"""Heads and bodies under fuzz: what is accepted is read alike by a parser written from the standard, whatever the input."""

from __future__ import annotations

import contextlib
import itertools
import re

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from kybernate.proxy.answering import AnswerReader, BadAnswer
from kybernate.proxy.framing import BadBody, ChunkedBody, LengthBody
from kybernate.proxy.heads import BadHead, parse_request, parse_response, request_for_upstream

pytestmark = pytest.mark.unit

TOKEN = st.text("abcXYZ019-!~", min_size=1, max_size=12).map(str.encode)
VALUE = st.text("".join(map(chr, range(0x21, 0x7F))) + "é \t", max_size=20).map(lambda t: t.encode("latin-1").strip())
FIELDS = st.lists(st.tuples(TOKEN.map(lambda n: b"x-" + n), VALUE), max_size=8)
PIECES = st.sampled_from(
    [
        *(
            b"GET",
            b"POST",
            b" ",
            b"  ",
            b"/a",
            b"*",
            b"http://h/",
            b"HTTP/1.1",
            b"HTTP/1.0",
            b"\r\n",
            b"\n",
            b"\r",
            b"\0",
        ),
        *(
            b":",
            b": ",
            b"host: a",
            b"Content-Length: 5",
            b"content-length: 0",
            b"Transfer-Encoding: chunked",
            b"\t",
            b"\x0b",
        ),
        *(
            b"transfer-encoding : chunked",
            b"Connection: close",
            b"connection: transfer-encoding",
            b"upgrade: websocket",
        ),
        *(b"\x80", b"x: y", b","),
    ]
)


def strict(raw: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """RFC 9112 by its grammar; a ValueError for anything else."""
    match = re.fullmatch(rb"([!-~]+) ([!-~]+) HTTP/1\.[01]\r\n((?:[^\r\n]*\r\n)*?)\r\n", raw)
    if match is None:
        raise ValueError("not the grammar")
    fields = []
    for line in match[3].split(b"\r\n")[:-1]:
        field = re.fullmatch(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\0\r\n]*?)[ \t]*", line)
        if field is None:
            raise ValueError("not the grammar")
        fields.append((field[1].lower(), field[2]))
    return match[1], match[2], fields


@given(FIELDS)
def test_fields_arrive_as_they_were(fields: list[tuple[bytes, bytes]]) -> None:
    raw = b"GET /x?y HTTP/1.1\r\nhost: h\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    head = parse_request(raw)
    sent = request_for_upstream(head, client=b"::1", secure=True, request_id=b"id")
    method, target, seen = strict(sent)
    assert (method, target) == (b"GET", b"/x?y")
    ours = {b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id"}
    assert [field for field in seen if field[0] not in ours] == [(name.lower(), value) for name, value in fields]


@settings(max_examples=1500)
@given(st.lists(PIECES, max_size=14), st.booleans())
@example([b"GET /a HTTP/1.1\r\nhost: a\r\nContent-Length: 5\r\nconnection: content-length"], True)
@example([b"GET /a HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\nconnection: transfer-encoding"], True)
def test_whatever_is_accepted_is_the_grammar(pieces: list[bytes], start: bool) -> None:
    raw = (b"POST /a HTTP/1.1\r\nhost: h\r\n" if start else b"") + b"".join(pieces) + b"\r\n\r\n"
    raw = raw[: raw.find(b"\r\n\r\n") + 4]
    try:
        head = parse_request(raw)
    except BadHead:
        return
    _, _, fields = strict(raw)
    assert [(n, v) for n, v in head.fields] == fields
    sent = request_for_upstream(head, client=b"c", secure=False, request_id=b"i")
    _, target, seen = strict(sent)
    assert target == head.target
    lengths = [value for name, value in seen if name == b"content-length"]
    codings = [value for name, value in seen if name == b"transfer-encoding"]
    assert len(lengths) + len(codings) <= 1, "one statement of the length at most"
    assert codings == ([b"chunked"] if head.chunked else [])
    assert lengths == ([] if head.length is None else [b"%d" % head.length])
    assert sum(name == b"host" for name, _ in seen) == 1
    parse_request(sent)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_read(noise: bytes) -> None:
    for raw in (noise, b"GET / HTTP/1.1\r\nhost: a\r\n" + noise + b"\r\n\r\n"):
        raw = raw[: raw.find(b"\r\n\r\n") + 4]
        try:
            parse_request(raw)
        except BadHead:
            continue
        strict(raw)
    for raw in (noise, b"HTTP/1.1 200 OK\r\n" + noise + b"\r\n\r\n"):
        with contextlib.suppress(BadHead):
            parse_response(raw)


CHUNKS = st.lists(st.binary(min_size=1, max_size=50), max_size=6)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({min(place, len(data)) for place in at} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(
    CHUNKS,
    st.lists(st.integers(0, 400), max_size=10),
    st.binary(max_size=20),
    st.sampled_from([b"", b";a=b", b';x="y z"']),
)
def test_a_chunked_body_ends_where_it_ends(
    chunks: list[bytes], places: list[int], behind: bytes, extension: bytes
) -> None:
    body = b"".join(b"%X%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks) + b"0\r\nx-t: v\r\n\r\n"
    payload: list[bytes] = []
    framing, taken = ChunkedBody(), 0
    for piece in cut(body + behind, places):
        if framing.done:
            break
        taken += framing.take(piece, payload)
    assert framing.done
    assert taken == len(body)
    assert b"".join(payload) == b"".join(chunks)


def reference(data: bytes) -> tuple[bytes, int] | None:
    """Decodes strictly; None: broken or not whole."""
    content, at = b"", 0
    while True:
        size = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?\r\n").match(data, at)
        if size is None:
            return None
        length, at = int(size[1], 16), size.end()
        if not length:
            end = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n)*\r\n").match(data, at)
            return None if end is None else (content, end.end())
        content += data[at : at + length]
        if data[at + length : at + length + 2] != b"\r\n":
            return None
        at += length + 2


@settings(max_examples=1500)
@given(
    st.lists(
        st.sampled_from([b"0", b"1", b"a", b"5", b"\r\n", b"\n", b"\r", b";", b"x", b" ", b"x: y", b"\0", b"hello"]),
        max_size=16,
    ),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_two_parsers_agree_where_a_body_ends(pieces: list[bytes], places: list[int]) -> None:
    data = b"".join(pieces)
    payload: list[bytes] = []
    framing, taken = ChunkedBody(), 0
    try:
        for piece in cut(data, places):
            if not framing.done:
                taken += framing.take(piece, payload)
    except BadBody:
        assert reference(data) is None
        return
    if framing.done:
        assert reference(data) == (b"".join(payload), taken)
    else:
        assert reference(data) is None


@given(st.integers(0, 100), st.lists(st.integers(0, 120), max_size=5))
def test_a_body_of_known_length(length: int, places: list[int]) -> None:
    framing, taken = LengthBody(length), 0
    for piece in cut(b"x" * 110, places):
        taken += framing.take(piece)
    assert framing.done
    assert taken == length


@given(CHUNKS, st.lists(st.integers(0, 500), max_size=8), st.booleans())
def test_answers_pass_in_whatever_pieces_they_come(chunks: list[bytes], places: list[int], old: bool) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    raw = b"HTTP/1.1 103 Early\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-a: b\r\n\r\n" + body
    reader = AnswerReader(head_only=False, minor=0 if old else 1, keep_alive=not old, upgrade=False)
    reader.extra = b"x-ours: 1\r\n"
    out = b"".join(reader.feed(piece) for piece in cut(raw, places))
    assert reader.done
    assert reader.reusable
    head, _, rest = out.rpartition(b"x-ours: 1\r\n\r\n")
    assert rest == (b"".join(chunks) if old else body)
    assert (b"103" in head) is not old


@settings(max_examples=500)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_answers_of_noise(noise: bytes, places: list[int]) -> None:
    reader = AnswerReader(head_only=False, minor=1, keep_alive=True, upgrade=False)
    try:
        for piece in cut(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n" + noise, places):
            if not reader.done:
                reader.feed(piece)
    except BadAnswer:
        assert not reader.done


def test_a_connection_field_can_not_remove_what_protects() -> None:
    head = parse_request(
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: x-forwarded-for, content-type, x-a\r\ncontent-type: t\r\nx-a: 1\r\n\r\n"
    )
    sent = request_for_upstream(head, client=b"1.2.3.4", secure=False, request_id=b"i")
    assert b"x-forwarded-for: 1.2.3.4\r\n" in sent
    assert b"content-type: t\r\n" in sent
    assert b"x-a" not in sent


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_status_passes(status: int) -> None:
    reader = AnswerReader(head_only=True, minor=1, keep_alive=True, upgrade=False)
    assert reader.feed(b"HTTP/1.1 %d \r\ncontent-length: 5\r\n\r\n" % status).startswith(b"HTTP/1.1 %d" % status)
    assert reader.status == status
