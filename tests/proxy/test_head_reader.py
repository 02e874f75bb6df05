"""Heads in what a client sends: whole ones, halves, several at once, and those that can't become one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.proxy.head_reader import HeadReader
from kybernate.proxy.heads import HEAD_MAX, RequestHead
from kybernate.proxy.refusals import Refusal

pytestmark = pytest.mark.unit

HEAD = b"GET /health HTTP/1.1\r\nhost: here\r\n\r\n"


def paths(data: bytes) -> list[bytes]:
    """Of all heads in it, in pieces as they come."""
    reader, found = HeadReader(), []
    while (one := reader.next(data)) is not None:
        assert not isinstance(one, Refusal), one
        head, data = one
        found.append(head.path)
    assert reader.data == data
    return found


def test_a_whole_head_leaves_what_lies_behind_it() -> None:
    found = HeadReader().next(HEAD + b"rest")
    assert isinstance(found, tuple)
    head, rest = found
    assert isinstance(head, RequestHead)
    assert (head.method, head.path, rest) == (b"GET", b"/health", b"rest")


def test_several_at_once_are_read_in_their_order() -> None:
    assert paths(HEAD + HEAD.replace(b"health", b"next") + b"GET /half") == [b"/health", b"/next"]


@given(cut=st.integers(1, len(HEAD) - 1))
def test_half_a_head_is_kept_until_the_rest_is_there(cut: int) -> None:
    reader = HeadReader()
    assert reader.next(HEAD[:cut]) is None
    assert reader.data == HEAD[:cut]
    assert isinstance(reader.next(reader.clear() + HEAD[cut:]), tuple)
    assert reader.data == b""


def test_one_empty_line_before_a_request_is_customary_and_two_are_not() -> None:
    assert isinstance(HeadReader().next(b"\r\n" + HEAD), tuple)
    found = HeadReader().next(b"\r\n\r\n" + HEAD)
    assert isinstance(found, Refusal) or found is None or found[0].path != b"/health"


def test_a_head_that_is_too_large_is_refused_whether_it_has_an_end_or_not() -> None:
    for data in (b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_MAX, b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_MAX + b"\r\n\r\n"):
        found = HeadReader().next(data)
        assert isinstance(found, Refusal)
        assert (found.status, found.code) == (431, "head_too_large")
        assert str(HEAD_MAX) in found.message


def test_a_bare_line_feed_is_refused_before_the_head_is_whole() -> None:
    """Else the connection would wait for an end that the client takes to have sent."""
    found = HeadReader().next(b"GET / HTTP/1.1\nhost: here\n\n")
    assert isinstance(found, Refusal)
    assert (found.status, found.code) == (400, "bad_request")


def test_a_head_that_is_none_is_refused_with_its_reason() -> None:
    found = HeadReader().next(b"nonsense\r\n\r\n")
    assert isinstance(found, Refusal)
    assert found.status == 400
    assert found.message


def test_the_clock_of_a_head_begins_with_its_first_byte_and_not_with_each_further_one() -> None:
    reader = HeadReader()
    before = time.monotonic()
    reader.next(b"GET / HT")
    began = reader.since
    assert began >= before
    reader.next(b"GET / HTTP/1.1\r\n")
    assert reader.since == began, "a byte a second would else keep a connection for ever"
    reader.restart_clock()
    assert reader.since >= began


def test_what_is_sent_ahead_is_kept_in_order_up_to_64_kib() -> None:
    reader = HeadReader()
    assert reader.keep(b"a" * 65535)
    assert reader.keep(b"b")
    assert not reader.keep(b"c")
    assert reader.clear() == b"a" * 65535 + b"bc"
    assert reader.clear() == b""
