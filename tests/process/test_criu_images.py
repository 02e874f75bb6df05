"""CRIU's images, read without CRIU: what is whole is read as it was written, and what is cut off or missing is named."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.model.errors import BadInput
from kybernate.process.criu_images import (
    PAGE_BYTES,
    Fields,
    check,
    entries,
    fields,
    integer,
    integers,
    message,
    processes,
    rewrite,
    unsent,
)

pytestmark = pytest.mark.unit

COMMON, PSTREE, PAGEMAP, STREAM = 0x54564319, 0x50273030, 0x56084025, 0x51465506

# -- messages ------------------------------------------------------------------------------------------------------------

FIELDS = st.dictionaries(
    st.integers(1, 1 << 20),
    st.lists(st.integers(0, (1 << 64) - 1) | st.binary(max_size=200), min_size=1, max_size=4),
    max_size=6,
)


@given(FIELDS)
def test_a_message_is_read_as_it_was_written(content: Fields) -> None:
    assert fields(message(content)) == content


@given(FIELDS, st.data())
def test_a_message_that_is_cut_off_is_never_taken_for_the_whole(content: Fields, data: st.DataObject) -> None:
    whole = message(content)
    cut = whole[: data.draw(st.integers(0, max(0, len(whole) - 1)))]
    with contextlib.suppress(BadInput):
        assert len(cut) == len(whole) or fields(cut) != content


@given(st.binary(max_size=100))
def test_any_bytes_are_fields_or_refused(raw: bytes) -> None:
    try:
        found = fields(raw)
        for values in found.values():
            integers(values)
    except BadInput:
        pass


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(b"\x80", "cut off", id="a key that goes on"),
        pytest.param(b"\x08\xff", "cut off", id="a number that goes on"),
        pytest.param(b"\x0a\x05ab", "cut off", id="fewer bytes than were said"),
        pytest.param(b"\x09\x01\x02", "cut off", id="half of eight bytes"),
        pytest.param(b"\x0d\x01\x02", "cut off", id="half of four bytes"),
        pytest.param(b"\x0b", "unknown kind 3", id="a kind that nobody uses"),
        pytest.param(b"\x08" + b"\xff" * 10 + b"\x01", "too long", id="more than 64 bits"),
    ],
)
def test_what_is_no_message_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        fields(raw)


def test_fields_of_fixed_length_are_bytes() -> None:
    assert fields(b"\x09" + bytes(range(8)) + b"\x15" + b"abcd") == {1: [bytes(range(8))], 2: [b"abcd"]}


def test_of_a_field_that_stands_twice_the_last_counts() -> None:
    assert integer({3: [1, 2]}, 3) == 2
    assert integer({}, 3, 7) == 7
    with pytest.raises(BadInput, match="lacks field 3"):
        integer({}, 3)


def test_repeated_numbers_may_be_packed_or_not() -> None:
    assert integers([1, b"\x02\x80\x01", 3]) == [1, 2, 128, 3]
    with pytest.raises(BadInput, match="cut off"):
        integers([b"\x80"])


# -- files ---------------------------------------------------------------------------------------------------------------


def image(path: Path, kind: int, messages: Iterable[bytes]) -> Path:
    body = b"".join(struct.pack("<I", len(each)) + each for each in messages)
    path.write_bytes(struct.pack("<II", COMMON, kind) + body)
    return path


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Process 7 with threads 7 and 8, its zombie 9, and three pages in two runs."""
    (tmp_path / "inventory.img").write_bytes(struct.pack("<II", 0x58313116, 2) + b"ab")
    image(tmp_path / "files.img", 0x56303138, [b""])
    image(
        tmp_path / "pstree.img",
        PSTREE,
        [message({1: [7], 5: [b"\x07\x08"]}), message({1: [9], 5: [b"\x63"]})],
    )
    for thread in (7, 8, 9):
        image(tmp_path / f"core-{thread}.img", 0x55053847, [b""])
    runs = [message({1: [1]}), message({1: [0x1000], 2: [2], 4: [4]}), message({1: [0x9000], 2: [1], 4: [4]})]
    image(tmp_path / "pagemap-7.img", PAGEMAP, runs)
    (tmp_path / "pages-1.img").write_bytes(bytes(3 * PAGE_BYTES))
    return tmp_path


def test_a_whole_dump_is_whole(dump: Path) -> None:
    check(dump, root=7)
    assert processes(dump) == [7, 8, 9], "threads too, and a zombie by its own pid"


@pytest.mark.parametrize("name", ["inventory.img", "files.img", "pstree.img", "core-8.img", "core-9.img"])
def test_a_missing_image_is_named(dump: Path, name: str) -> None:
    (dump / name).unlink()
    with pytest.raises(BadInput, match=f"is damaged: {name}: it is missing"):
        check(dump, root=7)


def test_a_root_that_is_not_in_the_tree_is_no_dump_of_it(dump: Path) -> None:
    with pytest.raises(BadInput, match=r"pstree.img: process 8 is not in it"):
        check(dump, root=8)


@pytest.mark.parametrize("change", [-1, 1, PAGE_BYTES, -PAGE_BYTES])
def test_pages_must_be_as_many_as_their_map_says(dump: Path, change: int) -> None:
    (dump / "pages-1.img").write_bytes(bytes(3 * PAGE_BYTES + change))
    with pytest.raises(BadInput, match=f"pages-1.img: it has {3 * PAGE_BYTES + change} bytes, its map says 12288"):
        check(dump, root=7)


def test_an_image_is_whole_only_to_its_last_byte(dump: Path) -> None:
    path = dump / "pstree.img"
    whole = path.read_bytes()
    first = 8 + 4 + int.from_bytes(whole[8:12], "little")
    for length in range(4, len(whole)):
        path.write_bytes(whole[:length])
        if length in (8, first):
            continue  # after an entry: that the rest is missing shows elsewhere
        with pytest.raises(BadInput, match=r"pstree.img"):
            list(entries(path, kind=PSTREE))


def test_an_image_of_another_kind_is_refused(dump: Path) -> None:
    with pytest.raises(BadInput, match="doesn't begin as an image of CRIU"):
        list(entries(dump / "files.img", kind=PSTREE))
    (dump / "files.img").write_bytes(bytes(100))
    with pytest.raises(BadInput, match="doesn't begin as an image of CRIU"):
        check(dump, root=7)


def test_an_entry_of_a_senseless_length_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    path.write_bytes(struct.pack("<III", COMMON, PSTREE, 0xFFFFFFFF) + b"abc")
    with pytest.raises(BadInput, match="length makes no sense"):
        list(entries(path))


def test_data_behind_an_entry_is_no_entry(dump: Path) -> None:
    image(dump / "tcp-stream-1.img", STREAM, [message({12: [300]})])
    with (dump / "tcp-stream-1.img").open("ab") as file:
        file.write(b"\xff" * 300)
    check(dump, root=7)
    assert unsent(dump) == 300


def test_bytes_to_send_are_summed_over_connections(dump: Path) -> None:
    assert unsent(dump) == 0
    for number, size in enumerate((5, 0, 7)):
        image(dump / f"tcp-stream-{number}.img", STREAM, [message({12: [size]} if size else {1: [1]})])
    assert unsent(dump) == 12


def test_an_image_is_rewritten_whole_with_its_head_and_mode(dump: Path) -> None:
    path = dump / "pstree.img"
    path.chmod(0o600)
    rewrite(path, [b"one", b"", b"three"])
    assert list(entries(path, kind=PSTREE)) == [b"one", b"", b"three"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(dump.glob("*.new")) == []
