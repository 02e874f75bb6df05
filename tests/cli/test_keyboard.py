"""Single keys in what a terminal sends: named, in their order, and never more or fewer than were pressed."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.cli.keyboard import names, read_keys

pytestmark = pytest.mark.unit

SENT = {
    "up": b"\x1b[A",
    "down": b"\x1b[B",
    "home": b"\x1b[H",
    "end": b"\x1b[F",
    "page up": b"\x1b[5~",
    "page down": b"\x1b[6~",
}


@pytest.mark.parametrize("key", sorted(SENT))
def test_a_named_key_is_known(key: str) -> None:
    assert names(SENT[key]) == [key]


@pytest.mark.parametrize("sent", [b"\x1b[B", b"\x1bOB", b"\x1b[6~"])
def test_a_key_whose_bytes_come_one_after_the_other_is_one_key(sent: bytes) -> None:
    for cut in range(1, len(sent)):
        reading, writing = os.pipe()
        try:
            os.write(writing, sent[:cut])
            late = threading.Timer(0.01, os.write, (writing, sent[cut:]))
            late.start()
            assert read_keys(reading) == names(sent), cut
            late.join()
        finally:
            os.close(reading)
            os.close(writing)


def test_arrows_of_application_mode_are_arrows() -> None:
    assert names(b"\x1bOA\x1bOB") == ["up", "down"]


@given(keys=st.lists(st.sampled_from([*SENT, *"pqrf 1\n"]), max_size=10))
def test_keys_that_come_together_are_told_apart(keys: list[str]) -> None:
    assert names(b"".join(SENT.get(key, key.encode()) for key in keys)) == keys


@pytest.mark.parametrize(
    "sent",
    [b"\x1b", b"\x1b\x1b", b"\x1b[", b"\x1b[3~", b"\x1b[1;5C", b"\x1bOP", b"\x1bx", b"\x1b[<0;1;2M"],
    ids=["escape", "twice", "cut off", "delete", "ctrl-right", "F1", "alt-x", "a mouse"],
)
def test_what_has_no_name_here_is_dropped_as_a_whole(sent: bytes) -> None:
    """Its letters must not count as keys: `q` in one would end the program."""
    assert names(sent) == []


def test_behind_what_is_dropped_the_next_key_is_found() -> None:
    assert names(b"\x1b[3~q") == ["q"]
    assert names(b"\x1b[1;5Cp\x1b[A") == ["p", "up"]


def test_letters_beyond_ascii_are_no_keys() -> None:
    assert names("äq€".encode()) == ["q"]


@given(sent=st.binary(max_size=30))
def test_whatever_is_sent_it_ends_and_no_key_is_a_piece_of_an_escape(sent: bytes) -> None:
    assert all(key and "\x1b" not in key for key in names(sent))


def test_keys_are_read_from_a_descriptor_and_its_end_is_none() -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"p\x1b[A")
        assert read_keys(reading) == ["p", "up"]
        os.write(writing, b"\x1b")
        assert read_keys(reading) == [""], "something came, though it has no name"
        os.close(writing)
        assert read_keys(reading) == []
    finally:
        os.close(reading)
