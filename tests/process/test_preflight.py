"""What can't be dumped is found before anything is touched, and named."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.process.conftest import Workloads

from kybernate.model.errors import Unsupported
from kybernate.model.types import WorkloadName
from kybernate.process import sock_diag
from kybernate.process.connections import leading_out, unix_leading_out
from kybernate.process.dumping import dump
from kybernate.process.networks import open_socket
from kybernate.process.preflight import Connections, dumpable, may_read_limits
from kybernate.process.restoring import restore
from kybernate.process.sock_diag import State, TcpSocket, UnixSocket
from kybernate.process.tree import Tree

from .dumps import finish, output, wait_ready

root = pytest.mark.root

HEAD = """
import ctypes, os, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
control = os.environ["KYBERNATE_RUN_DIRECTORY"] + "/control"
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        print("left out:", os.strerror(ctypes.get_errno()), flush=True)
        os._exit(77)
    return result
"""
TAIL = """
print("ready", flush=True)
while not os.path.exists(control + "/go"): time.sleep(0.01)
"""


def start(workloads: Workloads, eventually: Eventually, program: str, **fields: Any) -> Tree:
    tree = workloads.python(HEAD + program + TAIL, **fields)
    eventually(lambda: "ready" in output(tree) or tree.exit() is not None)
    if tree.exit_status() == 77:
        pytest.skip(output(tree).strip())
    wait_ready(tree, eventually)
    return tree


@root
@pytest.mark.parametrize(
    ("program", "words"),
    [
        pytest.param(
            "call(425, 4, ctypes.create_string_buffer(120))",
            "uses io_uring (start it without --io-uring",
            id="io_uring",
        ),
        pytest.param(
            "call(298, struct.pack('IIQ', 1, 112, 0) + bytes(96), 0, -1, -1, 0)", "performance counter", id="perf"
        ),
        pytest.param("call(323, 1)", "uses userfaultfd", id="userfaultfd"),
        pytest.param("call(41, socket.AF_VSOCK, socket.SOCK_STREAM, 0)", "socket of a kind .* (AF_VSOCK)", id="socket"),
        pytest.param(
            "held = call(41, socket.AF_INET, socket.SOCK_DGRAM, 1)", "socket of a kind .* (PING, for pings", id="ping"
        ),
        pytest.param(
            "held = open('/dev/kvm' if os.path.exists('/dev/kvm') else '/dev/vda')", "has the device", id="dev"
        ),
        pytest.param("held = open('/proc/self/ns/net')", "holds a namespace open (net; ", id="namespace"),
        pytest.param(
            "if os.fork() == 0:\n    if os.fork() == 0: signal.pause()\n    os._exit(0)\nos.wait()",
            "is a daemon .* tini -s",
            id="daemon",
        ),
        pytest.param(
            "held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\nheld.connect(sys.argv[1])",
            "Unix socket that is connected out",
            id="unix",
        ),
        pytest.param(
            "open(sys.argv[2] + '/a', 'w').close()\nheld = open(sys.argv[2] + '/a')\n"
            "os.link(sys.argv[2] + '/a', sys.argv[2] + '/b')\nos.unlink(sys.argv[2] + '/a')",
            "deleted but has other names",
            id="other-names",
        ),
        pytest.param(
            "import threading\nchild = os.fork()\nif child == 0: signal.pause()\ncall(101, 0x4206, child, 0, 0)",
            "is being traced",
            id="traced",
        ),
        pytest.param(
            "call(314, 0, struct.pack('IIQiIQQQ', 48, 6, 0, 0, 0, 10**7, 10**8, 10**8), 0)",
            "SCHED_DEADLINE",
            id="deadline",
        ),
        pytest.param(
            "held = call(240, b'queue', os.O_CREAT | os.O_RDWR, 0o600, None)", "POSIX message queue", id="mqueue"
        ),
        pytest.param(
            "call(272, 0x14000000)", "has made namespaces of its own (user, uts; start it without", id="namespaces"
        ),
        pytest.param(
            "call(259, -100, (control + '/console').encode(), 0o20600, 5 << 8 | 1)\nheld = open(control + '/console')",
            "has the device .* standard output",
            id="console",
        ),
        pytest.param("held = [os.pipe() for _ in range(1025)]", "it has 1025 pipes, and CRIU dumps 1024", id="pipes"),
        pytest.param(
            "queue = call(68, 0, 0o1600)\nsizes = ctypes.create_string_buffer(256)\ncall(71, queue, 2, sizes)\n"
            "struct.pack_into('Q', sizes, 88, 4096)\ncall(71, queue, 1, sizes)",
            "it has the System V message queue .* a size of its own (4096 bytes",
            id="size of a queue",
        ),
        pytest.param(
            "open('/proc/sys/kernel/msgmax', 'w').write('9000')\nqueue = call(68, 0, 0o1600)\n"
            "call(69, queue, struct.pack('q', 1) + bytes(9000), 9000, 0)",
            "it has the System V message queue .* longer than 8192 bytes",
            id="long message",
        ),
        pytest.param("held = os.pipe2(os.O_DIRECT)", "keeps packets apart", id="packets"),
        pytest.param(
            "held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nheld.setsockopt(17, 1, 1)", "UDP_CORK", id="cork"
        ),
    ],
)
def test_what_can_not_be_dumped_is_named(
    workloads: Workloads, eventually: Eventually, tmp_path: Path, program: str, words: str
) -> None:
    with contextlib.ExitStack() as stack, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(workloads.state_directory / "door"))
        door.listen()
        (workloads.state_directory / "workloads/work").mkdir(parents=True)
        (workloads.state_directory / "door").rename(workloads.state_directory / "workloads/work/agent.sock")
        tree = start_with_arguments(workloads, eventually, program, tmp_path)
        door.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            stack.enter_context(door.accept()[0])
        found = dumpable(tree)
        assert len(found) == 1, found
        for word in words.split(" .* "):
            assert word in found[0]
        assert found[0].startswith(("process 1", "it has"))
        with pytest.raises(Unsupported, match="workload work can't be dumped: "):
            dump(tree, tmp_path / "images")
        assert not tree.frozen
        assert sorted(path.name for path in tmp_path.iterdir() if path.name not in "ab") == []
        finish(tree)


def start_with_arguments(workloads: Workloads, eventually: Eventually, program: str, tmp_path: Path) -> Tree:
    run_directory = workloads.state_directory / "workloads/work"
    tree = workloads.python(HEAD + program + TAIL, str(run_directory / "agent.sock"), str(tmp_path), io_uring=True)
    eventually(lambda: "ready" in output(tree) or tree.exit() is not None)
    if tree.exit_status() == 77:
        pytest.skip(output(tree).strip())
    wait_ready(tree, eventually)
    return tree


@root
def test_nothing_is_found_in_what_can_be_dumped(workloads: Workloads, eventually: Eventually) -> None:
    program = """
import subprocess, select, threading
kept = [socket.socketpair(), os.pipe(), select.epoll(), os.eventfd(0), os.openpty(), os.memfd_create("x"),
        open("/dev/urandom"), open("/dev/null"), os.pidfd_open(os.getpid()), open("/etc/passwd")]
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
waiting = socket.create_connection(server.getsockname())
accepted = server.accept()
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
subprocess.Popen(["sleep", "1000"])
"""
    assert dumpable(start(workloads, eventually, program)) == []


@root
def test_without_isolation(workloads: Workloads, eventually: Eventually) -> None:
    tree = start(workloads, eventually, "", isolated=False)
    assert dumpable(tree) == ["it runs without isolation (namespaces and a cgroup), which a dump needs"]


@root
def test_users_need_a_capability(workloads: Workloads, eventually: Eventually) -> None:
    tree = workloads.shell(
        "echo ready; while ! [ -e $KYBERNATE_RUN_DIRECTORY/control/go ]; do sleep 0.1; done", uid=65534, gid=65534
    )
    wait_ready(tree, eventually)
    found = dumpable(tree)
    assert bool(found) != may_read_limits()
    assert all("without CAP_SYS_RESOURCE only root's" in line for line in found)


SERVER = """
server = socket.create_server(("127.0.0.1", 8080))
inner = socket.create_connection(server.getsockname())
inner_end = server.accept()[0]
print("listening", flush=True)
outer = server.accept()[0]
def check():
    inner.send(b"x")
    assert inner_end.recv(1) == b"x"
"""
AFTER = """
print("ready", flush=True)
while not os.path.exists(control + "/go"): time.sleep(0.01)
check()
try:
    assert outer.recv(1) == b""
except OSError:
    pass
print("closed")
"""


@root
def test_a_connection_to_the_outside_is_refused_or_closed(
    workloads: Workloads, elsewhere: Workloads, eventually: Eventually, tmp_path: Path
) -> None:
    tree = workloads.python(HEAD + SERVER + AFTER)
    eventually(lambda: "listening" in output(tree))
    with contextlib.closing(open_socket(tree)) as client:
        client.settimeout(60)
        client.connect(("127.0.0.1", 8080))
        wait_ready(tree, eventually)
        local = client.getsockname()
        assert dumpable(tree) == [
            f"process 1000 (python) has a connection that leads out of the workload (127.0.0.1:8080 - 127.0.0.1:{local[1]})"
        ]
        assert dumpable(tree, connections=Connections.CLOSE) == []
        report = dump(tree, tmp_path / "images", hold=True, connections=Connections.CLOSE)
        assert report.closed == (f"127.0.0.1:8080 - 127.0.0.1:{local[1]}",)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    tree.remove()
    found = restore(
        tmp_path / "images", name=WorkloadName("again"), run_directory=elsewhere.state_directory / "workloads/again"
    )
    elsewhere.trees.append(found.tree)
    finish(found.tree)
    assert "closed" in output(found.tree)


def entry(local: int, remote: int, inode: int, state: State = State.ESTABLISHED) -> TcpSocket:
    return TcpSocket(
        family=socket.AF_INET,
        state=state,
        local=("127.0.0.1", local),
        remote=("127.0.0.1", remote),
        inode=inode,
        identity=b"",
    )


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([entry(1, 2, 10), entry(2, 1, 11)], [], id="both-own"),
        pytest.param([entry(1, 2, 10), entry(2, 1, 99)], [10], id="other-foreign"),
        pytest.param([entry(1, 2, 10)], [10], id="other-elsewhere"),
        pytest.param([entry(1, 2, 10), entry(2, 1, 0)], [], id="other-not-accepted"),
        pytest.param([entry(1, 0, 10, State.LISTENING)], [], id="listening"),
        pytest.param([entry(1, 2, 10, State.CLOSED)], [], id="closed"),
        pytest.param([entry(1, 2, 99), entry(2, 1, 98)], [], id="others"),
    ],
)
def test_a_connection_is_own_if_both_ends_are(entries: list[TcpSocket], expected: list[int]) -> None:
    assert [found.inode for found in leading_out(entries, {10, 11})] == expected


def test_datagrams_hold_no_connection() -> None:
    stream = UnixSocket(socket.SOCK_STREAM, 10, 99)
    datagram = UnixSocket(socket.SOCK_DGRAM, 11, 99)
    assert unix_leading_out([stream, datagram, UnixSocket(socket.SOCK_STREAM, 12, 10)], {10, 11, 12}) == [stream]


def test_closing_what_is_gone_is_no_error() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, sock_diag.PROTOCOL) as diagnosis:
        gone = TcpSocket(socket.AF_INET, State.ESTABLISHED, ("", 0), ("", 0), 0, bytes([0, 1, 0, 2]) + bytes(44))
        sock_diag.destroy(diagnosis, gone)


def test_the_agent_s_door_is_left_out_where_that_is_asked() -> None:
    asking, other = UnixSocket(socket.SOCK_SEQPACKET, 10, 20), UnixSocket(socket.SOCK_STREAM, 11, 21)
    ends = [
        UnixSocket(socket.SOCK_SEQPACKET, 20, 10, "/proc/self/fd/9/agent.sock"),
        UnixSocket(socket.SOCK_STREAM, 21, 11, "/run/other.sock"),
    ]
    assert unix_leading_out([asking, other, *ends], {10, 11}) == [asking, other]
    assert unix_leading_out([asking, other, *ends], {10, 11}, but="agent.sock") == [other]
