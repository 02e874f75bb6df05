"""Names that workloads may have, and that the sizes agree with each other."""

from __future__ import annotations

import enum
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.errors import BadInput
from kybernate.model.types import (
    CHUNK_BYTES,
    GIB,
    MIB,
    NAME_HINT,
    WORKLOAD_NAME,
    Phase,
    TierName,
    WorkloadState,
    workload_name,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("text", ["a", "0", "a-b", "a--b", "model-7b", "x" * 63, "0-0"])
def test_a_dns_label_is_a_name(text: str) -> None:
    assert workload_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("A", id="upper case"),
        pytest.param("-a", id="begins with a dash"),
        pytest.param("a-", id="ends with a dash"),
        pytest.param("x" * 64, id="a label has 63 characters at most"),
        pytest.param("a.b", id="a dot"),
        pytest.param("a/b", id="would lead out of its directory"),
        pytest.param("..", id="would be the directory above"),
        pytest.param("a\n", id="a line's end, which $ lets pass"),
        pytest.param("ä", id="a letter that isn't ASCII"),
        pytest.param("a\x00", id="NUL"),
    ],
)
def test_anything_else_is_none_and_the_hint_says_what_is(text: str) -> None:
    with pytest.raises(BadInput, match="bad workload name") as refused:
        workload_name(text)
    assert refused.value.hint == NAME_HINT


def test_a_long_name_is_shown_short() -> None:
    with pytest.raises(BadInput) as refused:
        workload_name("x" * 5000)
    assert len(refused.value.message) < 120


@given(st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=70))
def test_the_function_and_the_pattern_of_the_api_agree(text: str) -> None:
    try:
        workload_name(text)
    except BadInput:
        assert not re.fullmatch(WORKLOAD_NAME, text)
    else:
        assert re.fullmatch(WORKLOAD_NAME, text)


def test_a_chunk_is_what_the_driver_hands_out() -> None:
    assert (CHUNK_BYTES, GIB % CHUNK_BYTES, GIB) == (2 * MIB, 0, 1024 * MIB)


@pytest.mark.parametrize("words", [TierName, WorkloadState, Phase])
def test_words_are_their_own_text(words: type[enum.StrEnum]) -> None:
    """They stand in records, in the API and in texts for people: all by `str`."""
    assert all(str(word) == word.value == word.name.lower() for word in words)
