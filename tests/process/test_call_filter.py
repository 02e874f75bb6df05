"""A launched workload does without io_uring and MPTCP sockets, so that it can be dumped; unless it shall have io_uring."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from pathlib import Path

import pytest
import uvloop
from tests.conftest import Eventually
from tests.process.conftest import ENVIRONMENT, Workloads
from tests.store.server import Unbuildable, server_program

from kybernate.model.types import HostPid, WorkloadName
from kybernate.process import call_filter, preflight
from kybernate.process.dumping import dump
from kybernate.process.networks import open_socket
from kybernate.process.open_files import open_files
from kybernate.process.restoring import restore
from kybernate.process.tree import Tree

from .dumps import feature, finish, output, wait_ready

X86_64, I386, ARM64 = 0xC000003E, 0x40000003, 0xC00000B7
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
X32 = 0x40000000


def answer(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the filter returns: classic BPF, as far as it goes here."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *(*arguments, *(0,) * (6 - len(arguments))))
    instructions = list(struct.iter_unpack("HBBI", program))
    at = accumulator = 0
    while True:
        code, yes, no, value = instructions[at]
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == 0x54:
            accumulator &= value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x25: accumulator > value}[code]
            at += yes if holds else no


@pytest.mark.parametrize(
    ("architecture", "number", "arguments", "number_of_error"),
    [
        (X86_64, 424, (), 0),
        (X86_64, 425, (), errno.ENOSYS),
        (X86_64, 427, (), errno.ENOSYS),
        (X86_64, 428, (), 0),
        (X86_64, 425 | X32, (), errno.ENOSYS),
        (I386, 426, (), errno.ENOSYS),
        (ARM64, 425, (), 0),
        (X86_64, 41, (2, 1, 262), errno.EPROTONOSUPPORT),
        (X86_64, 41 | X32, (10, 1, 262), errno.EPROTONOSUPPORT),
        (X86_64, 41, (2 | 7 << 32, 1, 262 | 7 << 32), errno.EPROTONOSUPPORT),
        (X86_64, 41, (2, 1, 6), 0),
        (X86_64, 41, (1, 1, 262), 0),
        (X86_64, 359, (2, 1, 262), 0),
        (I386, 359, (2, 1, 262), errno.EPROTONOSUPPORT),
        (I386, 41, (2, 1, 262), 0),
    ],
)
def test_the_filter_s_answers(architecture: int, number: int, arguments: tuple[int, ...], number_of_error: int) -> None:
    expected = REFUSE | number_of_error if number_of_error else ALLOW
    assert answer(call_filter.program(io_uring=False), architecture, number, *arguments) == expected


def test_with_io_uring_only_sockets_are_looked_at() -> None:
    found = call_filter.program(io_uring=True)
    assert answer(found, X86_64, 425) == ALLOW
    assert answer(found, X86_64, 41, 2, 1, 262) == REFUSE | errno.EPROTONOSUPPORT


UVLOOP = """
import asyncio, os, uvloop
control = os.environ["KYBERNATE_RUN_DIRECTORY"] + "/control"
async def answer(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 8000)
    reader, writer = await asyncio.open_connection("127.0.0.1", 8000)
    print("ready", flush=True)
    while not os.path.exists(control + "/go"): await asyncio.sleep(0.01)
    writer.write(b"over\\n")
    assert await reader.readline() == b"over\\n"
    print("answered", flush=True)
uvloop.run(main())
"""


@pytest.mark.root
def test_a_loop_of_uvloop_goes_to_the_disk_and_back(
    workloads: Workloads, elsewhere: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    packages = str(Path(uvloop.__file__).parents[1])
    tree = workloads.launch(
        *(sys.executable, "-S", "-c", UVLOOP),
        environment=ENVIRONMENT | {"PYTHONPATH": packages},
    )
    wait_ready(tree, eventually)
    assert not [file.target for pid in tree.pids() for file in open_files(pid) if "io_uring" in file.target]
    dump(tree, tmp_path / "images", hold=True)
    tree.remove()
    found = restore(
        tmp_path / "images", name=WorkloadName("again"), run_directory=elsewhere.state_directory / "workloads/again"
    )
    elsewhere.trees.append(found.tree)
    finish(found.tree)
    assert "answered" in output(found.tree)


@pytest.mark.root
def test_a_server_in_go_goes_to_the_disk_and_back(
    workloads: Workloads, elsewhere: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    """Go's listeners ask for MPTCP first; this is one that other tests use as an S3 server."""
    try:
        program = server_program()
    except Unbuildable as e:
        pytest.skip(str(e))
    bucket = tmp_path / "root"
    bucket.mkdir()
    tree = workloads.launch(
        *(str(program), "--port", "127.0.0.1:8000", "--access", "a", "--secret", "s", "--quiet", "posix", str(bucket)),
        environment=ENVIRONMENT | {"HOME": str(bucket)},
    )
    eventually(lambda: answers(tree), timeout_s=60, what="it answers")
    dump(tree, tmp_path / "images", hold=True)
    tree.remove()
    found = restore(
        tmp_path / "images", name=WorkloadName("again"), run_directory=elsewhere.state_directory / "workloads/again"
    )
    elsewhere.trees.append(found.tree)
    assert answers(found.tree)


def answers(tree: Tree) -> bool:
    """Whether an HTTP server listens at its port 8000, and says so."""
    with contextlib.suppress(OSError), contextlib.closing(open_socket(tree)) as client:
        client.settimeout(60)
        client.connect(("127.0.0.1", 8000))
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return client.recv(5) == b"HTTP/"
    return False


@pytest.mark.root
def test_two_clones_have_the_filter(
    workloads: Workloads, elsewhere: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    tree = workloads.launch(*feature("io_uring"))
    wait_ready(tree, eventually)
    dump(tree, tmp_path / "images")
    finish(tree)
    for name in ("a", "b"):
        run_directory = elsewhere.state_directory / "workloads" / name
        elsewhere.trees.append(restore(tmp_path / "images", name=WorkloadName(name), run_directory=run_directory).tree)
    for clone in elsewhere.trees:
        dump(clone, tmp_path / f"images-{clone.name}")  # and can be dumped again
        finish(clone)


@pytest.mark.root
def test_without_isolation_there_is_no_filter(workloads: Workloads, eventually: Eventually) -> None:
    tree = workloads.shell("grep Seccomp: /proc/self/status; echo ready; exec sleep 1000", isolated=False)
    wait_ready(tree, eventually)
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Seccomp:"))
    assert own in output(tree)


def test_who_has_an_mptcp_socket_is_told_what_to_do() -> None:
    try:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    except OSError as e:
        pytest.skip(f"left out: no MPTCP here ({e.strerror})")
    with held:
        file = next(found for found in open_files(HostPid(os.getpid())) if found.number == held.fileno())
        text = preflight._of_protocol(file)
    assert text is not None
    assert "MPTCP" in text
    assert "GODEBUG=multipathtcp=0" in text
