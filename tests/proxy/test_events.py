"""An answer that was begun before there was one: comments while the model comes, then its events, or an error as one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.proxy.answering import BadAnswer
from kybernate.proxy.events import BegunAnswer
from kybernate.proxy.framing import ChunkedBody
from kybernate.proxy.refusals import Refusal

pytestmark = pytest.mark.unit

BEAT = b": waiting for the model\n\n"


def answer(
    content: bytes, *, kind: bytes = b"text/event-stream", status: bytes = b"200 OK", more: bytes = b""
) -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n" % (status, kind, len(content), more)
    return head + content


def content_of(raw: bytes) -> bytes:
    """Of the chunks of one body, which must be whole."""
    pieces: list[bytes] = []
    body = ChunkedBody()
    assert body.take(raw, pieces) == len(raw)
    assert body.done
    return b"".join(pieces)


def begun(*, minor: int = 1, keep_alive: bool = True) -> tuple[BegunAnswer, bytes]:
    made = BegunAnswer(minor=minor, keep_alive=keep_alive)
    return made, made.begin(b"x-request-id: 7\r\n").partition(b"\r\n\r\n")[2]


def test_the_head_says_that_events_come_and_that_nobody_shall_gather_them() -> None:
    head = BegunAnswer(minor=1, keep_alive=True).begin(b"x-request-id: 7\r\n").partition(b"\r\n\r\n")[0]
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert set(lines[1:]) == {
        b"content-type: text/event-stream",
        b"cache-control: no-cache",
        b"x-accel-buffering: no",
        b"transfer-encoding: chunked",
        b"x-request-id: 7",
    }


def test_a_client_of_http_1_0_gets_no_chunks_and_the_end_of_the_connection() -> None:
    made = BegunAnswer(minor=0, keep_alive=True)
    head, _, body = made.begin(b"").partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == BEAT
    assert made.beat() == BEAT
    assert made.close


def test_comments_and_then_the_servers_events_are_one_body() -> None:
    made, out = begun()
    out += made.beat()
    out += made.feed(answer(b"data: 1\n\ndata: [DONE]\n\n"))
    assert made.done
    assert content_of(out) == BEAT + BEAT + b"data: 1\n\ndata: [DONE]\n\n"


@given(st.lists(st.integers(0, 150), max_size=6))
def test_it_makes_no_difference_in_what_pieces_the_servers_answer_comes(cuts: list[int]) -> None:
    raw = answer(b"data: 1\n\n" * 5)
    made, out = begun()
    at = 0
    for cut in [*sorted(cut for cut in cuts if cut < len(raw)), len(raw)]:
        out += made.feed(raw[at:cut]) if cut > at else b""
        at = cut
    assert content_of(out) == BEAT + b"data: 1\n\n" * 5


def test_an_answer_that_is_no_stream_is_one_event() -> None:
    made, out = begun()
    out += made.feed(answer(b'{"a":\n1}', kind=b"application/json"))
    assert content_of(out) == BEAT + b'data: {"a":\ndata: 1}\n\n'


def test_an_empty_answer_is_no_event() -> None:
    made, out = begun()
    out += made.feed(answer(b"", kind=b"application/json"))
    assert content_of(out) == BEAT


def error_in(raw: bytes) -> dict[str, object]:
    event = content_of(raw).removeprefix(BEAT)
    assert event.startswith(b"event: error\ndata: ")
    assert event.endswith(b"\n\n")
    found: dict[str, object] = json.loads(event.removeprefix(b"event: error\ndata: "))["error"]
    return found


def test_a_refusal_comes_as_an_event_with_the_object_that_would_have_been_the_answer() -> None:
    made, out = begun()
    out += made.failed(Refusal(503, "hold_timeout", "it was not there"))
    found = error_in(out)
    assert (found["code"], found["message"], found["type"]) == ("hold_timeout", "it was not there", "server_error")


def test_an_error_of_the_servers_own_passes_as_it_is() -> None:
    made, out = begun()
    out += made.feed(
        answer(b'{"error": {"message": "too long", "code": 400}}', status=b"400 Bad Request", kind=b"text/json")
    )
    assert error_in(out) == {"message": "too long", "code": 400}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"gone wrong", "gone wrong", id="plain words"),
        pytest.param(b'{"detail": "no"}', '{"detail": "no"}', id="another object"),
        pytest.param(b'{"error": ""}', '{"error": ""}', id="an error that says nothing"),
        pytest.param(b"[" * 100_000, "[" * 4096, id="nested deeply, and long"),
        pytest.param(b"", "the model's server answered 500", id="nothing at all"),
        pytest.param(b"\xff", "�", id="no text"),
    ],
)
def test_an_error_in_other_words_becomes_one_in_ours(content: bytes, message: str) -> None:
    made, out = begun()
    out += made.feed(answer(content, status=b"500 Oops", kind=b"text/plain"))
    assert error_in(out)["message"] == message


def test_an_answer_that_nobody_can_read_is_refused() -> None:
    made, _ = begun()
    with pytest.raises(BadAnswer, match="answered in 'gzip', unasked"):
        made.feed(answer(b"x", more=b"content-encoding: gzip\r\n"))


def test_an_answer_that_is_coded_by_nothing_can_be_read() -> None:
    made, out = begun()
    out += made.feed(answer(b"data: 1\n\n", more=b"content-encoding: identity\r\n"))
    assert content_of(out) == BEAT + b"data: 1\n\n"


def test_a_large_answer_that_is_no_stream_is_not_kept() -> None:
    made, _ = begun()
    with pytest.raises(BadAnswer, match="more than 1 MiB that are no events"):
        made.feed(answer(bytes((1 << 20) + 1), kind=b"text/plain"))


def test_an_interim_answer_is_not_the_answer() -> None:
    made, out = begun()
    out += made.feed(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    assert not made.done
    out += made.feed(answer(b"data: 1\n\n"))
    assert content_of(out) == BEAT + b"data: 1\n\n"
