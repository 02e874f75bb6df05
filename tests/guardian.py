"""Cleans up after tests that could not: a process that waits until its stdin ends, then ends every agent, worker of the
activator and workload that lives below the directories it was told, unmounts what is mounted there and deletes them.

Its stdin is a pipe of the test process, so it ends with that process, however that ended: by Ctrl-C, by SIGKILL.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from kybernate.model.errors import KybernateError, NotFound
from kybernate.process.tree import attach, sweep

_END_S = 10.0
_FOLLOWS = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lines = sys.stdin.read()
sys.path[:0] = sys.argv[1:]
from tests.guardian import follow
follow(lines)
"""
"""Imports what it needs once it is needed."""


class _Guardian:
    """The one of this process. It is told what to guard, line by line, and when that is over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def tell(self, line: str) -> None:
        with self._lock:
            self._started().stdin.write(line)  # type: ignore[union-attr]
            self._started().stdin.flush()  # type: ignore[union-attr]

    @property
    def pid(self) -> int:
        with self._lock:
            return self._started().pid

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            root = Path(__file__).resolve().parents[1]
            command = [sys.executable, "-I", "-S", "-c", _FOLLOWS, *(path for path in sys.path if path), str(root)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, text=True, cwd=root, start_new_session=True
            )
            atexit.register(self._process.communicate)
        return self._process


_guardian = _Guardian()


def pid() -> int:
    """Of the process that guards for this one."""
    return _guardian.pid


@contextlib.contextmanager
def guarded(directory: Path) -> Iterator[None]:
    """Nothing that was started below `directory` outlives the block, or this process; the directory goes too."""
    _guardian.tell(f"+{directory}\n")
    try:
        yield
    finally:
        clean(directory)
        _guardian.tell(f"-{directory}\n")


def follow(lines: str) -> None:
    """What the guardian does once its process has ended: `lines` is all it was told."""
    directories: dict[str, None] = {}
    for line in lines.splitlines():
        if line.startswith("+"):
            directories[line[1:]] = None
        else:
            directories.pop(line[1:], None)
    for directory in reversed(directories):
        clean(Path(directory))


def clean(directory: Path, *, itself: bool = True) -> None:
    """End, unmount and delete all there is below the directory; `itself`: and the directory."""
    for lock in directory.rglob("agent.lock"):
        with contextlib.suppress(OSError, ValueError):
            _end_agent(int(lock.read_text()), str(directory))
    for record in directory.rglob("activator.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for worker in json.loads(record.read_text()):
                with contextlib.suppress(OSError):
                    _end_agent(int(worker["pid"]), str(directory))
    for workload in directory.glob("**/workloads/*"):
        with contextlib.suppress(KybernateError, OSError):
            try:
                attach(workload).remove()
            except NotFound:
                sweep(workload)
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted((p for p in points if p.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    for path in [directory] if itself else list(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _end_agent(pid: int, mark: str) -> None:
    """The number in an old file may be somebody else's by now: only one that names the directory, or has it open."""
    if not any(mark in text for text in _words_of(pid)):
        return
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline and (state := Path(f"/proc/{pid}/stat")).exists():
        if state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)


def _words_of(pid: int) -> Iterator[str]:
    for file in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace")
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(link.readlink())
