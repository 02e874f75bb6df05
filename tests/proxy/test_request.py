"""One request without a connection and without a server: what it asks of both, and that it is counted once."""

from __future__ import annotations

import hashlib
import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.proxy.parts import Heard, Line, Parts, head_of

from kybernate.model.messages import Endpoint, Key, Limits, Refuse
from kybernate.proxy.phases import Phase
from kybernate.proxy.request import Request

pytestmark = pytest.mark.unit

BODY = json.dumps({"model": "m", "stream": True}).encode()
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\ncontent-length: %d" % len(BODY)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class One:
    """A request and all that it touches."""

    def __init__(self, parts: Parts, head: bytes = CHAT, *, key: Key | None = None) -> None:
        self.parts = parts
        self.client = Heard()
        self.head = head_of(head)
        self.request = Request(self.client, parts.services, self.head, key=key, request_id=b"id-1")

    def begin(self, data: bytes = BODY) -> int:
        return self.request.begin(self.head, None, data)

    def connect(self) -> Line:
        line = Line()
        assert self.parts.model().to_connect.pop() is self.request
        self.request.connected(line.as_upstream)
        return line

    @property
    def status(self) -> int:
        (record,) = self.parts.counted.records
        return record.status


def test_an_answer_comes_back_and_is_counted_once() -> None:
    parts = Parts(Endpoint("m", 1))
    parts.model().open()
    one = One(parts)
    assert one.begin(BODY + b"next") == len(BODY), "what lies behind it is not its"
    line = one.connect()
    assert line.written.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert line.written.endswith(BODY)
    assert b"x-forwarded-for: 192.0.2.7\r\n" in line.written
    one.request.answer_data(ANSWER)
    assert one.client.written.endswith(b"hi")
    assert b"x-request-id: id-1\r\n" in one.client.written
    assert (one.client.kept, line.released) == (True, True)
    (record,) = parts.counted.records
    assert (record.status, record.model, record.tier, record.waited) == (200, "m", "warm", False)
    assert (record.bytes_in, record.bytes_out) == (len(BODY), len(one.client.written))
    assert parts.services.budget.bytes == 0
    assert parts.model().queue.idle


@given(cuts=st.lists(st.integers(0, len(BODY)), max_size=5))
def test_it_is_no_matter_in_which_pieces_the_body_comes(cuts: list[int]) -> None:
    parts = Parts(Endpoint("m", 1))
    parts.model().open()
    one = One(parts)
    first, *others = [BODY[a:b] for a, b in pairwise([0, *sorted(cuts), len(BODY)])]
    one.begin(first)
    for piece in others:
        one.request.client_data(piece)
    assert one.connect().written.endswith(b"\r\n\r\n" + BODY)


def test_one_that_waited_says_for_what() -> None:
    parts = Parts(Endpoint("m", 1))
    one = One(parts)
    one.begin()
    assert one.request.phase is Phase.HELD
    parts.model().open(waited_for="ram", seconds=0.25, victims=("other",))
    # Opened behind its arrival by more than any clock's step.
    assert one.parts.model().to_connect
    one.connect()
    one.request.answer_data(ANSWER)
    (record,) = parts.counted.records
    assert record.waited
    assert record.forwarded >= record.arrived


def test_a_client_that_hangs_up_leaves_nothing_behind() -> None:
    parts = Parts(Endpoint("m", 1))
    one = One(parts)
    one.begin()
    one.request.client_gone()
    assert one.status == 499
    assert parts.model().queue.idle
    assert (parts.services.budget.bytes, parts.services.budget.requests) == (0, 0)
    assert one.client.kept is None


def test_one_in_flight_takes_its_connection_along() -> None:
    parts = Parts(Endpoint("m", 1))
    parts.model().open()
    one = One(parts)
    one.begin()
    line = one.connect()
    one.request.client_gone()
    assert line.aborted
    assert parts.model().queue.idle


def test_a_refusal_has_its_id_and_its_wait() -> None:
    parts = Parts(Endpoint("m", 1))
    one = One(parts)
    one.begin()
    model = parts.model()
    model.run(model.queue.refuse(Refuse("m", 503, "paused by a person")))
    head, _, body = one.client.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"x-request-id: id-1" in head
    assert b"x-kybernate-wait-ms: " in head
    assert json.loads(body)["error"]["message"] == "paused by a person"
    assert one.client.kept is True
    assert parts.counted.failures == [("m", "model_unavailable")]


@pytest.mark.parametrize(
    ("body", "code"),
    [(b'{"model": "other"}', "model_not_found"), (b'{"x": 1}', "invalid_body"), (b"no JSON", "invalid_body")],
)
def test_a_body_that_names_no_model(body: bytes, code: str) -> None:
    parts = Parts(Endpoint("m", 1))
    one = One(parts, CHAT.replace(b"%d" % len(BODY), b"%d" % len(body)))
    one.begin(body)
    assert code.encode() in one.client.written
    assert one.client.kept is True
    assert parts.counted.failures == [("", code)]


def test_a_body_that_is_too_large_is_not_read() -> None:
    parts = Parts(Endpoint("m", 1), body_max=len(BODY) - 1)
    one = One(parts)
    assert one.begin() == 0
    assert one.status == 413
    assert one.client.kept is False, "where it ends nobody knows"


def test_a_key_that_is_taken_away_reaches_no_model() -> None:
    key = Key("somebody", hashlib.sha256(b"secret").hexdigest())
    other = Key("other", hashlib.sha256(b"other").hexdigest())
    parts = Parts(Endpoint("m", 1), keys=(key,))
    one = One(parts, key=key)
    one.begin()
    parts.configure(Endpoint("m", 1), keys=(key, other))
    assert one.request.phase is Phase.HELD
    parts.configure(Endpoint("m", 1), keys=(other,))
    assert one.status == 401
    assert parts.model().queue.idle


def test_a_client_of_a_stream_hears_that_it_is_waited_for() -> None:
    parts = Parts(Endpoint("m", 1), heartbeat_s=5)
    one = One(parts)
    one.begin()
    now = time.monotonic()
    one.request.look(now, left=0)
    assert one.client.written == b""
    one.request.look(now + 5.1, left=0)
    assert one.client.written.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
    assert one.client.written.count(b": waiting") == 1
    one.request.look(now + 6, left=0)
    assert one.client.written.count(b": waiting") == 1
    one.request.look(now + 10.3, left=0)
    assert one.client.written.count(b": waiting") == 2


def test_an_answer_that_stands_still_is_said_to() -> None:
    parts = Parts(Endpoint("m", 1, limits=Limits(stream_idle_s=10)))
    parts.model().open()
    one = One(parts)
    one.begin()
    line = one.connect()
    one.request.answer_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
    now = time.monotonic()
    one.request.look(now, left=0)
    one.request.look(now + 9, left=0)
    assert not one.request.still
    one.request.look(now + 11, left=0)
    assert one.request.still
    assert parts.model().load(now).still == 1
    model = parts.model()
    model.run(model.queue.close(1, preempt=True))
    assert line.aborted
    assert one.client.was_cut
    assert model.load(now).still == 0


def test_a_connection_that_breaks_before_it_was_read_is_tried_again() -> None:
    parts = Parts(Endpoint("m", 1))
    parts.model().open()
    one = One(parts)
    one.begin()
    line = one.connect()
    line.used = 2
    line.nothing_accepted = True  # type: ignore[attr-defined]
    one.request.answer_end(None)
    again = one.connect()
    assert again.written == line.written
    one.request.answer_end(ConnectionResetError("gone"))
    assert one.status == 502
    assert b"gone" in one.client.written
