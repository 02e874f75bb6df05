"""Manifests as bytes: read as they were written, sealed against every change, and never believed where they make no sense."""

from __future__ import annotations

import json
import os.path
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.errors import BadInput
from kybernate.model.snapshot_names import snapshot_name
from kybernate.model.types import CHUNK_BYTES, MIB
from kybernate.store import Damaged, GpuNeed, Manifest, Needs, StoredExtent, StoredFile, TooNew, WrongKey, keys_of
from kybernate.store.manifests import VERSION, decode, encode, relative_path
from kybernate.store.packs import PackId
from kybernate.store.tenants import DEFAULT_TENANT, ID_BYTES, ChunkId, Keys

pytestmark = pytest.mark.unit

PLAIN, SECRET = keys_of(DEFAULT_TENANT), keys_of(DEFAULT_TENANT, b"k" * 32)
KEYS = pytest.mark.parametrize("keys", [PLAIN, SECRET], ids=["without a key", "with a key"])
NAME = snapshot_name("train-7")
IDS = tuple(ChunkId(bytes([number]) * ID_BYTES) for number in range(5))
MANIFEST = Manifest(
    name=NAME,
    uid="0123456789abcdef" * 2,
    created=1_764_000_000.25,
    extents=(StoredExtent(first=0, size=3 * MIB, about={"pid": 7, "gpu": "GPU-0"}),),
    files=(
        StoredFile(first=2, size=5000, path="process/pages-1.img", mode=0o640),
        StoredFile(first=3, size=CHUNK_BYTES + 9, path="state", cuts=(9, CHUNK_BYTES)),
    ),
    table=b"".join(IDS),
    state={"format": 1, "nested": [None, {"ä": 1.5}]},
    labels={"kind": "parked", "workload": "train"},
    needs=Needs(gpus=(GpuNeed(name="NVIDIA H200"),), driver="580.1"),
    packs=(PackId("a" * 32),),
)


@KEYS
def test_it_is_read_as_it_was_written(keys: Keys) -> None:
    assert decode(encode(MANIFEST, keys), keys, name=NAME) == MANIFEST


def test_with_a_key_nobody_else_reads_what_it_says() -> None:
    raw = encode(MANIFEST, SECRET)
    assert b"train" not in raw
    assert IDS[3] not in raw
    assert encode(MANIFEST, SECRET) != raw, "and two of one aren't equal"
    assert b"train" in encode(MANIFEST, PLAIN)


@KEYS
def test_any_changed_byte_is_found(keys: Keys) -> None:
    raw = encode(MANIFEST, keys)
    for at in range(len(raw)):
        broken = bytearray(raw)
        broken[at] ^= 0x01
        with pytest.raises((Damaged, TooNew, WrongKey)):
            decode(bytes(broken), keys, name=NAME)


@KEYS
def test_anything_shorter_is_damaged(keys: Keys) -> None:
    raw = encode(MANIFEST, keys)
    for length in (*range(200), len(raw) - 33, len(raw) - 32, len(raw) - 1):
        with pytest.raises(Damaged):
            decode(raw[:length], keys, name=NAME)


def test_another_key_is_said_to_be_that() -> None:
    with pytest.raises(WrongKey, match=f"was written with the key {SECRET.fingerprint.hex()}, not with"):
        decode(encode(MANIFEST, SECRET), PLAIN, name=NAME)


def test_under_another_name_it_was_renamed() -> None:
    with pytest.raises(Damaged, match="says it is of snapshot train-7: somebody renamed it"):
        decode(encode(MANIFEST, PLAIN), PLAIN, name=snapshot_name("other"))


def sealed_anew(raw: bytes, *, keys: Keys = PLAIN) -> bytes:
    """As somebody who can make seals would write it."""
    head, inner = raw[:68], raw[68:-32]
    return head + inner + keys.seal(head, inner)


def body(**changed: Any) -> bytes:
    raw = encode(MANIFEST, PLAIN)
    length = int.from_bytes(raw[60:64], "little")
    text = json.dumps(json.loads(raw[68 : 68 + length]) | changed).encode()
    head = raw[:60] + len(text).to_bytes(4, "little") + raw[64:68]
    return sealed_anew(head + text + raw[68 + length :])


def test_the_next_format_asks_for_an_update() -> None:
    raw = bytearray(encode(MANIFEST, PLAIN))
    raw[8:12] = (VERSION + 1).to_bytes(4, "little")
    with pytest.raises(
        TooNew, match=f"has format {VERSION + 1}; this version of Kybernate reads up to {VERSION}"
    ) as refused:
        decode(sealed_anew(bytes(raw)), PLAIN, name=NAME)
    assert refused.value.hint == "update Kybernate"


def test_what_a_newer_version_adds_is_left_out() -> None:
    assert decode(body(surplus={"a": 1}), PLAIN, name=NAME) == MANIFEST


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"name": "../up"}, id="a name that leads elsewhere"),
        pytest.param({"created": "now"}, id="no time"),
        pytest.param({"files": [{"first": 0, "size": 1, "path": "../x"}]}, id="a file elsewhere"),
        pytest.param({"files": [{"first": 0, "size": 1, "path": "/etc/passwd"}]}, id="an absolute path"),
        pytest.param({"files": [{"first": 0, "size": 1, "path": "x"}] * 2}, id="a file twice"),
        pytest.param({"files": [{"first": 5, "size": 1, "path": "x"}]}, id="chunks that it doesn't have"),
        pytest.param({"files": [{"first": -1, "size": 1, "path": "x"}]}, id="chunks before the first"),
        pytest.param({"files": [{"first": 0, "size": 5, "path": "x", "cuts": [2, 2]}]}, id="cuts of another sum"),
        pytest.param({"files": [{"first": 0, "size": 0, "path": "x", "cuts": [0]}]}, id="a cut of nothing"),
        pytest.param({"files": [{"first": 0, "size": 1, "path": "x", "mode": 0o10000}]}, id="a mode that there isn't"),
        pytest.param({"extents": [{"first": 0, "size": 6 * CHUNK_BYTES}]}, id="an extent of more chunks"),
        pytest.param({"extents": [{"first": 0, "size": 1 << 51}]}, id="an extent larger than any"),
        pytest.param({"packs": ["../x"]}, id="a pack that is no number"),
        pytest.param({"labels": {"a": 1}}, id="a label that is no text"),
    ],
)
def test_what_makes_no_sense_is_damaged_even_with_the_right_seal(changed: dict[str, Any]) -> None:
    with pytest.raises(Damaged, match="the manifest of snapshot train-7") as refused:
        decode(body(**changed), PLAIN, name=NAME)
    assert "\n" not in refused.value.message


def test_an_infinite_time_is_none() -> None:
    with pytest.raises(Damaged):
        decode(encode(replace(MANIFEST, created=float("inf")), PLAIN), PLAIN, name=NAME)


# -- its parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "count", "last"),
    [
        (0, 0, None),
        (1, 1, 1),
        (CHUNK_BYTES, 1, CHUNK_BYTES),
        (CHUNK_BYTES + 1, 2, 1),
        (3 * CHUNK_BYTES, 3, CHUNK_BYTES),
    ],
)
def test_a_part_is_cut_every_chunk_and_the_last_one_is_what_is_left(size: int, count: int, last: int | None) -> None:
    part = StoredExtent(first=0, size=size)
    assert part.count == count == len(part.offsets())
    if last is not None:
        assert part.length(count - 1) == last


@given(st.lists(st.integers(1, CHUNK_BYTES), max_size=8))
def test_a_file_that_is_cut_elsewhere_is_whole_all_the_same(cuts: list[int]) -> None:
    file = StoredFile(first=0, size=sum(cuts), path="x", cuts=tuple(cuts))
    lengths = [file.length(number) for number in range(file.count)]
    assert sum(lengths) == file.size
    at = 0
    for offset, length in zip(file.offsets(), lengths, strict=True):
        assert offset == at
        at += length


def test_ids_are_found_by_their_number_and_sizes_are_summed() -> None:
    assert list(MANIFEST.ids()) == list(IDS)
    assert MANIFEST.id(3) == IDS[3]
    assert MANIFEST.size == 3 * MIB + 5000 + CHUNK_BYTES + 9
    assert MANIFEST.file("state").first == 3
    with pytest.raises(BadInput, match="snapshot train-7 has no file 'none'"):
        MANIFEST.file("none")


@pytest.mark.parametrize("path", ["a", "a/b", "process/pages-1.img", "ä", "x" * 255, "a b", "..a", "a..", "a/...b"])
def test_paths_that_stay_inside(path: str) -> None:
    assert relative_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/a",
        "a/../b",
        "../a",
        "a/..",
        "a//b",
        "a/",
        "./a",
        "a\0b",
        "x" * 256,
        "a/" * 2000 + "a" * 200,
        "\ud800",
    ],
)
def test_paths_that_lead_elsewhere_or_are_no_plain_ones(path: str) -> None:
    with pytest.raises(BadInput, match="bad path"):
        relative_path(path)


@given(st.text(max_size=40))
def test_a_path_that_is_taken_stays_below_its_directory(path: str) -> None:
    try:
        relative_path(path)
    except BadInput:
        return
    assert os.path.normpath(f"/base/{path}").startswith("/base/")
