"""Packets and the descriptors beside them, over a real pair of sockets: nothing that comes wrong is kept open."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator

import pytest

from kybernate.cuda import wire
from kybernate.cuda.packets import close_all, receive, send
from kybernate.model.errors import BadInput

pytestmark = pytest.mark.unit

Pair = tuple[socket.socket, socket.socket]
MESSAGE = wire.Message(
    type=next(iter(wire.Type)),
    answer=True,
    status=next(iter(wire.Status)),
    flags=wire.Flag(0),
    argument=7,
    gpu=bytes(16),
    reason="because",
    records=(),
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.settimeout(10)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Ends may be closed by the test."""
    ends = os.pipe()
    yield ends
    close_all(ends)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the names alone


def test_a_packet_comes_as_it_was_sent_with_descriptors_of_the_receivers_own(pair: Pair, pipe: tuple[int, int]) -> None:
    ours, theirs = pair
    send(ours, MESSAGE, pipe)
    received = receive(theirs)
    assert received is not None
    message, descriptors = received
    try:
        assert message == MESSAGE
        assert len(descriptors) == 2
        assert not set(descriptors) & set(pipe), "whoever sends keeps its own"
        assert not any(os.get_inheritable(each) for each in descriptors)
        os.write(descriptors[1], b"x")
        assert os.read(pipe[0], 1) == b"x"
    finally:
        close_all(descriptors)


def test_packets_stay_apart_and_in_order(pair: Pair, pipe: tuple[int, int]) -> None:
    ours, theirs = pair
    for argument in range(3):
        send(ours, wire.Message(type=MESSAGE.type, argument=argument), pipe[: argument % 2])
    found = []
    for _ in range(3):
        received = receive(theirs)
        assert received is not None
        found.append((received[0].argument, len(received[1])))
        close_all(received[1])
    assert found == [(0, 0), (1, 1), (2, 0)]


def test_a_peer_that_has_hung_up_is_none_and_sending_to_it_is_an_error_and_no_signal(pair: Pair) -> None:
    ours, theirs = pair
    ours.close()
    assert receive(theirs) is None
    with pytest.raises(BrokenPipeError):
        send(theirs, MESSAGE)


def test_as_many_descriptors_as_the_kernel_takes_come_through(pair: Pair, pipe: tuple[int, int]) -> None:
    ours, theirs = pair
    send(ours, MESSAGE, [pipe[0]] * 253)
    received = receive(theirs)
    assert received is not None
    close_all(received[1])
    assert len(received[1]) == 253
    with pytest.raises(OSError):
        send(ours, MESSAGE, [pipe[0]] * 254)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"x", id="too short"),
        pytest.param(bytes(200), id="zeros"),
        pytest.param(bytes(wire.PACKET_MAX + 1), id="one byte more than any"),
        pytest.param(bytes(wire.PACKET_MAX + 4096), id="cut off by the kernel"),
    ],
)
def test_what_is_no_packet_of_ours_is_refused_and_its_descriptors_are_closed(
    pair: Pair, pipe: tuple[int, int], packet: bytes
) -> None:
    ours, theirs = pair
    ours.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", pipe))])
    before = open_descriptors()
    with pytest.raises(BadInput):
        receive(theirs)
    assert open_descriptors() == before


def test_silence_is_the_sockets_own_timeout(pair: Pair) -> None:
    _, theirs = pair
    theirs.settimeout(0.01)
    with pytest.raises(TimeoutError):
        receive(theirs)


def test_closing_what_is_closed_already_does_no_harm_to_the_rest(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    close_all(pipe)
    with pytest.raises(OSError):
        os.fstat(pipe[1])
