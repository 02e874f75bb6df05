"""The kernel calls about namespaces and mounts that Python 3.11 lacks, and the few set-ups made of them.

Everything here acts on the *calling* process (setns: the calling thread) and raises OSError; the callers put
the error into words. It is imported by the supervisor, so it needs nothing but ctypes and the built-ins.

Limits: x86_64 and aarch64 share the three system call numbers used here; Linux 5.2 or newer.
"""

# ruff: noqa: PTH103, PTH112, PTH123
# Without pathlib: start-up time, and memory for as long as a workload lives.

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Sequence

NEW_MOUNTS = 0x00020000
NEW_UTS = 0x04000000
NEW_IPC = 0x08000000
NEW_PIDS = 0x20000000
NEW_NETWORK = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 19
_MNT_DETACH = 2
_AT_FDCWD = -100
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 1, 15, 24, 36
_AF_INET, _SOCK_DGRAM, _SOCK_CLOEXEC = 2, 2, 0o2000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8913, 0x8914, 1, 0x40

_KEPT_CAPABILITIES = frozenset(
    # What a container runtime leaves to root, and what large-memory programs use: CHOWN, DAC_OVERRIDE, FOWNER,
    # FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, IPC_LOCK, SYS_CHROOT, SYS_PTRACE,
    # SYS_NICE, SYS_RESOURCE, MKNOD, AUDIT_WRITE, SETFCAP.
    (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 14, 18, 19, 23, 24, 27, 29, 31)
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = [ctypes.c_int]
_libc.unshare.restype = ctypes.c_int
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.setns.restype = ctypes.c_int
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.mount.restype = ctypes.c_int
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.umount2.restype = ctypes.c_int
_libc.sethostname.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
_libc.sethostname.restype = ctypes.c_int
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.prctl.restype = ctypes.c_int
_libc.socket.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
_libc.socket.restype = ctypes.c_int
# Variadic: every call passes c_long for each argument, which is what the kernel reads.
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def unshare(kinds: int) -> None:
    """Give the calling process new namespaces (`NEW_*`). NEW_PIDS takes effect for the next child."""
    _checked(_libc.unshare(kinds), "unshare")


def setns(descriptor: int, kinds: int = 0) -> None:
    """Move the calling thread into the namespace(s) of a /proc/PID/ns file or, with `kinds`, of a pidfd."""
    _checked(_libc.setns(descriptor, kinds), "setns")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    arguments = (os.fsencode(source), os.fsencode(target), os.fsencode(kind), flags, os.fsencode(options))
    _checked(_libc.mount(*arguments), f"mount {kind or 'bind'} on {target}")


def detach_mount(target: str) -> None:
    """umount2(2), lazily: it vanishes from here at once and from the kernel when nobody uses it."""
    _checked(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"unmount {target}")


def set_host_name(name: str) -> None:
    raw = name.encode()
    _checked(_libc.sethostname(raw, len(raw)), "sethostname")


def set_process_name(name: str) -> None:
    """What ps and top show; the kernel keeps 15 bytes."""
    raw = ctypes.create_string_buffer(name.encode()[:15])
    _checked(_libc.prctl(_PR_SET_NAME, ctypes.addressof(raw), 0, 0, 0), "prctl name")


def become_subreaper() -> None:
    """Orphans among the descendants become children of this process."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl subreaper")


def die_with_parent(signal_number: int) -> None:
    """Have this signal sent to the calling process when its parent ends. Cleared by a set-uid exec."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl death signal")


def drop_capabilities() -> None:
    """Take from the bounding set what lets root undo its namespaces (CAP_SYS_ADMIN and the like).

    Takes effect at the next exec. A workload that runs as root keeps what a container's root has.
    """
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        if capability not in _KEPT_CAPABILITIES:
            _checked(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), f"prctl drop capability {capability}")


def raise_loopback() -> None:
    """Bring `lo` up in the network namespace of the calling thread; the kernel adds 127.0.0.1 and ::1 itself."""
    descriptor = _checked(_libc.socket(_AF_INET, _SOCK_DGRAM | _SOCK_CLOEXEC, 0), "socket")
    try:
        request = bytearray(40)  # struct ifreq: 16 bytes of name, then a union that begins with short flags
        request[:2] = b"lo"
        fcntl.ioctl(descriptor, _SIOCGIFFLAGS, request)
        flags = int.from_bytes(request[16:18], "little") | _IFF_UP | _IFF_RUNNING
        request[16:18] = flags.to_bytes(2, "little")
        fcntl.ioctl(descriptor, _SIOCSIFFLAGS, request)
    finally:
        os.close(descriptor)


def _clone_mount(path: str) -> int:
    """A detached copy of what is at `path`, mounts below included, as a descriptor."""
    raw = ctypes.c_char_p(os.fsencode(path))
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    number = _libc.syscall(ctypes.c_long(_OPEN_TREE), ctypes.c_long(_AT_FDCWD), raw, ctypes.c_long(flags))
    return _checked(number, f"open_tree {path}")


def _attach_mount(descriptor: int, path: str) -> None:
    empty, raw = ctypes.c_char_p(b""), ctypes.c_char_p(os.fsencode(path))
    result = _libc.syscall(
        ctypes.c_long(_MOVE_MOUNT),
        ctypes.c_long(descriptor),
        empty,
        ctypes.c_long(_AT_FDCWD),
        raw,
        ctypes.c_long(_MOVE_MOUNT_F_EMPTY_PATH),
    )
    _checked(result, f"move_mount {path}")


def mount_points() -> list[str]:
    """Where something is mounted, in the order it was mounted."""
    with open("/proc/self/mountinfo") as file:
        raw = [line.split(" ", 5)[4] for line in file]
    # The kernel writes space, tab, newline and backslash as three octal digits.
    return [p.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\") for p in raw]


def hide_all_but(hidden: str, kept: str, *, shown_as: str | None = None, around: str | None = None) -> None:
    """Cover the directory `hidden` so that only `kept`, a directory below it, is left: at its old path, or at `shown_as`.

    Mounts below `hidden` are detached from this mount namespace, so that it doesn't keep them alive (the agent's
    pool is such a mount, and large). All must be real paths. Needs a mount namespace of one's own, not shared.
    With `shown_as`, the directory `around` above it is covered in the same way; it must be there.
    """
    clone = _clone_mount(kept)
    try:
        covered = [hidden]
        # A state directory inside of another: the one further out goes first, and the inner needs no cover of its own.
        if around is not None and not _is_below(around, hidden):
            covered = [around] if _is_below(hidden, around) else [hidden, around]
        for directory in covered:
            for point in reversed(mount_points()):
                if _is_below(point, directory) and point != directory:
                    detach_mount(point)
            mount("kybernate", directory, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=64k")
        place = shown_as or kept
        os.makedirs(place, 0o755)
        _attach_mount(clone, place)
        for directory in covered:
            mount("", directory, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    finally:
        os.close(clone)


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def lay_over(path: str, *, upper: str, work: str) -> None:
    """Let writes below the directory `path` go to the directory `upper`. `work` is an empty directory beside it, the kernel's
    own.

    `path` must be real: with a symbolic link in it this is refused (OSError), since its owner could make that lead elsewhere
    at any moment. What is mounted below `path` isn't seen there any more.
    """
    descriptor = _opened_without_links(path)
    try:
        place = f"/proc/self/fd/{descriptor}"
        # A colon, a comma or a backslash in a path would end it.
        escaped = [part.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,") for part in (place, upper, work)]
        options = "lowerdir={},upperdir={},workdir={}".format(*escaped)
        mount("kybernate", place, "overlay", MS_NOSUID | MS_NODEV, options)
    finally:
        os.close(descriptor)


def _opened_without_links(path: str) -> int:
    """The directory itself, going down from the root."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open("/", flags)
    for name in path.strip("/").split("/"):
        above = descriptor
        try:
            descriptor = os.open(name, flags, dir_fd=above)
        finally:
            os.close(above)
    return descriptor


def mount_message_queues() -> None:
    """Those of the calling process's IPC namespace."""
    if os.path.isdir("/dev/mqueue"):
        mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def own_mounts(*, cgroup_roots: Sequence[str]) -> None:
    """Lay /proc, /dev/shm, /dev/pts and /dev/mqueue anew for new pid and ipc namespaces; make the cgroups read-only.

    What is mounted or unmounted on the host later still reaches this namespace (it is a slave), never the
    other way round. /sys and /dev stay the host's: the GPU's device files are there.
    """
    mount("", "/", "", MS_REC | MS_SLAVE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if os.path.isdir("/dev/shm"):
        mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    if os.path.isdir("/dev/pts"):
        # Terminals of one's own: a restore wants their numbers back.
        mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
    mount_message_queues()
    for root in cgroup_roots:  # one that is left out would be the way to thaw itself
        mount("", root, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
