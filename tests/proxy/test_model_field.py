"""The `model` in a body of JSON: found whatever else is in it, and changed without touching anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.proxy.model_field import BadName, model_in, wants_events, with_model

pytestmark = pytest.mark.unit

DEEP = b'{"x": ' + b"[" * 1_000_000

NUMBERS = st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model": "a"}', "a"),
        (b' {"messages": [{"model": "inner"}], "model": "a"} ', "a"),
        (b'{"model": "org\\/a\\u00e4"}', "org/aä"),
        (b'{"model": ""}', ""),
        (b'{"model": "first", "model": "last"}', "last"),
    ],
)
def test_the_model_of_the_object_itself_is_found(body: bytes, name: str) -> None:
    assert model_in(body) == name


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"{}", "you must provide a model parameter", id="none"),
        pytest.param(b'{"model": null}', "you must provide a model parameter", id="nothing"),
        pytest.param(b'{"model": 7}', "no JSON object with a model", id="a number"),
        pytest.param(b"[]", "no JSON object with a model", id="a list"),
        pytest.param(b"", "no JSON object with a model", id="an empty body"),
        pytest.param(b'{"model": "a"', "no JSON object with a model", id="cut off"),
        pytest.param(b'{"model": "a"} x', "no JSON object with a model", id="something behind it"),
        pytest.param(b'{"model": "\xff"}', "no JSON object with a model", id="no text"),
        pytest.param(DEEP, "nested too deeply", id="nested deeply"),
    ],
)
def test_a_body_that_names_none_is_told_so(body: bytes, words: str) -> None:
    with pytest.raises(BadName, match=words):
        model_in(body)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5), st.text(max_size=20), st.text(max_size=20))
def test_another_name_changes_nothing_else(content: dict[str, Any], name: str, new: str) -> None:
    body = json.dumps(content | {"model": name}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    changed = json.loads(with_model(body, new))
    assert changed == json.loads(body) | {"model": new}
    assert model_in(with_model(body, new)) == new


def test_numbers_stay_as_they_were_written() -> None:
    body = b'{"a": 1.10, "b": 1e5, "c": 123456789012345678901234567890, "model": "x", "d":"\\u00e4"}'
    changed = with_model(body, "y")
    for literal in (b"1.10", b"1e5", b"123456789012345678901234567890", b'"\\u00e4"'):
        assert literal in changed


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", DEEP])
def test_what_is_no_object_stays_as_it_is(body: bytes) -> None:
    assert with_model(body, "y") == body


@pytest.mark.parametrize(
    ("body", "wants"),
    [
        (b'{"stream": true}', True),
        (b'{"stream": false}', False),
        (b"{}", False),
        (b'{"stream": 1}', False),
        (b'{"stream": "true"}', False),
        (b'{"a": {"stream": true}}', False),
        (b"", False),
        (DEEP, False),
    ],
)
def test_who_wants_a_stream_of_events_says_true(body: bytes, *, wants: bool) -> None:
    assert wants_events(body) is wants


@given(st.binary(max_size=60))
def test_no_body_makes_it_fail(body: bytes) -> None:
    assert isinstance(wants_events(body), bool)
    assert isinstance(with_model(body, "x"), bytes)
    try:
        name = model_in(body)
    except BadName:
        name = ""
    assert isinstance(name, str)
