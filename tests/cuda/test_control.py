"""Control against a peer that follows, or breaks, the protocol. The real peer is the preload library: tests/engine."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kybernate.cuda import packets, wire
from kybernate.cuda.control import Control
from kybernate.cuda.wire import Flag, Message, ProcessState, Record, Status, Type
from kybernate.model.errors import Busy, KybernateError, NoRoom, Unsupported, WorkloadLost
from kybernate.model.types import MIB, ExtentId, HostPid

Answer = Callable[[socket.socket, Message, list[int]], bool]
"""Answers one request; False: hang up."""


class Peer:
    """Serves one connection; remembers what it was asked."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[Message] = []
        self.fds = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(path.parent, os.O_PATH)
        self._listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.close(directory)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, suppress(ConnectionResetError):
            while (came := packets.receive(connection)) is not None:
                message, fds = came
                self.asked.append(message)
                self.fds += len(fds)
                going = self._answer(connection, message, fds)
                packets.close_all(fds)
                if not going:
                    return

    def stop(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._listener.close()


Start = Callable[[Answer], Path]


@pytest.fixture
def peers(directory: Path) -> Iterator[list[Peer]]:
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.stop()


@pytest.fixture
def start(directory: Path, peers: list[Peer]) -> Start:
    def begin(answer: Answer) -> Path:
        path = directory / "77.sock"
        peers.append(Peer(path, answer))
        return path

    return begin


def ok(connection: socket.socket, message: Message, fds: list[int]) -> bool:
    packets.send(connection, Message(message.type, answer=True))
    return True


def says(status: Status, reason: str) -> Answer:
    def answer(connection: socket.socket, message: Message, fds: list[int]) -> bool:
        packets.send(connection, Message(message.type, answer=True, status=status, reason=reason))
        return True

    return answer


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def record(number: int) -> Record:
    return Record(ExtentId(number), 0, 2 * MIB)


def test_the_plain_questions(start: Start, peers: list[Peer]) -> None:
    with Control(start(ok)) as control:
        control.quiesce(1.5)
        control.release()
        control.discard()
        control.remap()
        control.open()
    kinds = [message.type for message in peers[0].asked]
    assert kinds == [Type.QUIESCE, Type.RELEASE, Type.DISCARD, Type.REMAP, Type.OPEN]
    assert peers[0].asked[0].argument == 1500, "milliseconds"
    assert peers[0].asked[2].records == (), "no records: all of them"


def test_status(start: Start) -> None:
    def answer(connection: socket.socket, message: Message, fds: list[int]) -> bool:
        told = Message(Type.STATUS, answer=True, argument=ProcessState.RELEASED, flags=Flag.COMMITTED, reason="why")
        packets.send(connection, told)
        return True

    with Control(start(answer)) as control:
        status = control.status()
    assert (status.state, status.committed, status.unsupported) == (ProcessState.RELEASED, True, "why")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.BUSY, Busy),
        (Status.UNSUPPORTED, Unsupported),
        (Status.OUT_OF_MEMORY, NoRoom),
        (Status.BAD_REQUEST, KybernateError),
        (Status.FAILED, KybernateError),
    ],
)
def test_refusals_keep_their_reason_and_the_connection(start: Start, status: Status, error: type[Exception]) -> None:
    with Control(start(says(status, "because of that"))) as control:
        for _ in range(2):
            with pytest.raises(error, match="the process: because of that"):
                control.quiesce(1)


def test_long_lists_go_in_several_packets(start: Start, peers: list[Peer]) -> None:
    many = [record(i) for i in range(300)]
    with open(os.devnull) as nothing, Control(start(ok)) as control:  # noqa: PTH123 - any descriptor
        control.map(many, [nothing.fileno()] * 300)
        control.discard([r.id for r in many])
        control.discard([])
        with pytest.raises(ValueError, match="descriptors"):
            control.map(many, [])
    maps = [message for message in peers[0].asked if message.type is Type.MAP]
    discards = [message for message in peers[0].asked if message.type is Type.DISCARD]
    assert [len(message.records) for message in maps] == [128, 128, 44]
    assert [message.more for message in maps] == [True, True, False]
    assert peers[0].fds == 300
    assert [len(message.records) for message in discards] == [128, 128, 44], "an empty list discards nothing, not all"


def test_extents_bring_their_descriptors_in_order(start: Start) -> None:
    files = [tempfile.TemporaryFile() for _ in range(150)]  # noqa: SIM115
    for number, file in enumerate(files):
        file.write(b"%d" % number)
        file.flush()

    def answer(connection: socket.socket, message: Message, fds: list[int]) -> bool:
        gone = Record(ExtentId(1000), 0, 2 * MIB, flags=Flag.NO_FD)
        parts = [([record(i) for i in range(100)], files[:100], Flag.MORE)]
        parts.append(([gone, *[record(i) for i in range(100, 150)]], files[100:], Flag.NONE))
        for records, some, flags in parts:
            reply = Message(Type.EXTENTS, answer=True, flags=flags, records=tuple(records))
            packets.send(connection, reply, [file.fileno() for file in some])
        return True

    with Control(start(answer)) as control:
        found = control.extents()
    assert len(found) == 151
    assert [record.id for record, fd in found if fd is None] == [1000]
    for known, fd in found:
        if fd is not None:
            assert os.pread(fd, 10, 0) == b"%d" % known.id
            os.close(fd)
    for file in files:
        file.close()


@pytest.mark.parametrize("when", ["at once", "in the middle of an answer"])
def test_hanging_up_is_a_lost_workload(start: Start, when: str) -> None:
    def answer(connection: socket.socket, message: Message, fds: list[int]) -> bool:
        if when != "at once":
            packets.send(connection, Message(message.type, answer=True, flags=Flag.MORE, records=(record(1),)))
        return False

    with Control(start(answer)) as control, pytest.raises(WorkloadLost, match="quiesce"):
        control.quiesce(1)


def test_no_answer_in_time_is_busy_and_ends_the_connection(start: Start) -> None:
    with Control(start(lambda *_: True), timeout_s=0.05) as control:
        with pytest.raises(Busy, match="no answer to release within"):
            control.release()
        with pytest.raises(KybernateError, match="isn't open"):
            control.release()


@pytest.mark.parametrize(
    "packet",
    [
        b"garbage",
        wire.pack(Message(Type.OPEN, answer=True)),
        wire.pack(Message(Type.EXTENTS)),
        wire.pack(Message(Type.EXTENTS, answer=True, records=(record(1),))),
        b"y" * (wire.PACKET_MAX + 1),
    ],
    ids=["noise", "another answer", "a question", "missing descriptor", "too long"],
)
def test_garbage_is_told_and_leaks_nothing(start: Start, packet: bytes) -> None:
    def answer(connection: socket.socket, message: Message, fds: list[int]) -> bool:
        if len(packet) > wire.PACKET_MAX:
            connection.send(packet)
        else:
            socket.send_fds(connection, [packet], [0, 0])
        return True

    with Control(start(answer)) as control:
        before = descriptors()
        with pytest.raises(KybernateError, match="garbage"):
            control.extents()
    assert descriptors() <= before


def test_another_process_that_listens_there_is_not_talked_to(start: Start, peers: list[Peer]) -> None:
    """The socket's directory is the workload's own: it may have put a link to another workload's socket there."""
    path = start(ok)
    with pytest.raises(WorkloadLost, match=f"process {os.getpid()} answers in place"):
        Control(path, pid=HostPid(os.getppid())).connect()
    with Control(path, pid=HostPid(os.getpid())):
        assert not peers[0].asked


@pytest.mark.parametrize("lie", ["without end", "twice", "empty parts"])
def test_a_list_has_an_end(start: Start, lie: str) -> None:
    def answer(connection: socket.socket, message: Message, fds: list[int]) -> bool:
        with suppress(OSError):  # until it hangs up
            for number in range(10_000):
                some = {"without end": (record(number),), "twice": (record(1),), "empty parts": ()}[lie]
                packets.send(
                    connection, Message(message.type, answer=True, flags=Flag.MORE, records=some), [0] * len(some)
                )
        return False

    with Control(start(answer)) as control:
        before = descriptors()
        with pytest.raises(KybernateError, match="garbage"):
            control.extents(maximum=100)
        assert descriptors() <= before


def test_dripping_is_no_answer(start: Start) -> None:
    gone = threading.Event()

    def answer(connection: socket.socket, message: Message, fds: list[int]) -> bool:
        for number in range(1000):
            try:
                packets.send(connection, Message(message.type, answer=True, flags=Flag.MORE, records=(record(number),)))
            except OSError:
                break
            gone.wait(0.01)
        return False

    with Control(start(answer), timeout_s=0.2) as control, pytest.raises(Busy, match="no answer"):
        control.release()
    gone.set()


def test_nobody_there(directory: Path) -> None:
    with pytest.raises(WorkloadLost, match="does not answer"):
        Control(directory / "1.sock").connect()
    with pytest.raises(WorkloadLost, match="does not answer"):
        Control(directory / ("x" * 150) / "1.sock").connect()


def test_a_long_path(directory: Path, peers: list[Peer]) -> None:
    deep = directory / ("d" * 120)
    deep.mkdir()
    peers.append(Peer(deep / "77.sock", ok))
    with Control(deep / "77.sock") as control:
        control.open()
