"""wire.py against its twin in C, protocol.h, by parsing that file; and round trips and garbage."""

from __future__ import annotations

import enum
import re
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kybernate.cuda import wire
from kybernate.model.errors import BadInput
from kybernate.model.types import ExtentId

pytestmark = pytest.mark.unit

HEADER = Path(__file__).parents[2] / "native/preload/protocol.h"
TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
FORMATS = {"uint8_t": "B", "char": "s", "uint16_t": "H", "uint32_t": "I", "int32_t": "i", "uint64_t": "Q"}


def c_enum(name: str, prefix: str) -> dict[str, int]:
    match = re.search(rf"enum {name} \{{(.*?)\}}", TEXT, re.DOTALL)
    assert match
    found = re.findall(rf"{prefix}(\w+)\s*=\s*(\d+)", match.group(1))
    return {key: int(value) for key, value in found}


def c_define(name: str) -> int:
    match = re.search(rf"#define {name} (\w+)", TEXT)
    assert match
    return int(match.group(1).rstrip("U"), 0)


def c_struct(name: str) -> str:
    """The struct's layout as a struct-module format with native alignment."""
    match = re.search(rf"struct {name} \{{(.*?)\}};", TEXT, re.DOTALL)
    assert match
    layout = "@"
    for kind, length in re.findall(r"(\w+) \w+(?:\[(\w+)\])?;", match.group(1)):
        count = 0 if not length else int(length) if length.isdigit() else c_define(length)
        layout += f"{count}s" if count else FORMATS[kind]
    return layout


@pytest.mark.parametrize(
    ("twin", "name", "prefix"),
    [
        (wire.Type, "kyb_type", "KYB_"),
        (wire.Status, "kyb_status", "KYB_"),
        (wire.ProcessState, "kyb_state", "KYB_STATE_"),
    ],
)
def test_enums_are_twins(twin: type[enum.IntEnum], name: str, prefix: str) -> None:
    words = c_enum(name, prefix)
    if twin is wire.Type:
        assert words.pop("ANSWER") == wire.ANSWER
    assert {member.name: member.value for member in twin} == words


def test_flags_are_twins() -> None:
    assert {flag.name: flag.value for flag in wire.Flag if flag} == c_enum("kyb_flag", "KYB_FLAG_")


def test_constants_are_twins() -> None:
    assert c_define("KYB_MAGIC") == wire.MAGIC
    assert c_define("KYB_VERSION") == wire.VERSION
    assert c_define("KYB_RECORDS_MAX") == wire.RECORDS_MAX
    assert c_define("KYB_REASON_MAX") == wire.REASON_MAX


def test_structs_are_twins() -> None:
    """C's natural alignment adds no padding, so the packed little-endian layout of wire.py is the same."""
    for name, ours in (("kyb_message", wire._HEAD), ("kyb_extent", wire._RECORD)):
        layout = c_struct(name)
        assert struct.calcsize(layout) == ours.size
        assert layout[1:] == ours.format[1:]


numbers = st.integers(0, 2**64 - 1)
records = st.builds(
    wire.Record,
    id=numbers.map(ExtentId),
    address=numbers,
    size=numbers,
    gpu=st.binary(min_size=16, max_size=16),
    flags=st.sampled_from(list(wire.Flag)),
)
messages = st.builds(
    wire.Message,
    type=st.sampled_from(list(wire.Type)),
    answer=st.booleans(),
    status=st.sampled_from(list(wire.Status)),
    flags=st.sampled_from(list(wire.Flag)),
    argument=numbers,
    gpu=st.binary(min_size=16, max_size=16),
    reason=st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=50),
    records=st.lists(records, max_size=wire.RECORDS_MAX).map(tuple),
)


@settings(deadline=None)
@given(messages)
def test_round_trip(message: wire.Message) -> None:
    packet = wire.pack(message)
    assert len(packet) <= wire.PACKET_MAX
    assert wire.unpack(packet) == message


def test_long_reason_is_cut_but_stays_text() -> None:
    message = wire.Message(wire.Type.STATUS, reason="ü" * 500)
    assert len(wire.unpack(wire.pack(message)).reason) >= 110


@settings(deadline=None)
@given(st.binary(max_size=wire.PACKET_MAX + 10))
def test_garbage_is_refused(packet: bytes) -> None:
    with pytest.raises(BadInput):
        wire.unpack(packet)


@settings(deadline=None)
@given(messages, st.data())
def test_damaged_packets_are_refused_or_parsed(message: wire.Message, data: st.DataObject) -> None:
    packet = bytearray(wire.pack(message))
    packet[data.draw(st.integers(0, len(packet) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(BadInput):
        wire.unpack(bytes(packet))


def test_too_many_records_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="at most"):
        wire.pack(wire.Message(wire.Type.FREE, records=(wire.Record(ExtentId(1), 0, 0),) * (wire.RECORDS_MAX + 1)))


@settings(deadline=None)
@given(st.lists(records, max_size=3 * wire.RECORDS_MAX))
def test_split_keeps_order_and_marks_the_last(many: list[wire.Record]) -> None:
    parts = list(wire.split(many))
    assert [record for part, _ in parts for record in part] == many
    assert [more for _, more in parts] == [True] * (len(parts) - 1) + [False]
