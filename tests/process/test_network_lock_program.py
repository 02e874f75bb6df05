"""The five instructions that hold packets back, run by a plain machine. In a kernel: test_network_lock.py (root)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.process.network_lock import _everything, _only_marked

pytestmark = pytest.mark.unit

DROPPED, PASSED = 0, 1
MARK = 0xC114
"""Of CRIU's own packets (SOCCR_MARK)."""


def run(program: bytes, packet: bytes) -> int:
    """eBPF as far as these need it (RFC 9669): r1 is the packet's description, struct __sk_buff; r0 is the answer."""
    assert len(program) % 8 == 0
    registers = {1: 0}
    at = 0
    for _ in range(100):
        code, both, *_ = program[8 * at : 8 * at + 8]
        to, of = both & 0xF, both >> 4
        offset = int.from_bytes(program[8 * at + 2 : 8 * at + 4], "little", signed=True)
        value = int.from_bytes(program[8 * at + 4 : 8 * at + 8], "little", signed=True)
        at += 1
        if code == 0xB7:  # MOV64, immediate
            registers[to] = value
        elif code == 0x61:  # LDX, 32 bits
            place = registers[of] + offset
            registers[to] = int.from_bytes(packet[place : place + 4], "little")
        elif code == 0x55:  # JNE, immediate
            at += offset if registers[to] != value else 0
        else:
            assert code == 0x95, f"no instruction {code:#x}"
            return registers[0]
    raise AssertionError("it doesn't end")


def described(mark: int, *, filler: int = 0) -> bytes:
    """len, pkt_type, mark, queue_mapping, ..."""
    words = [filler, filler, mark, *[filler] * 20]
    return b"".join(word.to_bytes(4, "little") for word in words)


def test_a_packet_of_crius_passes_and_every_other_one_is_dropped() -> None:
    assert run(_only_marked(), described(MARK)) == PASSED
    for mark in (0, 1, MARK - 1, MARK + 1, MARK << 16, MARK | 1 << 31, 0xFFFFFFFF):
        assert run(_only_marked(), described(mark)) == DROPPED


@given(mark=st.integers(0, 0xFFFFFFFF), filler=st.integers(0, 0xFFFFFFFF))
def test_nothing_but_the_mark_decides(mark: int, filler: int) -> None:
    assert run(_only_marked(), described(mark, filler=filler)) == (PASSED if mark == MARK else DROPPED)


@given(mark=st.integers(0, 0xFFFFFFFF))
def test_the_program_of_a_trial_drops_nothing(mark: int) -> None:
    assert run(_everything(), described(mark)) == PASSED


def test_the_kernel_is_told_whole_instructions() -> None:
    assert len(_only_marked()) == 5 * 8
    assert len(_everything()) == 2 * 8
