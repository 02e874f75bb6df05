"""What of a workload can't be dumped, found beforehand by reading /proc, and named in one line each.

CRIU finds the same and more, but late, with the workload standing still, and in its own words. What this doesn't know
fails there; nothing is lost by that, since a failed dump leaves the workload as it was.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kybernate.model.types import HostPid
from kybernate.process import changes, images, kernel_calls, message_queues, network_lock, procfs, records, sharing
from kybernate.process import connections as links
from kybernate.process.criu_commands import GHOST_LIMIT
from kybernate.process.descriptor_copies import copies
from kybernate.process.kernel_reading import threads_of
from kybernate.process.needs import is_below
from kybernate.process.open_files import MappedFile, OpenFile, mapped_files, open_files
from kybernate.process.tree import BROKER_SOCKET, CONTROL, Tree

_CAP_SYS_RESOURCE = 24
_NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
"""Not time: a restored process has one of its own, in which the monotonic clock goes on where it stood."""
_ANONYMOUS = ("[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]", "inotify", "[fanotify]", "[pidfd]", "bpf-map")
_ANONYMOUS_NAMES = {
    "[io_uring]": "io_uring (start it without --io-uring or `io_uring: true`: then libraries do without)",
    "[perf_event]": "a performance counter (perf_event_open)",
    "[userfaultfd]": "userfaultfd",
    "bpf-prog": "a BPF program",
}
_DEADLINE = 6
_SCHEDULING = {os.SCHED_OTHER, os.SCHED_FIFO, os.SCHED_RR, os.SCHED_BATCH, os.SCHED_IDLE}
_ULP, _ULP_BYTES, _UDP_CORK = 31, 16, 1
"""TCP_ULP, the length of its name, and UDP_CORK."""
_SOCKETS = ("UNIX", "TCP", "UDP", "NETLINK", "PACKET", "RAW")
_WITHOUT = {
    "MPTCP": ": start it anew, or Go programs with GODEBUG=multipathtcp=0",
    "PING": ", for pings without rights: close it after use, or take a raw socket, as root may",
}
"""What to do about other kinds."""
_DEVICES = {
    *((1, number) for number in (3, 5, 7, 8, 9, 11)),  # null, zero, full, random, urandom, kmsg
    (5, 0),  # tty
    (5, 2),  # ptmx
}
_TERMINALS = range(136, 144)
_CONSOLES = (4, 5)
_MOST_PIPES = 1024
"""CRIU's, of a whole workload (NR_PIPES_WITH_DATA in criu/pipes.c)."""
_QUEUES = "/dev/mqueue"
_GPU = ("/dev/nvidia", "/dev/dri")


class Connections(enum.StrEnum):
    """What to do about TCP connections that lead out of a workload."""

    REFUSE = "refuse"
    """They are a reason not to dump."""
    CLOSE = "close"
    """Close them just before; both ends notice."""


def dumpable(
    tree: Tree,
    *,
    connections: Connections = Connections.REFUSE,
    gpu_released: bool = True,
    asked_at: int | None = None,
    gpu_directories: Sequence[str] = (),
    allow_changes: bool = False,
) -> list[str]:
    """A line for each thing that hinders a dump; empty is good. Touches nothing; takes milliseconds.

    Args:
        allow_changes: what would be another after a restore doesn't hinder; see `would_change`.
        gpu_released: the GPU state has been checkpointed, so that a device still held is a problem. False: ask before
            a pause, when the devices are sure to be open, and memory may just be asked for at the broker's socket.
        asked_at: a port of its own; connections to there don't count, since they will have been closed.
        gpu_directories: where simulated GPUs are; what is held of them counts as a GPU's.
    """
    if not tree.isolated:
        return ["it runs without isolation (namespaces and a cgroup), which a dump needs"]
    gpu = (*_GPU, *gpu_directories)
    pids = tree.pids()
    problems = [line for pid in pids for line in _of_process(tree, pid)]
    held = {pid: list(open_files(pid)) for pid in pids}
    own = _taken_along(tree)
    for pid in pids:
        who = _who(tree, pid)
        lines = [_of_file(file, gpu=gpu, gpu_released=gpu_released, own=own) for file in held[pid]]
        lines += [_of_mapping(mapping, gpu=gpu, gpu_released=gpu_released) for mapping in mapped_files(pid)]
        problems += [f"{who} {line}" for line in dict.fromkeys(lines) if line]
    problems += _of_sockets(
        tree, held, connections, broker_socket=None if gpu_released else BROKER_SOCKET, asked_at=asked_at
    )
    problems += _of_queues(tree)
    problems += [f"it has {line}" for line in message_queues.hindrances_of(tree)]
    pipes = {file.target for files in held.values() for file in files if file.target.startswith("pipe:")}
    if len(pipes) > _MOST_PIPES:
        problems.append(
            f"it has {len(pipes)} pipes, and CRIU dumps {_MOST_PIPES} at most (socket pairs have no such limit)"
        )
    if not allow_changes:
        problems += refusals(would_change(tree, thorough=False))
    return list(dict.fromkeys(problems))


def would_change(tree: Tree, *, thorough: bool = True) -> list[changes.Change]:
    """What would be another after a restore, each in a whole sentence.

    Args:
        thorough: False: leave out what takes time with the size of its memory.
    """
    own = _taken_along(tree)
    found = []
    for pid in tree.pids():
        files = list(open_files(pid))
        its = list(changes.changes(pid, supervisor=HostPid(tree.supervisor_pid), files=files, thorough=thorough))
        its += [changes.of_database(path) for path in sharing.databases(files, below=own)]
        found += [changes.Change(f"{_who(tree, pid)} {change.text}", serious=change.serious) for change in its]
    return found


def _taken_along(tree: Tree) -> list[str]:
    """Directories, as the workload knows them, whose files a dump takes along, and a restore makes anew."""
    inside = records.read_supervisor(tree.run_directory).run_directory_inside or tree.run_directory.resolve()
    return ["/dev/shm", f"{inside}/{CONTROL}", *images.read_launched(tree.run_directory).layers]


def refusals(found: Iterable[changes.Change]) -> list[str]:
    """A line for each that hinders a dump, unless it is allowed."""
    return [f"{change.text} (unless --allow-changes is given)" for change in found if change.serious]


def close_connections(tree: Tree) -> list[str]:
    """Close the TCP connections that lead out of the workload; returns them in a line each.

    Raises:
        Unsupported: the kernel can't.
    """
    own = {file.socket_inode for pid in tree.pids() for file in open_files(pid)} - {None}
    found = links.leading_out(links.sockets_of(tree).tcp, {inode for inode in own if inode is not None})
    links.close(tree, found)
    return [links.describe(entry) for entry in found]


def _who(tree: Tree, pid: HostPid) -> str:
    found = procfs.stat(pid)
    return f"process {tree.inside_pid(pid)} ({found.name if found else 'ended'})"


def _of_process(tree: Tree, pid: HostPid) -> Iterator[str]:
    found = procfs.stat(pid)
    if found is None:
        return
    who = _who(tree, pid)
    if found.parent == tree.supervisor_pid and pid != tree.main_pid():
        yield (
            f"{who} is a daemon: its parent has ended, and what is dumped is the family of the first process (start it in the "
            "foreground, or as a workload of its own, or all below a subreaper, such as `tini -s --`)"
        )
    try:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        other = [name for name in _NAMESPACES if _namespace(pid, name) != _namespace(tree.supervisor_pid, name)]
    except OSError:
        return
    if int(status.get("TracerPid", "0")):
        yield f"{who} is being traced, by a debugger or strace"
    if other:
        yield (
            f"{who} has made namespaces of its own ({', '.join(other)}; start it without its sandbox: unshare, bwrap, or for a "
            "browser --no-sandbox)"
        )
    if unknown := _scheduling(pid) - _SCHEDULING:
        yield f"{who} is scheduled in a way that can't be restored ({'SCHED_DEADLINE' if _DEADLINE in unknown else min(unknown)})"
    users = set(status["Uid"].split() + status["Gid"].split())
    if users != {"0"} and not may_read_limits():
        yield f"{who} runs as user {status['Uid'].split()[0]}, and without CAP_SYS_RESOURCE only root's processes can be dumped"


def _scheduling(pid: HostPid) -> set[int]:
    """The policies of its threads."""
    found = set()
    for thread in threads_of(pid):
        with contextlib.suppress(ProcessLookupError):
            found.add(os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK)
    return found


def _namespace(pid: HostPid, name: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{name}")  # noqa: PTH115 - "pid:[1]" is no path


def may_read_limits() -> bool:
    """Whether we have CAP_SYS_RESOURCE: the kernel wants it for reading the limits of another user's process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def _of_file(file: OpenFile, *, gpu: Sequence[str], gpu_released: bool, own: Sequence[str]) -> str | None:
    kind, _, name = file.target.partition(":")
    if kind == "anon_inode":
        if name.startswith(_ANONYMOUS):
            return None
        return f"uses {_ANONYMOUS_NAMES.get(name, name)}"
    if kind == "socket":
        return _of_protocol(file)
    if kind == "pipe" and file.flags & os.O_DIRECT:
        return "has a pipe that keeps packets apart (O_DIRECT)"
    if not file.target.startswith("/"):
        return (
            f"holds a namespace open ({kind}; a program that has entered it may close it)"
            if kind in (*_NAMESPACES, "time")
            else None
        )
    found = file.stat()
    if found is None:
        return None
    if _is_gpu(file.target, gpu):
        return f"has the GPU open ({file.target})" if gpu_released else None
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        device = (os.major(found.st_rdev), os.minor(found.st_rdev))
        if stat.S_ISCHR(found.st_mode) and (device in _DEVICES or device[0] in _TERMINALS):
            return None
        advice = "; standard output goes to its log" if device[0] in _CONSOLES else ""
        return f"has the device {file.target} open (close it before{advice})"
    if stat.S_ISREG(found.st_mode) and _is_queue(file):
        return f"has the POSIX message queue {file.target} open"
    is_memory = file.target.startswith("/memfd:")  # dumped as such, however large
    if file.deleted and stat.S_ISREG(found.st_mode) and not is_memory:
        if (used := found.st_blocks * 512) > GHOST_LIMIT:  # as CRIU counts: without holes
            return f"has the deleted file {file.target} open, which is too large to keep ({used >> 30} GiB)"
        if found.st_nlink and not is_below(file.target, *own):
            return f"has {file.target} open, which was deleted but has other names; only in a layer such a file can be kept"
    return None


def _is_queue(file: OpenFile) -> bool:
    """mq_open(3) shows it right below the root, wherever it is mounted."""
    if file.target.count("/") > 1 and not is_below(file.target, _QUEUES):
        return False
    with contextlib.suppress(OSError):
        return kernel_calls.is_message_queue(str(file.link))
    return False


def _of_queues(tree: Tree) -> Iterator[str]:
    """Those that nobody has open stay in the namespace. Where they are mounted nowhere, nobody can see them."""
    with contextlib.suppress(OSError):
        if os.path.ismount(root := f"/proc/{tree.supervisor_pid}/root{_QUEUES}") and (names := os.listdir(root)):  # noqa: PTH208
            yield f"it has POSIX message queues ({len(names)}), which can't be dumped"


def _of_protocol(file: OpenFile) -> str | None:
    name = file.socket_protocol
    if not name or name.startswith(_SOCKETS):
        return None
    advice = next((text for kind, text in _WITHOUT.items() if name.startswith(kind)), "")
    return f"has a socket of a kind that can't be dumped ({name}{advice})"


def _of_mapping(mapping: MappedFile, *, gpu: Sequence[str], gpu_released: bool) -> str | None:
    path = mapping.path
    if _is_gpu(path, gpu):
        return f"maps memory of the GPU ({path})" if gpu_released else None
    if path.startswith("anon_inode:"):
        name = path.removeprefix("anon_inode:")
        return f"uses {_ANONYMOUS_NAMES.get(name, name)}"
    if path.startswith("/dev/") and not is_below(path, "/dev/shm", "/dev/zero", "/dev/null", "/dev/hugepages"):
        return f"maps the device {path}"
    return None


def _is_gpu(path: str, gpu: Sequence[str]) -> bool:
    return any(path.startswith(prefix) for prefix in gpu)


def _of_sockets(
    tree: Tree,
    held: dict[HostPid, list[OpenFile]],
    connections: Connections,
    *,
    broker_socket: str | None,
    asked_at: int | None,
) -> Iterator[str]:
    holders = {file.socket_inode: pid for pid, files in held.items() for file in files if file.socket_inode is not None}
    own = set(holders)
    if not own:
        return
    found = links.sockets_of(tree)
    if connections is Connections.REFUSE:
        for entry in links.leading_out(found.tcp, own):
            if entry.local[1] == asked_at:
                continue
            who = _who(tree, holders[entry.inode])
            yield f"{who} has a connection that leads out of the workload ({links.describe(entry)})"
    yield from _of_unsent(tree, found, holders)
    yield from _of_options(tree, held)
    for unix in links.unix_leading_out(found.unix, own, but=broker_socket):
        yield f"{_who(tree, holders[unix.inode])} has a Unix socket that is connected out of the workload"


def _of_options(tree: Tree, held: Mapping[HostPid, Sequence[OpenFile]]) -> Iterator[str]:
    """Sockets in a state that CRIU doesn't know, or loses."""
    for pid, files in held.items():
        numbers = [file.number for file in files if file.socket_protocol.startswith(("TCP", "UDP"))]
        for _, copy in copies(pid, numbers):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(copy)) as sock:
                if sock.type == socket.SOCK_DGRAM:
                    if sock.getsockopt(socket.IPPROTO_UDP, _UDP_CORK):
                        yield f"{_who(tree, pid)} has a half-written datagram (UDP_CORK)"
                elif protocol := sock.getsockopt(socket.IPPROTO_TCP, _ULP, _ULP_BYTES).rstrip(b"\0").decode():
                    yield f"{_who(tree, pid)} has a connection whose bytes the kernel changes ({protocol}, TCP_ULP)"


def unsent(tree: Tree) -> list[str]:
    """A line for each process with bytes in TCP connections that it has not sent yet, where this kernel can't hold packets
    back: CRIU would send them when the other end isn't there yet, and the connection would be reset."""
    holders = {
        file.socket_inode: pid for pid in tree.pids() for file in open_files(pid) if file.socket_inode is not None
    }
    return list(_of_unsent(tree, links.sockets_of(tree), holders)) if holders else []


def _of_unsent(tree: Tree, found: links.Sockets, holders: Mapping[int, HostPid]) -> Iterator[str]:
    full = [entry for entry in found.tcp if entry.inode in holders and entry.unsent]
    if not full or tree.cgroup is None or (why := network_lock.hindrance(tree.cgroup)) is None:
        return
    for pid in dict.fromkeys(holders[entry.inode] for entry in full):
        its = [entry for entry in full if holders[entry.inode] == pid]
        where = f"a connection ({links.describe(its[0])})" if len(its) == 1 else f"{len(its)} connections"
        yield (
            f"{_who(tree, pid)} has {sum(entry.unsent for entry in its)} bytes to send in {where} until the other end reads, "
            f"and this kernel can't hold packets back meanwhile ({why}; see `kybernate doctor`)"
        )
