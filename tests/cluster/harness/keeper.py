"""Keeps a group of programs running, and ends all of them when it ends: `python -I keeper.py SPEC.json`.

Runs twice: on the host, for the control plane and for the nodes as a whole, and as PID 1 inside each node. It stands alone
(standard library only, nothing of this package), since PID 1 of a node should be small and start at once.

The specification is a JSON object:

    directory     where NAME.pid of each program is written
    remove        remove that directory at the very end, unless a program failed
    on_word       start nothing until there is a line on standard input; its end instead (whoever
                  started us has died, and others clean up) ends us at once
    leash         a named pipe to read from, or null: at its end of file (all who held it are gone) everything is ended
    setup         commands, done first, each {"argv": [...], "after": [paths]}
    programs      {"name", "argv", "log", "after": [paths that must exist first], "once": bool, "restart": bool,
                  "namespace": it is unshare(1) and waits for the first process of a pid namespace; that one is killed, so that
                  all in there have gone when it ends}
    cgroups       directories to remove at the end, with those below them
    finally       commands for the very end, failures ignored

A program with "restart" that ends is started again; one that ends within 5 s three times in a row ends it all, as does the end
of one without.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TICK_S = 0.02
"""How often conditions are looked at while a program waits for one; otherwise we sleep until something ends."""
PATIENCE_S = 10.0
"""How long killed processes may take to leave their cgroups."""
SETTLED_S = 5.0
TRIES = 3
SET_PDEATHSIG = 1


class Program:
    """One program of the specification and the process it runs as now."""

    def __init__(self, spec: dict[str, Any], directory: Path) -> None:
        self.name: str = spec["name"]
        self._argv: list[str] = spec["argv"]
        self._log = Path(spec["log"])
        self._after = [Path(path) for path in spec.get("after", ())]
        self.once: bool = spec.get("once", False)
        self.restart: bool = spec.get("restart", False)
        self.namespace: bool = spec.get("namespace", False)
        self._pid_file = directory / f"{self.name}.pid"
        self.process: subprocess.Popen[bytes] | None = None
        self.done = False
        self.failures = 0
        self.started_at = 0.0

    @property
    def waiting(self) -> bool:
        return self.process is None and not self.done

    def start_if_possible(self) -> None:
        """Start it when all it waits for is there."""
        if not self.waiting or not all(path.exists() for path in self._after):
            return
        with self._log.open("ab") as log:
            # Its own process group: a Ctrl-C at the terminal is for us, not for etcd.
            self.process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )
        self.started_at = time.monotonic()
        self._pid_file.write_text(f"{self.process.pid}\n")

    def ended(self, status: int) -> bool:
        """Take note of its end; False when everything has to end because of it."""
        self.process = None
        if self.once:
            self.done = True
            (self._pid_file.with_suffix(".done" if status == 0 else ".failed")).write_text(f"{status}\n")
            return status == 0
        self.failures = 0 if time.monotonic() - self.started_at > SETTLED_S else self.failures + 1
        return self.restart and self.failures < TRIES


def die_with_parent(keeper: int) -> None:
    """In the child: be killed when the keeper is killed, so that no kill of it leaves programs behind."""
    ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != keeper:  # it was killed before that
        os._exit(1)


def reap() -> Iterator[tuple[int, int]]:
    """Pid and exit status of every child that has ended; as PID 1 also of those we never started."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def note(line: str) -> None:
    """Write to our log, which a full disk must not keep us from our work for."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"{line}\n".encode())


def wait_for(paths: list[str]) -> None:
    while not all(Path(path).exists() for path in paths):
        time.sleep(TICK_S)


def children(pid: int) -> list[int]:
    """The children of a process; itself where it has none (yet)."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] or [pid]
    return []


def stop(programs: list[Program]) -> None:
    """End all of them at once. Not gently: their data goes with them, and an API server takes ten seconds to take its leave."""
    running = {program.process.pid for program in programs if program.process is not None}
    for program in programs:
        if program.process is not None:
            for pid in children(program.process.pid) if program.namespace else [program.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    while running:
        running -= {pid for pid, _ in reap()}
        time.sleep(TICK_S)


def remove_cgroups(directories: list[str]) -> None:
    """Remove cgroups, innermost first. Processes that are on their way out hold them for some milliseconds."""
    deadline = time.monotonic() + PATIENCE_S
    for directory in directories:
        while Path(directory).is_dir():
            for path, _, _ in os.walk(directory, topdown=False):
                with contextlib.suppress(OSError):
                    Path(path).rmdir()
            if time.monotonic() > deadline:
                note(f"cgroup {directory} is still in use")
                break
            time.sleep(TICK_S)


def main() -> int:
    """Returns 0 when told to end, 1 when a program failed."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: told.append(received))
    signal.signal(signal.SIGCHLD, lambda *_: None)

    if spec.get("on_word") and not sys.stdin.readline():
        return 0
    programs: list[Program] = []
    failed = False
    leash = os.open(spec["leash"], os.O_RDONLY | os.O_NONBLOCK) if spec.get("leash") else None
    try:
        for command in spec.get("setup", ()):
            wait_for(command.get("after", []))
            subprocess.run(command["argv"], check=True)
        directory = Path(spec["directory"])
        programs.extend(Program(entry, directory) for entry in spec["programs"])
        while not told:
            for program in programs:
                program.start_if_possible()
            watched = [wake.fileno()] if leash is None else [wake.fileno(), leash]
            readable, _, _ = select.select(watched, [], [], TICK_S if any(p.waiting for p in programs) else None)
            if leash is not None and leash in readable and not os.read(leash, 1):
                break
            with contextlib.suppress(BlockingIOError):
                wake.recv(4096)
            by_pid = {p.process.pid: p for p in programs if p.process is not None}
            for pid, status in reap():
                if (ended := by_pid.get(pid)) is None:
                    continue
                note(f"{ended.name} ended with {status}")
                if not ended.ended(status):
                    failed = True
                    told.append(0)
    finally:
        stop(programs)
        remove_cgroups(spec.get("cgroups", []))
        for argv in spec.get("finally", ()):
            subprocess.run(argv, check=False, capture_output=True)
        if spec.get("remove") and not failed:  # else somebody will want to read the logs
            shutil.rmtree(spec["directory"], ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
