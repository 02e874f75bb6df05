"""What a snapshot's labels say, and that nonsense in them is no answer instead of an error: they were written by others."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.building import GPU, OTHER_GPU

from kybernate.agent.tiers.store_discovery import evicted_in, labels_in, number_in, sizes_in, workload_of
from kybernate.model.snapshot_names import snapshot_name
from kybernate.store import SnapshotRow

pytestmark = pytest.mark.unit


def row(labels: object) -> SnapshotRow:
    text = labels if isinstance(labels, str) else json.dumps(labels)
    return SnapshotRow(name=snapshot_name("a-1"), uid="u", created=1.0, size=10, labels=text, manifest_bytes=100)


PARKED = {"kind": "parked", "uid": "1000", "workload": "a"}


DEEP = "[" * 100_000
"""Nested more deeply than a parser goes."""


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"a"', "\x00", pytest.param(DEEP, id="nested deeply")])
def test_labels_that_are_no_object_are_none(text: str) -> None:
    assert labels_in(row(text)) == {}


def test_labels_are_texts_whatever_was_written() -> None:
    assert labels_in(row({"uid": 1000, "x": None})) == {"uid": "1000", "x": "None"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        pytest.param("0", 0, id="nought"),
        pytest.param("4294967295", 4294967295, id="the largest user id"),
        pytest.param("0000000001", 1, id="leading zeros"),
        pytest.param("99999999999", None, id="longer than any number that is meant"),
        pytest.param("-1", None, id="negative"),
        pytest.param("1.0", None, id="a fraction"),
        pytest.param("１", None, id="a digit that isn't ASCII"),
        pytest.param("", None, id="empty"),
        pytest.param(" 1", None, id="a space"),
    ],
)
def test_a_label_is_a_number_or_none(text: str, number: int | None) -> None:
    assert number_in({"uid": text}, "uid") == number


def test_a_label_that_is_not_there_is_no_number() -> None:
    assert number_in({}, "uid") is None


def test_a_parked_workload_is_found_by_its_label() -> None:
    assert workload_of(row(PARKED)) == "a"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"kind": "image"}, id="an image is nobody's own state"),
        pytest.param({"kind": ""}, id="no kind"),
        pytest.param({"uid": "root"}, id="without a user's number nobody may have it"),
        pytest.param({"workload": "../a"}, id="a name that would lead elsewhere"),
        pytest.param({"workload": ""}, id="no name"),
        pytest.param({"workload": "pid-12"}, id="the name of a process that isn't ours"),
    ],
)
def test_what_is_no_parked_workload_of_ours_is_nobodys(changed: dict[str, str]) -> None:
    assert workload_of(row(PARKED | changed)) is None


def test_what_it_needs_back_is_bytes_by_gpu() -> None:
    sizes = {GPU: 3 << 30, OTHER_GPU: 0}
    assert evicted_in(row({"evicted": json.dumps(sizes)})) == sizes


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[]", id="a list"),
        pytest.param("3", id="a number"),
        pytest.param("{", id="no JSON"),
        pytest.param('{"GPU-0": "much"}', id="no number of bytes"),
        pytest.param('{"GPU-0": null}', id="nothing"),
        pytest.param('{"GPU-0": Infinity}', id="a number that no GPU has"),
        pytest.param('{"GPU-0": 1e999}', id="the same, written out"),
        pytest.param(DEEP, id="nested deeply"),
    ],
)
def test_sizes_that_make_no_sense_are_none_and_logged(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert sizes_in({"workload": "a", "evicted": text}, "evicted") == {}
    assert "a snapshot of workload a doesn't say what VRAM it needs (evicted)" in caplog.text


def test_a_label_that_is_not_there_is_no_sizes_and_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    assert sizes_in({}, "held") == {}
    assert not caplog.text


@given(st.text(max_size=60))
def test_no_text_makes_any_of_them_fail(text: str) -> None:
    found = row(text)
    assert isinstance(labels_in(found), dict)
    assert workload_of(found) is None
    assert isinstance(evicted_in(row({"evicted": text})), dict)
