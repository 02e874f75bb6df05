"""Whether what is restored is what was dumped: `python bench/snapshots.py`, to bench/results/snapshots.json. Needs root, no GPU.

A program has some forty connections that are full both ways, and keeps them full (tests/process/features/saturated.py): TCP over
loopback, IPv4, IPv6 and between the two, and Unix sockets, within a process and to its child. It is dumped as it works, and
each dump is restored several times at once. All restored ones but one read everything to the last byte, and compare it with
what was sent; that one works on and is dumped next, so the bytes of a whole chain of restores are compared at its ends.

*lost*: a restore that failed, or whose program failed or came to no end. *bytes_wrong*: bytes that were others, missing, or too
many. No restore is tried twice. Several chains side by side are the load.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import snapshots_memory

from kybernate.benchmarks import results
from kybernate.benchmarks.results import Case
from kybernate.model.errors import KybernateError
from kybernate.model.types import WorkloadName
from kybernate.process.dumping import dump
from kybernate.process.launching import launch
from kybernate.process.restoring import restore
from kybernate.process.specs import LaunchSpec
from kybernate.process.tree import CONTROL, OUTPUT, Tree

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "bench" / "results" / "snapshots.json"
PROGRAM = TOP / "tests" / "process" / "features" / "saturated.py"
COPIES = 4
"""Restores of each dump."""
PATIENCE_S = 180.0
"""For a program to start, and to read to its end. On a busy machine."""
WORKS_S = (0.0, 0.3, 2.0)
"""How long restored programs work before they are dumped again: before the kernel sends again what was held back, and after."""


@dataclass(slots=True)
class Tally:
    """What all chains have found. Threads share it."""

    wanted: int
    begun: int = 0
    compared: int = 0
    """Restored programs that have read to their end."""
    bytes_compared: int = 0
    bytes_wrong: int = 0
    dumps: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    def take(self, number: int) -> int:
        """How many restores of these may still begin."""
        with self.lock:
            granted = 0 if self.stop.is_set() else min(number, self.wanted - self.begun)
            self.begun += granted
            return granted

    def lost(self, why: str) -> None:
        with self.lock:
            self.failures.append(why)
            print(f"lost: {why}", flush=True)


class Chain:
    """One program and its successors."""

    def __init__(self, number: int, state: Path, tally: Tally) -> None:
        self._number, self._state, self._tally = number, state, tally
        self._generation = 0

    def run(self) -> None:
        """Until all restores have begun."""
        while not self._done():
            tree: Tree | None = self._start()
            while tree is not None and not self._done():
                tree = self._next(tree)
            if tree is not None:
                tree.remove()

    def _done(self) -> bool:
        return self._tally.stop.is_set() or self._tally.begun >= self._tally.wanted

    def _directory(self, role: str) -> Path:
        return self._state / "workloads" / f"c{self._number}-{self._generation}-{role}"

    def _start(self) -> Tree:
        self._generation += 1
        run_directory = self._directory("first")
        spec = LaunchSpec(
            name=WorkloadName(run_directory.name),
            argv=[sys.executable, "-S", str(PROGRAM)],
            run_directory=run_directory,
            directory=PROGRAM.parent,
            environment={"PATH": os.defpath, "PYTHONUNBUFFERED": "1"},
        )
        tree = launch(spec)
        deadline = time.monotonic() + PATIENCE_S
        while "ready" not in _said(tree):
            if tree.exit() is not None or time.monotonic() > deadline:
                raise KybernateError(f"the program did not start: {_said(tree)[-400:]}")
            time.sleep(0.05)
        return tree

    def _next(self, tree: Tree) -> Tree | None:
        """Dump it, restore that some times; returns the one that works on."""
        images = self._state / f"images-{self._number}"
        try:
            dump(tree, images, hold=True)
        finally:
            tree.remove()
            shutil.rmtree(tree.run_directory, ignore_errors=True)
        with self._tally.lock:
            self._tally.dumps += 1
        self._generation += 1
        granted = self._tally.take(COPIES)
        try:
            with ThreadPoolExecutor(COPIES) as pool:
                trees = list(pool.map(lambda k: self._restored(images, f"r{k}"), range(granted)))
                there = [found for found in trees if found is not None]
                ending = there if self._done() else there[1:]
                list(pool.map(self._compare, ending))
        finally:
            shutil.rmtree(images, ignore_errors=True)
        if not there or ending == there:
            return None
        time.sleep(WORKS_S[self._generation % len(WORKS_S)])
        return there[0]

    def _restored(self, images: Path, role: str) -> Tree | None:
        run_directory = self._directory(role)
        try:
            return restore(images, name=WorkloadName(run_directory.name), run_directory=run_directory).tree
        except KybernateError as e:
            self._tally.lost(str(e))
            return None

    def _compare(self, tree: Tree) -> None:
        """Have it read to its end."""
        (tree.run_directory / CONTROL / "go").touch()
        status = tree.wait(PATIENCE_S)
        try:
            found = json.loads((tree.run_directory / CONTROL / "result.json").read_text())
            with self._tally.lock:
                self._tally.compared += 1
                self._tally.bytes_compared += found["bytes"]
                self._tally.bytes_wrong += found["wrong"]
            if found["child"]:
                self._tally.lost(f"the child of {tree.name} failed: {_said(tree)[-400:]}")
        except (OSError, ValueError):
            self._tally.lost(f"{tree.name} ended with {status}: {_said(tree)[-400:]}")
        finally:
            tree.remove()
            shutil.rmtree(tree.run_directory, ignore_errors=True)


def _said(tree: Tree) -> str:
    with contextlib.suppress(OSError):
        return (tree.run_directory / OUTPUT).read_text(errors="replace")
    return ""


def measure(tally: Tally, chains: int) -> None:
    """Run the chains to their end."""
    with _state_directory() as state, ThreadPoolExecutor(chains) as pool:
        running = [pool.submit(Chain(number, state, tally).run) for number in range(chains)]
        told = 0
        while not all(future.done() for future in running):
            time.sleep(1)
            if any(future.done() and future.exception() for future in running):
                tally.stop.set()
            if tally.begun >= told + 20:
                told = tally.begun
                print(
                    f"{told} restores, {tally.bytes_compared >> 20} MiB compared, {len(tally.failures)} lost",
                    flush=True,
                )
        for future in running:
            future.result()


@contextlib.contextmanager
def _state_directory() -> Iterator[Path]:
    """Short: sockets lie below it."""
    state = Path(tempfile.mkdtemp(prefix="kyb-snap-")).resolve()
    state.chmod(0o755)
    try:
        yield state
    finally:
        shutil.rmtree(state, ignore_errors=True)


def cases(tally: Tally) -> list[Case]:
    name = f"restores.{tally.begun}"
    return [
        Case(f"{name}.lost", "", (float(len(tally.failures)),)),
        Case(f"{name}.bytes_wrong", "B", (float(tally.bytes_wrong),)),
        Case(f"{name}.bytes_compared", "B", (float(tally.bytes_compared),)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--restores", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=4, help="side by side")
    parser.add_argument(
        "--limit", type=float, default=3600.0, help="seconds; fewer restores are measured then, and named so"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    tally = Tally(wanted=arguments.restores)

    def stop(number: int, frame: FrameType | None) -> None:
        tally.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, arguments.limit)
    commit = results.commit()
    measure(tally, arguments.chains)
    notes = [
        f"{tally.dumps} dumps of programs at work, each restored {COPIES} times at once",
        f"{arguments.chains} programs side by side on {os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}",
        f"{tally.compared} of the restored programs read everything to the last byte; the others worked on and were dumped again",
        "no GPU is in it: processes, CRIU and the kernel's network are real",
        *(f"lost: {why}" for why in tally.failures[:10]),
    ]
    content = results.document("snapshots", cases(tally), simulated=False, notes=notes)
    results.write(arguments.output, snapshots_memory.kept_memory(arguments.output, content | {"commit": commit}))
    print(json.dumps(content["cases"], indent=1))
    return bool(tally.failures or tally.bytes_wrong)


if __name__ == "__main__":
    sys.exit(main())
