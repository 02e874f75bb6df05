"""A body on its way: what belongs to it, what of it is kept on whose account, and that nothing stays booked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.proxy.body import AHEAD_MAX, NotTaken, RequestBody, chunk
from kybernate.proxy.heads import RequestHead, parse_request
from kybernate.proxy.held import HeldBudget
from kybernate.proxy.refusals import too_large

pytestmark = pytest.mark.unit


def head(framing: bytes = b"content-length: 5") -> RequestHead:
    return parse_request(
        b"POST /v1/chat HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n" % (framing + b"\r\nx: y" if framing else b"x: y")
    )


def body(
    framing: bytes = b"content-length: 5", *, size_max: int = 1000, room: int = 1000
) -> tuple[RequestBody, HeldBudget]:
    budget = HeldBudget(requests=10, size_bytes=room)
    return RequestBody(head(framing), budget, size_max=size_max), budget


@pytest.mark.parametrize("framing", [b"", b"content-length: 0"])
def test_a_request_without_a_body_is_done_at_once(framing: bytes) -> None:
    made, _ = body(framing)
    assert made.done
    assert made.take(b"the next request", None) == 0


def test_what_comes_before_there_is_a_connection_is_kept_ahead_and_booked() -> None:
    made, budget = body()
    assert made.take(b"he", None) == 2
    assert not made.done
    assert made.take(b"llo, and the next", None) == 3, "what is behind it isn't its own"
    assert (made.done, made.ahead, budget.bytes) == (True, [b"he", b"llo"], 5)
    made.release()
    assert (made.ahead, budget.bytes) == ([], 0)


def test_a_body_that_names_the_model_is_kept_without_its_chunks() -> None:
    made, budget = body(b"transfer-encoding: chunked")
    made.content = []
    raw = chunk(b'{"model"') + chunk(b': "a"}') + b"0\r\n\r\n"
    assert made.take(raw + b"GET", None) == len(raw)
    assert made.done
    assert b"".join(made.content) == b'{"model": "a"}'
    assert budget.bytes == len(raw), "what lies in memory counts as it came"


@pytest.mark.parametrize("framing", [b"content-length: 2000", b"transfer-encoding: chunked"])
def test_a_body_beyond_the_limit_is_refused(framing: bytes) -> None:
    made, _ = body(framing, room=10_000)
    with pytest.raises(NotTaken) as refused:
        made.take(chunk(b"x" * 1001) if b"chunked" in framing else b"x" * 1001, None)
    assert refused.value.refusal == too_large(1000)
    assert not refused.value.whole, "the connection can't go on"


def test_a_limit_is_said_with_its_bytes() -> None:
    assert too_large(64).message == "a body may have 64 bytes here"
    assert too_large(64, "a body, once decoded,").message == "a body, once decoded, may have 64 bytes here"
    assert too_large(64).status == 413


def test_a_body_for_which_there_is_no_memory_is_refused_and_the_next_request_may_follow() -> None:
    made, budget = body(room=4)
    made.content = []
    with pytest.raises(NotTaken) as refused:
        made.take(b"hello", None)
    assert (refused.value.refusal.status, refused.value.refusal.code) == (429, "held_full")
    assert (refused.value.used, refused.value.whole) == (5, True)
    made.release()
    assert budget.bytes == 0


def test_a_body_whose_framing_is_broken_is_refused_with_all_that_came() -> None:
    made, _ = body(b"transfer-encoding: chunked")
    with pytest.raises(NotTaken) as refused:
        made.take(b"zz\r\n", None)
    assert (refused.value.refusal.status, refused.value.refusal.code, refused.value.used) == (400, "bad_body", 4)


def test_what_was_made_of_it_is_on_the_same_account() -> None:
    made, budget = body(room=100)
    assert made.keep(60)
    assert not made.keep(41)
    made.give_back(20)
    assert budget.bytes == 40
    made.release()
    assert budget.bytes == 0


def test_much_is_more_than_is_taken_ahead() -> None:
    made, _ = body(b"content-length: 1000000", size_max=1 << 30, room=1 << 30)
    made.take(bytes(AHEAD_MAX), None)
    assert not made.is_much_ahead
    made.take(b"x", None)
    assert made.is_much_ahead


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=8), st.lists(st.integers(1, 400), max_size=8))
def test_whatever_pieces_it_comes_in_it_is_kept_in_order_and_all_of_it_is_given_back(
    chunks: list[bytes], cuts: list[int]
) -> None:
    raw = b"".join(map(chunk, chunks)) + b"0\r\n\r\n"
    made, budget = body(b"transfer-encoding: chunked", size_max=1 << 20, room=1 << 20)
    at = 0
    for cut in [*sorted(set(cuts)), len(raw)]:
        piece = raw[at : min(cut, len(raw))]
        if piece:
            assert made.take(piece, None) == len(piece)
            at += len(piece)
    assert made.done
    assert b"".join(made.ahead) == raw
    assert budget.bytes == len(raw)
    made.release()
    assert budget.bytes == 0
