"""What an agent's process takes for itself before anything else: its state directory, and as many descriptors as there may be."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from kybernate.model.errors import BadInput, Conflict
from kybernate.model.layout import StateDirectory


def raise_descriptor_limit() -> None:
    """To what the kernel allows: taking a running workload over takes a descriptor for each of its extents, at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(OSError, ValueError):
        most = int(Path("/proc/sys/fs/nr_open").read_text())
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def only_agent(state: StateDirectory) -> Iterator[None]:
    """Holds the directory's lock.

    Raises:
        Conflict: another agent has it.
        BadInput: it can't be used.
    """
    try:
        state.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        state.workloads.mkdir(mode=0o755, exist_ok=True)
        found = state.root.stat()
        if found.st_uid != os.geteuid():
            raise BadInput(f"{state.root} belongs to user {found.st_uid}", hint="give another one with --state-dir")
        lock = os.open(state.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise BadInput(f"can't use {state.root}: {e.strerror}", hint="give another directory with --state-dir") from e
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"an agent (pid {owner}) uses {state.root} already",
                hint="`kybernate down` ends it, or give another directory with --state-dir",
            ) from e
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def api_listener(state: StateDirectory, group: str | None) -> socket.socket:
    """The API's socket, with its mode set before anybody can connect. Raises BadInput."""
    path = state.socket
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise BadInput(f"{path} is in the way and is no socket", hint="move it away")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o660)
        if group is not None:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except (OSError, KeyError) as e:
        listener.close()
        raise BadInput(f"can't listen on {path}: {e}", hint="see agent.api.group and agent.state_dir") from e
    listener.setblocking(False)
    return listener
