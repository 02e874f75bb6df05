"""How long a client may take, for what: heads, bodies that are read whole, bodies that pass through, answers."""

from __future__ import annotations

import json

import pytest
from tests.proxy.parts import Heard, Line, Parts, head_of

from kybernate.model.messages import Endpoint
from kybernate.proxy import patience
from kybernate.proxy.phases import Phase
from kybernate.proxy.request import Request

pytestmark = pytest.mark.unit


def test_a_head_has_ten_seconds_and_not_a_moment_more() -> None:
    assert patience.head_is_late(110.0, 100.0) is None
    refusal = patience.head_is_late(110.001, 100.0)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (408, "timeout")
    assert refusal.message == "the request's head was not there after 10 s"


def reading(sent: bytes = b"") -> Request:
    """One whose body is read whole, of which so much has come."""
    parts = Parts(Endpoint("m", 1))
    head = head_of(b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: 1000000")
    request = Request(Heard(), parts.services, head, key=None, request_id=b"1")
    request.begin(head, None, sent)
    assert request.phase is Phase.READING
    return request


def test_a_body_that_is_read_whole_has_half_a_minute_and_a_second_for_each_kilobyte() -> None:
    request = reading()
    at = request.arrived + patience.BODY_S
    assert patience.body_is_late(request, at, since=0) is None
    refusal = patience.body_is_late(request, at + 0.001, since=at)
    assert refusal is not None
    assert (refusal.status, refusal.message) == (408, "the request's body came too slowly")
    more = reading(b"x" * 5000)
    at = more.arrived + patience.BODY_S + 5
    assert patience.body_is_late(more, at, since=0) is None
    assert patience.body_is_late(more, at + 0.001, since=at) is not None


def passing(*, whole: bool) -> Request:
    """One that goes on as it comes, because its path says where to."""
    parts = Parts(Endpoint("m", 1, paths=("/m",)))
    parts.model().open()
    body = json.dumps({"a": 1}).encode()
    head = head_of(b"POST /m/x HTTP/1.1\r\nhost: here\r\ncontent-length: %d" % (len(body) + (0 if whole else 5)))
    request = Request(Heard(), parts.services, head, key=None, request_id=b"1")
    request.begin(head, parts.model(), body)
    parts.model().to_connect.pop()
    request.connected(Line().as_upstream)
    assert request.phase is Phase.SENT
    return request


def test_a_body_that_passes_may_stand_still_for_two_minutes_however_long_it_takes() -> None:
    request = passing(whole=False)
    assert patience.body_is_late(request, 1e6, since=1e6 - patience.STALL_S) is None
    refusal = patience.body_is_late(request, 1e6, since=1e6 - patience.STALL_S - 0.001)
    assert refusal is not None
    assert refusal.message == "no byte of the request's body came for 120 s"


def test_once_it_is_whole_a_body_is_never_late() -> None:
    assert patience.body_is_late(passing(whole=True), 1e9, since=0) is None


def test_an_answer_may_be_left_unread_for_five_minutes_but_not_where_others_wait_for_the_gpu() -> None:
    assert patience.unread_max_s(None) == patience.UNREAD_S
    assert patience.unread_max_s(reading()) == patience.UNREAD_S, "there is no answer yet"
    request = passing(whole=True)
    assert patience.unread_max_s(request) == patience.UNREAD_S
    assert request.backend is not None
    request.backend.queue.close(1, preempt=False)
    assert patience.unread_max_s(request) == patience.UNREAD_LEAVING_S
