"""What a test leaves behind fails it: processes, cgroups, mounts, directories, threads.

Each test process has a temporary directory of its own, `home`; TMPDIR names it. A process is one of ours when it descends from
us, or when its command line or environment names `home` or pytest's own directory, as those do which tests start. At each test's
end nothing may be there that wasn't before, but for what fixtures of a wider scope have made: that is remembered while they
live. What ends by itself (a killed process) is waited for. Then it is ended, and the test fails.

Limits: what the kernel shows neither in /proc nor in a directory (descriptors, timers) isn't seen; an orphan that names
nothing isn't ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_S = float(os.environ.get("KYB_PATIENCE_S", "20"))
"""What has been told to end gets so long, on a machine that is busy with other things."""
_DEPTH = 3
"""State directories lie no deeper below `home`."""
_SHARED_MEMORY = Path("/dev/shm")

Thing = tuple[str, object]
"""Kind, and what tells it from all others for good."""


def make_home() -> Path:
    """A directory for this process, with a path as short as can be: sockets lie below it."""
    while True:
        home = Path(tempfile.gettempdir()).resolve() / f"k{secrets.token_hex(2)}"
        with contextlib.suppress(FileExistsError):
            home.mkdir(mode=0o755)
            return home


@dataclass
class Leftovers:
    home: Path
    marks: tuple[bytes, ...]
    """Whoever names one of these is ours."""
    exempt: set[int] = field(default_factory=set)
    """Processes that live as long as we do."""
    _allowed: set[bytes] = field(default_factory=set)
    _ours: dict[tuple[int, str], bool] = field(default_factory=dict)
    _states: set[str] = field(default_factory=set)
    """Names of the cgroups that directories of ours would have."""
    _shared: set[str] = field(default_factory=set)
    """The same in /dev/shm."""

    def learn(self) -> None:
        """Look which directories there are: their names are needed once they have gone."""
        for path in _directories(self.home, _DEPTH):
            self._states.add(_group_of(path))

    def made(self, path: str) -> None:
        """This process has made a temporary directory. It may go before anybody looks."""
        for state in (path, f"{path}/s"):
            self._states.add(_group_of(state))
        if Path(path).parent == _SHARED_MEMORY:
            self._shared.add(Path(path).name)

    @contextlib.contextmanager
    def allowing(self, words: str) -> Iterator[None]:
        """Meanwhile processes with these words in their command line may stay: they are of one that ends them itself."""
        self._allowed.add(os.fsencode(words))
        yield
        self._allowed.discard(os.fsencode(words))

    def found(self) -> dict[Thing, str]:
        """Everything of ours that is there now, with a line for people."""
        self.learn()
        things: dict[Thing, str] = dict(self._processes())
        things |= dict(self._groups())
        things |= dict(self._mounts())
        for entry in self.home.iterdir():
            things["directory", entry] = f"directory {entry}"
        for name in self._shared:
            if (_SHARED_MEMORY / name).exists():
                things["directory", _SHARED_MEMORY / name] = f"directory {_SHARED_MEMORY / name}"
        for thread in threading.enumerate():
            things["thread", thread] = f"thread {thread.name} in {thread!r}"
        return things

    @staticmethod
    def beyond(found: dict[Thing, str], known: dict[Thing, str]) -> dict[Thing, str]:
        """What of `found` isn't known. A process that has been started again, by the same command line, is."""
        commands = {line.partition(": ")[2] for thing, line in known.items() if thing[0] == "process"}
        return {
            thing: line
            for thing, line in found.items()
            if thing not in known and not (thing[0] == "process" and line.partition(": ")[2] in commands)
        }

    def remove(self, things: dict[Thing, str]) -> None:
        """End and delete all of it, as far as that goes."""
        table = {pid: start for pid, (_, start, _) in _table()}
        for pid, start in table.items():
            if ("process", (pid, start)) in things:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for kind, what in things:
            if kind == "cgroup":
                _remove_group(Path(str(what)))
        for kind, what in sorted(things, key=str, reverse=True):
            if kind == "mount":
                subprocess.run(["umount", "-l", str(what)], check=False, capture_output=True)
        for kind, what in things:
            if kind == "directory":
                path = Path(str(what))
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _processes(self) -> Iterator[tuple[Thing, str]]:
        table = dict(_table())
        self._ours = {key: ours for key, ours in self._ours.items() if key[0] in table}
        for pid, (parent, start, alive) in table.items():
            if alive and pid not in self.exempt and self._is_ours(pid, parent, start, table):
                words = _words(pid, "cmdline").replace(b"\0", b" ")
                if not any(allowed in words for allowed in self._allowed):
                    yield ("process", (pid, start)), f"process {pid}: {words.decode(errors='replace').strip()}"

    def _is_ours(self, pid: int, parent: int, start: str, table: dict[int, tuple[int, str, bool]]) -> bool:
        if pid == os.getpid():
            return False
        if (known := self._ours.get((pid, start))) is not None:
            return known
        self._ours[pid, start] = False  # a circle would be one of numbers used again
        above = table.get(parent)
        ours = (
            parent == os.getpid()
            or (above is not None and self._is_ours(parent, above[0], above[1], table))
            or any(mark in _words(pid, file) for file in ("cmdline", "environ") for mark in self.marks)
        )
        self._ours[pid, start] = ours
        return ours

    def _groups(self) -> Iterator[tuple[Thing, str]]:
        for root in _cgroup_roots():
            for group in root.glob("kybernate-*"):
                if group.name in self._states:
                    yield ("cgroup", group), f"cgroup {group}: {', '.join(sorted(e.name for e in group.glob('*/')))}"

    def _mounts(self) -> Iterator[tuple[Thing, str]]:
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            point = line.split(b" ")[4]
            if any(mark + b"/" in point + b"/" for mark in self.marks):
                yield ("mount", os.fsdecode(point)), f"mount {os.fsdecode(point)}"


def _group_of(state_directory: str | Path) -> str:
    return f"kybernate-{hashlib.sha256(os.fsencode(state_directory)).hexdigest()[:10]}"


def _directories(top: Path, depth: int) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(top) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)
                if depth > 1:
                    yield from _directories(Path(entry.path), depth - 1)


def _table() -> Iterator[tuple[int, tuple[int, str, bool]]]:
    """Parent, start time and whether it lives, of every process."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - at every test's end, so it counts
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                yield int(name), (int(fields[1]), fields[19].decode(), fields[0] not in (b"Z", b"X"))


def _words(pid: int, file: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{file}").read_bytes()
    return b""


def _cgroup_roots() -> list[Path]:
    from kybernate.process import cgroups

    return [root for _, root in cgroups._candidates()]


def _remove_group(group: Path) -> None:
    with contextlib.suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + PATIENCE_S
    while group.exists() and time.monotonic() < deadline:
        for base, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(base).rmdir()
        time.sleep(0.01)
