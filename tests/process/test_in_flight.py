"""Data on its way: kept, named in the report, or the dump waits for it. Nothing goes in silence."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.errors import Busy
from kybernate.model.types import HostPid, WorkloadName
from kybernate.process.dumping import dump
from kybernate.process.in_flight import look
from kybernate.process.open_files import open_files
from kybernate.process.restoring import restore
from kybernate.process.tree import CONTROL, Tree

from .dumps import output, wait_ready
from .kernel_rows import HEAD, TAIL

pytestmark = pytest.mark.root

SO_PEEK_OFF = 42

MORE = """
import array, tty

def peek(made):
    try:
        return made.recvmsg(10_000, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)[0]
    except OSError as e:
        return e.errno

def rights(made):
    data, messages, _, _ = made.recvmsg(100, 1000, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    numbers = array.array("i")
    for _, _, content in messages:
        numbers.frombytes(content)
    found = [(os.readlink(f"/proc/self/fd/{number}").split(":")[0], os.read(number, 1)) for number in numbers]
    for number in numbers:
        os.close(number)
    return data, found

def available(number):
    return int.from_bytes(fcntl.ioctl(number, 0x541b, bytes(4)), "little")

def readable(made):
    return bool(select.select([made], [], [], 0)[0])

def unix(kind):
    global other
    made, other = socket.socketpair(socket.AF_UNIX, kind)
    return made

def pass_on(number):
    socket.send_fds(other, [b"hello"], [number])
    os.close(number)

def named(kind):
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(f"{control}/{made.fileno()}")
    return made

def calling(listening):
    made = socket.socket(socket.AF_UNIX)
    made.connect(listening.getsockname())
    return made

def datagram6():
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.bind(("::1", 0))
    return made

def packets():
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300)
    made.bind(("lo", 3))
    return made

def watch(directory):
    os.mkdir(directory)
    made = libc.inotify_init1(0o4000)
    libc.inotify_add_watch(made, directory.encode(), 0x100)
    return made

def netlink():
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    made.bind((0, 0))
    made.send(struct.pack("IHHIIB", 17, 18, 0x301, 1, 0, 0))
    return made
"""

KEPT = {
    "unix-stream": ("made = unix(socket.SOCK_STREAM); other.send(b'hello')", "peek(made)"),
    "unix-stream-of-one-that-closed": (
        "made = unix(socket.SOCK_STREAM); other.send(b'hello'); other.close()",
        "peek(made)",
    ),
    "unix-datagrams": (
        "made = unix(socket.SOCK_DGRAM); other.send(b'a'); other.send(b'bc')",
        "peek(made), available(made)",
    ),
    "unix-packets": ("made = unix(socket.SOCK_SEQPACKET); other.send(b'a'); other.send(b'bc')", "peek(made)"),
    "descriptors-in-a-stream": (
        "made = unix(socket.SOCK_STREAM); reader, writer = os.pipe(); os.write(writer, b'xyz'); pass_on(reader)",
        "[kind for kind, _ in rights(made)[1]]",
    ),
    "descriptors-in-datagrams": (
        "made = unix(socket.SOCK_DGRAM); pass_on(os.memfd_create('x'))",
        "rights(made)",
    ),
    "pipe": ("reader, writer = os.pipe(); os.write(writer, b'x' * 5000)", "available(reader)"),
    "fifo": (
        "os.mkfifo(control + '/f'); file = os.open(control + '/f', os.O_RDWR); os.write(file, b'abc')",
        "available(file)",
    ),
    "terminal": (  # the kernel passes it on in a thread of its own
        "master, slave = os.openpty(); tty.setraw(slave); os.write(master, b'abc'); select.select([slave], [], [])",
        "available(slave)",
    ),
    "tcp": ("made = connection(); client.send(b'hello')", "peek(made)"),
    "tcp-of-one-that-closed": ("made = connection(); client.send(b'hello'); client.close()", "peek(made)"),
    "signals": (
        "signal.pthread_sigmask(0, [10, 40]); os.kill(os.getpid(), 10); os.kill(os.getpid(), 40)",
        "sorted(signal.sigpending())",
    ),
}
NAMED = {
    "udp": (
        "made = datagram(); other = datagram(); other.sendto(b'hello', made.getsockname())",
        "peek(made)",
        "has datagrams that it has not read (127.0.0.1:",
    ),
    "udp-over-ipv6": (
        "made = datagram6(); made.sendto(b'hello', made.getsockname())",
        "peek(made)",
        "has datagrams that it has not read ([::1]:",
    ),
    "packets": (
        "made = packets(); datagram().sendto(b'x', ('127.0.0.1', 9))",
        "readable(made)",
        "has datagrams that it has not read (lo)",
    ),
    "errors": (
        "made = datagram(); made.setsockopt(0, 11, 1); made.connect(('127.0.0.1', 9)); made.send(b'x'); time.sleep(0.1)",
        "readable(made)",
        "has an error of a socket that it has not seen",
    ),
    "inotify": (
        "made = watch(control + '/d'); open(control + '/d/new', 'w').close()",
        "available(made)",
        "has 32 bytes of inotify events that it has not read",
    ),
    "clients-waiting": (
        "made = listener(); client = socket.create_connection(made.getsockname()); client.send(b'hello')",
        "readable(made), peek(client)",
        "has 1 client waiting to be accepted",
    ),
    "urgent": (
        "made = connection(); client.send(b'x', socket.MSG_OOB); time.sleep(0.1)",
        "bool(select.select([], [], [made], 0)[2])",
        "has an urgent byte",
    ),
    "senders-of-unix-datagrams": (
        "made, other = named(socket.SOCK_DGRAM), named(socket.SOCK_DGRAM); other.sendto(b'hello', made.getsockname())",
        "made.recvfrom(10, socket.MSG_PEEK)",
        "they come back without their sender's address",
    ),
}
PASSING = {
    "netlink": ("made = netlink()", "made.recv(10_000), made.recv(10_000)"),
    "credentials": ("made = unix(socket.SOCK_STREAM); made.setsockopt(1, 16, 1); other.send(b'x')", "made.recv(10)"),
    "unix-clients-waiting": (
        "made = named(socket.SOCK_STREAM); made.listen(); other = calling(made); other.send(b'x')",
        "kept.append(made.accept())",
    ),
}


def cases(table: Mapping[str, tuple[str, ...]]) -> list[ParameterSet]:
    return [pytest.param(*case, id=name) for name, case in table.items()]


def start(workloads: Workloads, eventually: Eventually, setup: str, look: str) -> Tree:
    tree = workloads.python(HEAD + MORE + TAIL, setup, look)
    eventually(lambda: "ready" in output(tree) or tree.exit() is not None)
    if tree.exit_status() == 77:
        pytest.skip(output(tree).strip())
    wait_ready(tree, eventually)
    return tree


def before_and_after(tree: Tree, images: Path, workloads: Workloads) -> list[object]:
    tree.remove()
    tree = restore(images, name=WorkloadName("work"), run_directory=tree.run_directory).tree
    workloads.trees.append(tree)
    (tree.run_directory / CONTROL / "go").touch()
    assert tree.wait(30) == 0, output(tree)
    found: list[object] = json.loads(output(tree).splitlines()[-1])
    return found


@pytest.mark.parametrize(("setup", "look"), cases(KEPT))
def test_data_on_its_way_is_kept(
    workloads: Workloads, eventually: Eventually, tmp_path: Path, setup: str, look: str
) -> None:
    tree = start(workloads, eventually, setup, look)
    assert dump(tree, tmp_path / "images", hold=True).notes == ()
    before, after = before_and_after(tree, tmp_path / "images", workloads)
    assert before == after


@pytest.mark.parametrize(("setup", "look", "words"), cases(NAMED))
def test_what_a_dump_drops_is_named(
    workloads: Workloads, eventually: Eventually, tmp_path: Path, setup: str, look: str, words: str
) -> None:
    tree = start(workloads, eventually, setup, look)
    notes = dump(tree, tmp_path / "images", hold=True).notes
    assert [note for note in notes if words in note], notes
    assert notes[0].startswith("process 1000 (python")
    before, after = before_and_after(tree, tmp_path / "images", workloads)
    assert before != after, "kept after all: then nothing need be said"


def test_a_client_that_nobody_accepts_does_not_wait_for_ever(
    workloads: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    """Others, accepted at the same port, are as they were."""
    setup = (
        "made = listener(); old = socket.create_connection(made.getsockname()); accepted = made.accept()[0]; "
        "client = socket.create_connection(made.getsockname())"
    )
    look = "client.setblocking(False), old.setblocking(False), peek(client), peek(old)"
    tree = start(workloads, eventually, setup, look)
    dump(tree, tmp_path / "images", hold=True)
    before, after = before_and_after(tree, tmp_path / "images", workloads)
    assert before == [None, None, 11, 11]
    assert after == [None, None, 104, 11], "reset"


@pytest.mark.parametrize(("setup", "take"), cases(PASSING))
@pytest.mark.parametrize("was_frozen", [False, True], ids=["running", "paused"])
def test_a_dump_waits_for_what_is_taken_soon(
    workloads: Workloads, eventually: Eventually, tmp_path: Path, setup: str, take: str, was_frozen: bool
) -> None:
    """It runs for a moment, and is tried again; one that was paused is paused afterwards."""
    program = (
        f"kept = []\n{setup}\ndef later():\n    time.sleep(0.4)\n    {take}\nthreading.Thread(target=later).start()"
    )
    tree = start(workloads, eventually, program, "1")
    if was_frozen:
        tree.freeze()
    dump(tree, tmp_path / "images")
    assert tree.frozen is was_frozen
    assert before_and_after(tree, tmp_path / "images", workloads) == [1, 1]


def test_what_nobody_takes_is_a_refusal(workloads: Workloads, eventually: Eventually, tmp_path: Path) -> None:
    tree = start(workloads, eventually, PASSING["netlink"][0], "1")
    with pytest.raises(Busy, match="on its way"):
        dump(tree, tmp_path / "images", hold=True, freeze_timeout_s=1)
    assert not tree.frozen
    assert list(tmp_path.iterdir()) == []


def test_a_look_leaves_where_a_socket_is_peeked_at() -> None:
    name = f"\0kybernate-peek-{os.getpid()}"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(name)
        sender.bind(f"{name}-sender")
        sender.sendto(b"content", name)
        receiver.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        own = HostPid(os.getpid())
        held = [file for file in open_files(own) if file.number == receiver.fileno()]
        assert "without their sender's address" in look({own: held}).notes[0]
        assert receiver.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 0
        assert receiver.recv(100, socket.MSG_PEEK) == b"content"
