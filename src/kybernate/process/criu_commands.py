"""CRIU's command lines for a dump and a restore inside a workload's namespaces, and its log put into one sentence.

CRIU runs in the workload's own mount, pid, network, ipc and host name namespace, so to it there are none: it dumps
processes and what they hold, and the house they live in is ours to build. Plugins stay out (an empty --libdir): a GPU
process is checkpointed by the driver before, and holds no device then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

GHOST_LIMIT = 4 << 30
"""Bytes of one deleted file that a dump takes along; CRIU's own limit of 1 MiB is for people who don't store images."""
_COMMON = (
    "-v3",
    "--tcp-established",  # loopback connections go on; those to the outside are settled before
    "--ext-unix-sk",  # a datagram socket to the host's syslog is connected anew
    "--file-locks",
    "--link-remap",  # glibc unlinks a semaphore's first name
    f"--ghost-limit={GHOST_LIMIT}",
    "--manage-cgroups=ignore",  # they are ours
    "--force-irmap",  # inotify where the file system has no handles (overlay): look the inode up by its path
)
_PASSING = re.compile(
    r"The socket has data to read|Control messages in queue|Non-empty write queue on an in-flight socket|libsoccr_save\(\) failed"
)
"""Data on its way that CRIU can't keep, and that a program which runs takes soon: of netlink, credentials beside bytes in Unix
sockets, clients that nobody has accepted there, urgent bytes."""
_EXPLANATIONS = (
    (r"Can't dump (?:mapped|ghost) file|ghost file .* too big|limit .*ghost", "a deleted file is too large to keep"),
    (
        r"Can't find a path for|Can't dump device|can't dump .*chr|Can't lookup dev",
        "a device is open that can't be dumped",
    ),
    (r"anon_inode:\[io_uring\]|io_uring", "io_uring is in use, which CRIU can't dump"),
    (r"OOM storing pipe", "it has more than 1024 pipes, CRIU's limit"),
    (r"External socket is used|Connected TCP socket, consider", "a connection leads out of the workload"),
    (r"is sockets?, which is external|unix.*[Ee]xternal", "a Unix socket leads out of the workload"),
    (r"Can't bind inet socket", "an address it listened on isn't there"),
    (r"(?:has bad size|File .* has bad|build-ID|buildid|checksum).*", "a file it uses has changed since the dump"),
    (
        r"Can't open file .*: No such file|Can't open .* on restore|Unable to open .*: No such file",
        "a file it uses is missing",
    ),
    (r"Can't fork for \d+: File exists|Unable to create .*pid.*File exists|set_tid.*exists", "a pid it needs is taken"),
    (_PASSING.pattern, "data is on its way that can't be kept"),
    (r"No space left on device", "no space left on the device"),
    (r"Cannot allocate memory|Can't mmap|oom", "not enough memory"),
    (r"timeout reached|Timeout reached", "its processes did not stand still in time"),
)
_NOISE = re.compile(r"Can't setup RLIMIT_NOFILE for self|Dumping FAILED|Restoring FAILED|Can't keep kdat|rlimit: ")
_LINE = re.compile(r"^\(\d+\.\d+\)\s+(?:\d+:\s+)?Error \([^)]*\): (.*)$|^Error \([^)]*\): (.*)$")


def dump_arguments(
    criu: Path,
    *,
    pid: int,
    images: int,
    cgroup: int,
    plugins: int,
    script: str,
    layers: Iterable[str],
    lock_network: bool,
    timeout_s: float,
) -> list[str]:
    """Dump the tree below `pid` and leave it as frozen as it was.

    Args:
        pid: as seen inside.
        images, plugins: descriptors of directories; in the first somebody takes the images (`image_stream`), the second
            is empty.
        script: path of a program that CRIU runs at its stations ($CRTOOLS_SCRIPT_ACTION), of importance: post-dump,
            when all images are written, the processes still stand, and /dev/shm still has CRIU's own links.
        cgroup: descriptor of the workload's frozen cgroup, through a mount where it may be written.
        layers: where a watched directory may lie that has no handle, and is looked for by its number.
        lock_network: hold back packets to its connections meanwhile; needless where there is only loopback.
        timeout_s: how long the processes may take to be caught.
    """
    return [
        str(criu),
        "dump",
        f"--tree={pid}",
        f"--images-dir=/proc/self/fd/{images}",
        "--stream",
        "--log-file=dump.log",
        f"--libdir=/proc/self/fd/{plugins}",
        f"--action-script={script}",
        "--leave-running",
        f"--freeze-cgroup=/proc/self/fd/{cgroup}",
        f"--network-lock={'nftables' if lock_network else 'skip'}",
        "--skip-in-flight",
        *(f"--irmap-scan-path={layer}" for layer in layers),
        f"--timeout={max(1, round(timeout_s))}",
        *_COMMON,
    ]


def restore_arguments(criu: Path, *, work: int, stream: bool) -> list[str]:
    """Restore a tree and leave it running.

    Args:
        work: descriptor of a directory for log and statistics, where the images lie, too.
        stream: instead, somebody gives them there (`image_stream`).
    """
    return [
        str(criu),
        "restore",
        f"--images-dir=/proc/self/fd/{work}",
        *(["--stream"] if stream else []),
        "--log-file=restore.log",
        f"--libdir=/proc/self/fd/{work}",
        "--restore-detached",
        *_COMMON,
    ]


def sentence(log: Path) -> str:
    """Why CRIU failed: what its first error means where we know, and its own words. Empty when it wrote no error."""
    errors = [line for line in _errors(log) if not _NOISE.search(line)]
    if not errors:
        return ""
    meaning = next((text for line in errors for pattern, text in _EXPLANATIONS if re.search(pattern, line)), None)
    own = "; ".join(dict.fromkeys(errors[:3]))[:400]
    return f"{meaning} (CRIU: {own})" if meaning else f"CRIU: {own}"


def is_passing(log: Path) -> bool:
    """Whether a dump failed for what may be over in a moment."""
    return any(_PASSING.search(line) for line in _errors(log))


def _errors(log: Path) -> list[str]:
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            found = [_LINE.match(line.rstrip("\n")) for line in file]
    except OSError:
        return []
    return [match[1] or match[2] for match in found if match]
