"""Streams and websockets that are only open, and clients that take their answers drop by drop, keep no model."""

from __future__ import annotations

import contextlib
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Eventually
from tests.proxy.rig import Client, Rig, around_the_kernels_limit, request

from kybernate.model.messages import Drained, Endpoint, Limits, Load
from kybernate.proxy.stall_detector import READ_RATE, Frames, StallDetector

PING, TEXT = 9, 1
UPGRADE = {"connection": "upgrade", "upgrade": "websocket"}


def frame(opcode: int, content: bytes, *, masked: bool = False) -> bytes:
    size = len(content)
    short = size if size < 126 else 126 if size < 1 << 16 else 127
    length = b"" if short < 126 else struct.pack("!H" if short == 126 else "!Q", size)
    return bytes((0x80 | opcode, short | (0x80 if masked else 0))) + length + (b"mask" if masked else b"") + content


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 2, 8, 9, 10]), st.integers(0, 70_000), st.booleans()), max_size=8),
    st.lists(st.integers(0, 200_000), max_size=20),
)
def test_pings_are_told_from_what_is_said(frames: list[tuple[int, int, bool]], cuts: list[int]) -> None:
    """In whatever pieces they come."""
    made = [
        (opcode, frame(opcode, bytes(min(size, 125) if opcode > 8 else size), masked=masked))
        for opcode, size, masked in frames
    ]
    whole = b"".join(text for _, text in made)
    found = Frames()
    for begin, end in pairwise(sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})):
        found.feed(whole[begin:end])
    assert found.pings == sum(len(text) for opcode, text in made if opcode > 8)


@given(st.binary(max_size=200))
def test_noise_is_no_error(noise: bytes) -> None:
    found = Frames()
    found.feed(noise)
    assert 0 <= found.pings <= len(noise)


def test_what_counts_as_still() -> None:
    movement = StallDetector()
    look = lambda now, moved, unread=False: movement.observe(now, moved=moved, unread=unread, patience_s=60)  # noqa: E731
    assert not look(0, 100)
    assert not look(60, 100)
    assert look(61, 100)
    assert movement.still
    assert not look(70, 100), "no change"
    assert look(71, 101), "a byte is enough where none lies here"
    assert not movement.still
    # A client that takes a little now and then: 64 KiB every twenty seconds.
    said = [look(71 + at, 101 + (at // 20 << 16), unread=True) for at in range(1, 70)]
    assert said.index(True) == 60
    assert movement.still
    assert look(200, 101 + (1 << 20) * 4, unread=True), "it has caught up"
    assert not look(201, 101 + (1 << 20) * 4 + READ_RATE + 1, unread=True)
    assert not movement.still


def talk(client: Client, answer: bytes = b"", path: str = "/svc") -> None:
    """A websocket, to a server that says `answer` and then nothing."""
    raw = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n" + answer
    client.send(request("GET", f"{path}/raw?{raw.hex()}", None, **UPGRADE))
    assert client.answer(head_only=True).status == 101


def test_what_is_only_open_ends_when_its_model_shall_leave(rig: Rig, eventually: Eventually) -> None:
    """Not before: it stays open, but is none of those in flight for the policy."""
    server = rig.serve(limits=Limits(stream_idle_s=0.5))
    with rig.client() as stream, rig.client() as socket, rig.client() as computes:
        stream.send(request("GET", "/svc/events"))
        stream.until(b"data: 0")
        talk(socket, frame(TEXT, b"hello"))
        assert socket.exactly(7) == frame(TEXT, b"hello")
        computes.send(request("GET", "/svc/wait"))
        rig.agent.wait(Load, lambda load: (load.in_flight, load.still) == (3, 2))
        server.release()
        stream.until(b"data: 1")
        rig.agent.wait(Load, lambda load: load.still == 2, count=2)
        rig.close()
        with contextlib.suppress(ConnectionResetError):
            assert not stream.rest().endswith(b"0\r\n\r\n"), "so that its client sees that something is missing"
        assert socket.ended
        assert rig.agent.of(Drained) == [], "what has not begun to answer may well compute"
        eventually(server.release)
        assert computes.answer().status == 200
        rig.agent.wait(Drained)


def test_what_becomes_still_while_its_model_shall_leave_ends_then(rig: Rig) -> None:
    rig.serve(limits=Limits(stream_idle_s=0.5))
    with rig.client() as client:
        talk(client)
        rig.close()
        assert client.ended
        rig.agent.wait(Drained)


def test_pings_keep_no_model(rig: Rig, eventually: Eventually) -> None:
    rig.serve(limits=Limits(stream_idle_s=0.5))
    with rig.client() as client:
        talk(client, frame(PING, b"first"))

        def pinged() -> bool:
            client.send(frame(PING, b"still there?", masked=True))
            return any(load.still for load in rig.agent.of(Load))

        eventually(pinged)
        client.send(frame(TEXT, b"yes", masked=True))
        eventually(lambda: (last := rig.agent.of(Load)[-1]).in_flight and not last.still)
        rig.close()
        rig.agent.wait(Drained)


def test_who_reads_drop_by_drop_keeps_no_model(rig: Rig, eventually: Eventually) -> None:
    rig.serve(limits=Limits(stream_idle_s=0.5))
    with rig.client() as client:
        client.send(request("GET", f"/svc/bytes?{around_the_kernels_limit().stop + (8 << 20)}"))
        client.until(b"\r\n\r\n")
        rig.close()

        def drained() -> bool:
            with contextlib.suppress(OSError):
                client.socket.recv(1000)
            return bool(rig.agent.of(Drained))

        eventually(drained)
        with pytest.raises((EOFError, ConnectionResetError)):
            client.exactly(around_the_kernels_limit().stop + (8 << 20))


ONLY_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def test_a_long_prompt_keeps_its_model(rig: Rig) -> None:
    """The answer's head is out, and no word of it: it is in flight for however long that takes."""
    server = rig.upstream()
    endpoints = [Endpoint(name, server.port, paths=(f"/{name}",), limits=Limits(stream_idle_s=0.5)) for name in "mn"]
    rig.configure(*endpoints)
    rig.open("m")
    rig.open("n")
    with rig.client() as prompt, rig.client() as other:
        prompt.send(request("GET", f"/m/head?{ONLY_HEAD.hex()}"))
        assert prompt.answer(head_only=True).status == 200
        talk(other, path="/n")  # which became open later, and is only open
        for count in (1, 2):
            rig.agent.wait(Load, lambda load: load.model == "n" and load.still == 1, count=count)
            if count == 1:
                other.send(frame(TEXT, b"moves", masked=True))
        assert not rig.agent.of(Load, lambda load: load.model == "m" and load.still > 0)
        rig.close("m")
        server.release()
        prompt.until(b"data: first\n\n\r\n")
        rig.agent.wait(Drained, lambda drained: drained.model == "m")
        assert prompt.ended, "from its first word on it is as any other"


def test_a_prompt_may_have_a_limit_of_its_own(rig: Rig, eventually: Eventually) -> None:
    """Whether or not the answer's head is out."""
    server = rig.serve(limits=Limits(stream_idle_s=None, first_byte_s=0.5))
    with rig.client() as begun, rig.client() as silent, rig.client() as speaks:
        begun.send(request("GET", f"/svc/head?{ONLY_HEAD.hex()}"))
        assert begun.answer(head_only=True).status == 200
        speaks.send(request("GET", "/svc/events"))
        speaks.until(b"data: 0")
        silent.send(request("GET", "/svc/wait"))
        rig.agent.wait(Load, lambda load: (load.in_flight, load.still) == (3, 2))
        rig.close()
        assert begun.ended
        answer = silent.answer()
        assert (answer.status, answer.code) == (502, "stream_idle")
        assert not rig.agent.of(Drained), "what speaks has no limit"
        eventually(server.release)
        speaks.until(b"data: 1")
        eventually(server.release)
        speaks.until(b"0\r\n\r\n")
        rig.agent.wait(Drained)


def test_some_may_stay_open(rig: Rig) -> None:
    server = rig.upstream()
    endpoints = [
        Endpoint(name, server.port, paths=(f"/{name}",), limits=Limits(stream_idle_s=idle_s))
        for name, idle_s in (("m", 0.5), ("off", None))
    ]
    rig.configure(*endpoints)
    rig.open("off")
    with rig.client() as stays:
        talk(stays, path="/off")
        rig.close("off")
        for number in range(2):
            rig.open("m")
            with rig.client() as client:
                talk(client, path="/m")
                rig.close("m")
                rig.agent.wait(Drained, count=number + 1)
        assert {drained.model for drained in rig.agent.of(Drained)} == {"m"}
