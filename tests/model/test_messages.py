"""The wire between agent and workers: what is said is heard as it was said, and a newer or older end is understood."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.messages import (
    LINE_MAX,
    Close,
    Configure,
    Drained,
    End,
    Endpoint,
    Hello,
    Key,
    Limits,
    Listening,
    Load,
    Message,
    Open,
    Refuse,
    Share,
    Status,
    decode,
    encode,
)

pytestmark = pytest.mark.unit

MESSAGES: list[Message] = [
    Configure(),
    Configure(
        endpoints=(
            Endpoint(
                "a", 8000, names=("a:latest", "a-7b"), hosts=("a.example",), limits=Limits(concurrency=4, queue=0)
            ),
            Endpoint("b", 8001, paths=("/b",), health="/health", limits=Limits(stream_idle_s=None, first_byte_s=3.5)),
        ),
        keys=(Key("client", "0" * 64, models=("a",)),),
        hosts=("node.example",),
        origins=("*",),
        heartbeat_s=15.0,
        record="/var/log/trace.jsonl",
    ),
    Open("a", 7, 1234, waited_for="nvme", seconds=2.25, victims=("b", "c")),
    Open("a", 8, None),
    Close("a", 7),
    Close("a", 7, preempt=True),
    Share("a", 3),
    Status("a", "paused", tier="ram", expected_s=0.5),
    Refuse("a", 503, "its program ended", retry_after_s=4.0),
    End(),
    Hello(3, 4242, open_epochs={"a": 7, "b": 9}, listening=True),
    Listening(),
    Load("a", 7, 2, 0.25, 1, 10, 7, service_s=1.5, still=1),
    Drained("a", 7),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_said_is_heard_as_it_was_said(message: Message) -> None:
    line = encode(message)
    assert decode(line) == message
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1, "one message is one line"


def test_a_line_end_inside_a_text_does_not_end_the_line() -> None:
    message = Refuse("a", 503, "it said:\nfirst\r\nsecond\u2028third", retry_after_s=None)
    assert encode(message).count(b"\n") == 1
    assert decode(encode(message)) == message


def test_every_kind_has_an_example_here_and_its_own_word() -> None:
    kinds = {type(message) for message in MESSAGES}
    assert len({kind.kind for kind in kinds}) == len(kinds) == 11


def test_a_kind_of_a_newer_version_is_nothing() -> None:
    assert decode(b'{"kind": "rebalance", "model": "a"}\n') is None
    assert decode(b'{"model": "a"}\n') is None


def test_fields_of_a_newer_version_are_left_out() -> None:
    assert decode(b'{"kind": "share", "model": "a", "concurrency": 2, "burst": 9}') == Share("a", 2)
    nested = {"kind": "configure", "endpoints": [{"model": "a", "port": 1, "new": [], "limits": {"queue": 5, "x": 1}}]}
    assert decode(json.dumps(nested).encode()) == Configure(endpoints=(Endpoint("a", 1, limits=Limits(queue=5)),))


def test_fields_that_an_older_version_does_not_know_have_their_defaults() -> None:
    heard = decode(b'{"kind": "hello", "worker": 1, "pid": 2}')
    assert heard == Hello(1, 2, open_epochs={}, listening=False)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="an empty line"),
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b"3", id="a number"),
        pytest.param(b'"share"', id="a text"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b'{"kind": "share", "model": "a"}', id="a field is missing"),
        pytest.param(b'{"kind": "configure", "endpoints": [{"model": "a"}]}', id="a field of a part is missing"),
    ],
)
def test_what_is_no_message_is_one_error(line: bytes) -> None:
    with pytest.raises(ValueError):
        decode(line)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match=r"a Share lacks something: .*concurrency"):
        decode(b'{"kind": "share", "model": "a"}')


@given(
    st.builds(
        Load,
        model=st.text(max_size=80),
        epoch=st.integers(0, 1 << 60),
        waiting=st.integers(0, 1 << 30),
        oldest_s=st.none() | st.floats(0, 1e9),
        in_flight=st.integers(0, 1 << 30),
        begun=st.integers(0, 1 << 60),
        ended=st.integers(0, 1 << 60),
        service_s=st.none() | st.floats(0, 1e9),
        still=st.integers(0, 1 << 30),
    )
)
def test_any_load_is_heard_as_it_was_said(load: Load) -> None:
    assert decode(encode(load)) == load


def test_thousands_of_models_are_one_message() -> None:
    endpoints = tuple(
        Endpoint(f"model-{k}", 8000 + k, names=(f"organisation/model-{k}-instruct",), hosts=(f"{k}.example",))
        for k in range(2000)
    )
    line = encode(Configure(endpoints=endpoints))
    assert len(line) < LINE_MAX
    assert decode(line) == Configure(endpoints=endpoints)


def test_a_message_can_not_be_changed_after_it_was_made() -> None:
    message: Any = Share("a", 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.concurrency = 2
