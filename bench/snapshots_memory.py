"""Host memory between a process and packs on a disk: `python bench/snapshots_memory.py`, into bench/results/snapshots.json.

Needs root, no GPU, and a disk of its own to be worth something.

A process with random private memory is dumped into a store and restored from it, as a workload below RAM is, but for the GPU's
part; dd with O_DIRECT writes and reads as much on the same disk before and after. And processes with very many threads,
mappings and descriptors: the time that CRIU itself takes with its images in a store, beside the time with images in files.

    host_memory.pause.of_dd, .resume.of_dd     dd's time by ours: 1 is as fast as the disk
    host_memory.written_ratio                  bytes written for both, by the memory's
    host_memory.scratch_bytes                  in files besides the packs, at the most
    host_memory.agent_bytes                    the agent's own memory meanwhile, above what it had
    host_memory.THINGS.pause.of_criu, ...      CRIU's time by that with plain files
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from kybernate.benchmarks import results
from kybernate.benchmarks.results import Baseline, Case
from kybernate.engine import host_memory
from kybernate.engine.stored import PROCESS
from kybernate.model.errors import KybernateError
from kybernate.model.quantities import format_size, parse_size
from kybernate.model.types import WorkloadName
from kybernate.process.criu import Criu, find_criu
from kybernate.process.dumping import dump
from kybernate.process.launching import launch
from kybernate.process.restoring import restore
from kybernate.process.specs import LaunchSpec
from kybernate.process.tree import CONTROL, OUTPUT, Tree
from kybernate.store import DEFAULT_TENANT, Catalog, LocalMedium, Space, Tier, keys_of, open_reader, open_writer

PROGRAM = Path(__file__).resolve().parent / "programs" / "large_process.py"
THINGS = {"threads": 2_000, "mappings": 65_000, "descriptors": 19_900}
PATIENCE_S = 600.0
RESULTS = Path(__file__).resolve().parent / "results" / "snapshots.json"
PREFIX = "host_memory."
BLOCK_BYTES = 16 << 20
_POLL_S = 0.02
_CRIU = """#!/bin/sh
# CRIU with its images in files instead of a stream, where PLAIN names their directory; its seconds go to TIMES.
plain={plain}; what=$1; shift
if [ -n "$plain" ]; then
    for argument do
        shift
        case "$argument" in --stream|--images-dir=*|--work-dir=*) ;; *) set -- "$@" "$argument" ;; esac
    done
    set -- --images-dir="$plain" "$@"
fi
began=$(date +%s%N)
{criu} "$what" "$@"
status=$?
echo $(($(date +%s%N) - began)) >>{times}
exit $status
"""


@dataclass(slots=True)
class Place:
    """A directory on the disk that is measured."""

    root: Path
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))

    @contextlib.contextmanager
    def space(self) -> Iterator[Space]:
        with tempfile.TemporaryDirectory(dir=self.root) as directory:
            catalog = Catalog(Path(directory) / "catalog.db")
            tier = Tier(LocalMedium(Path(directory) / "tier"), catalog)
            tier.open()
            try:
                yield tier.space(keys_of(DEFAULT_TENANT))
            finally:
                tier.close()
                catalog.close()

    def start(self, what: str, number: int) -> Tree:
        run_directory = self.run_directory()
        tree = launch(
            LaunchSpec(
                name=WorkloadName(run_directory.name),
                argv=[sys.executable, "-S", str(PROGRAM), what, str(number)],
                run_directory=run_directory,
                environment={"PATH": os.defpath},
            )
        )
        wait_for(tree, "ready")
        return tree

    def run_directory(self) -> Path:
        return self.root / "state" / "workloads" / f"p{next(self.numbers)}"


def wait_for(tree: Tree, word: str) -> str:
    """The line of its output that begins with it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := re.search(rf"^{word}.*\n", said(tree), re.MULTILINE)):
        if tree.exit() is not None or time.monotonic() > deadline:
            raise KybernateError(f"{tree.name}: {said(tree)[-400:]}")
        time.sleep(_POLL_S)
    return found[0]


def said(tree: Tree) -> str:
    with contextlib.suppress(OSError):
        return (tree.run_directory / OUTPUT).read_text(errors="replace")
    return ""


def checked(tree: Tree) -> str:
    """What it says of its content, at its end."""
    (tree.run_directory / CONTROL / "go").touch()
    found = wait_for(tree, "sum")
    tree.wait(PATIENCE_S)
    return found


def end(tree: Tree) -> None:
    tree.remove()
    shutil.rmtree(tree.run_directory, ignore_errors=True)


@dataclass(slots=True)
class Watch:
    """The most that was in some directories, and what the agent had."""

    directories: list[Path]
    scratch: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            self.scratch = max(self.scratch, sum(map(_bytes, self.directories)))


def _bytes(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat(follow_symlinks=False).st_blocks * 512
    return total


def status_bytes(key: str) -> int:
    """Of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0


def written_bytes() -> int:
    """By this process and all that it has waited for, to disks."""
    own = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(own["write_bytes"]) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock * 512


@dataclass(frozen=True, slots=True)
class Round:
    """One pause and one resume. Times in seconds."""

    pause_s: float
    resume_s: float
    written: int
    scratch: int
    memory: int


def store(tree: Tree, space: Space, scratch: Path, name: str, criu: Criu | None = None) -> None:
    """As `engine/capture.py` does it, but for extents."""
    try:
        with open_writer(space, name) as writer:
            sink = host_memory.IntoStore(writer)
            dump(tree, scratch / PROCESS, sink=sink, hold=True, criu=criu)
            sink.add()
            writer.add_directory(PROCESS, scratch / PROCESS)
            writer.commit()
    finally:
        shutil.rmtree(scratch / PROCESS, ignore_errors=True)


def load(space: Space, scratch: Path, name: str, run_directory: Path, criu: Criu | None = None) -> Tree:
    """As `engine/reviving.py` does it."""
    try:
        with open_reader(space, name) as reader:
            reader.extract(scratch, host_memory.small_files(reader.manifest))
            host_memory.verify(reader.manifest, scratch / PROCESS)
            return restore(
                scratch / PROCESS,
                name=WorkloadName(run_directory.name),
                run_directory=run_directory,
                source=host_memory.FromStore(reader),
                criu=criu,
            ).tree
    finally:
        shutil.rmtree(scratch / PROCESS, ignore_errors=True)


def there_and_back(place: Place, size: int) -> Round:
    tree = place.start("memory", size)
    scratch = Path(tempfile.mkdtemp(dir=place.root))
    run_directory = place.run_directory()
    watch = Watch([scratch, run_directory])
    Path("/proc/self/clear_refs").write_text("5")  # the highest of its memory is counted anew
    before = status_bytes("VmRSS")
    try:
        with place.space() as space:
            with watch.watching():
                written = written_bytes()
                began = time.perf_counter()
                store(tree, space, scratch, "one")
                paused = time.perf_counter()
                written = written_bytes() - written
                end(tree)
                resuming = time.perf_counter()
                again = load(space, scratch, "one", run_directory)
                resumed = time.perf_counter()
            memory = status_bytes("VmHWM") - before
            checked(again)
            end(again)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Round(paused - began, resumed - resuming, written, watch.scratch, memory)


def disk(place: Place, size: int) -> tuple[float, float]:
    """Seconds that dd takes to write and to read as much."""
    path = place.root / "dd"
    blocks = f"count={size >> 23}"
    try:
        began = time.perf_counter()
        _dd("if=/dev/zero", f"of={path}", blocks, "oflag=direct", "conv=fsync")
        written = time.perf_counter()
        _dd(f"if={path}", "of=/dev/null", blocks, "iflag=direct")
        return written - began, time.perf_counter() - written
    finally:
        path.unlink(missing_ok=True)


def _dd(*arguments: str) -> None:
    subprocess.run(["dd", "bs=8M", *arguments], check=True, stderr=subprocess.DEVNULL)


def speed(place: Place, size: int, rounds: int) -> list[Case]:
    """Beside dd, which runs before and after each."""
    disks, found = [disk(place, size)], []
    for _ in range(rounds):
        found.append(there_and_back(place, size))
        disks.append(disk(place, size))
        print(found[-1], disks[-1], os.getloadavg(), flush=True)
    around = [[(before[k] + after[k]) / 2 for before, after in pairwise(disks)] for k in (0, 1)]
    return [
        _beside("pause", [one.pause_s for one in found], around[0]),
        _beside("resume", [one.resume_s for one in found], around[1]),
        Case("host_memory.written_ratio", "", tuple(one.written / size for one in found)),
        Case("host_memory.scratch_bytes", "B", tuple(float(one.scratch) for one in found)),
        Case("host_memory.agent_bytes", "B", tuple(float(one.memory) for one in found)),
    ]


def _beside(what: str, seconds: list[float], floor: list[float]) -> Case:
    return Case(
        f"host_memory.{what}.of_dd",
        "",
        tuple(dd / one for one, dd in zip(seconds, floor, strict=True)),
        notes={"seconds": [round(one, 3) for one in seconds], "dd_seconds": [round(one, 3) for one in floor]},
    )


def many_things(place: Place, what: str, number: int) -> list[Case]:
    """CRIU's own time into a store and from it, beside plain files."""
    tree = place.start(what, number)
    scratch = Path(tempfile.mkdtemp(dir=place.root))
    trees = [tree]
    try:
        times = scratch / "times"
        plain = scratch / "plain"
        plain.mkdir()
        wrapped, direct = _wrapped(scratch / "wrapped", times, ""), _wrapped(scratch / "direct", times, str(plain))
        with place.space() as space:
            with contextlib.suppress(KybernateError):  # its images are elsewhere than we look for them
                store(tree, space, scratch, "plain", direct)
            store(tree, space, scratch, "streamed", wrapped)
            end(tree)
            for criu in (direct, wrapped):
                trees.append(load(space, scratch, "streamed", place.run_directory(), criu))
                checked(trees[-1])
        seconds = [int(line) / 1e9 for line in times.read_text().split()]
    finally:
        for one in trees:
            end(one)
        shutil.rmtree(scratch, ignore_errors=True)
    print(what, seconds, flush=True)
    plain_s, streamed_s, plain_back_s, streamed_back_s = seconds
    return [
        Case(
            f"host_memory.{number}_{what}.{direction}.of_criu",
            "",
            (ours / theirs,),
            baseline=Baseline("CRIU with images in files, seconds", theirs, 1),
        )
        for direction, ours, theirs in (("pause", streamed_s, plain_s), ("resume", streamed_back_s, plain_back_s))
    ]


def _wrapped(path: Path, times: Path, plain: str) -> Criu:
    found = find_criu()
    path.write_text(_CRIU.format(plain=plain, criu=found.path.resolve(), times=times))
    path.chmod(0o755)
    return Criu(path, found.version)


def measure(root: Path, size: int, rounds: int) -> list[Case]:
    """All of it, in a directory on the disk in question."""
    place = Place(root)
    cases = speed(place, size, rounds)
    for what, number in THINGS.items():
        cases += many_things(place, what, number)
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", default="6GiB", help="of the memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    commit = results.commit()
    size = parse_size(arguments.size) // BLOCK_BYTES * BLOCK_BYTES
    root = Path(tempfile.mkdtemp(prefix="kyb-mem-", dir=arguments.directory)).resolve()
    root.chmod(0o755)
    began = os.getloadavg()[0]
    try:
        cases = measure(root, size, arguments.rounds)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    notes = [
        f"{format_size(size)} of random private memory, {arguments.rounds} rounds; dd with O_DIRECT before and after each",
        f"{os.cpu_count()} cores, load {began:.1f} when it began",
    ]
    content = results.document("snapshots", cases, simulated=False, notes=notes)
    results.write(arguments.output, with_memory(arguments.output, content | {"commit": commit}))
    print(json.dumps(content["cases"], indent=1))
    return 0


def with_memory(path: Path, measured: dict[str, Any]) -> dict[str, Any]:
    """What is there of the restores, with this of the host memory."""
    cases = measured.pop("cases")
    content = json.loads(path.read_text()) if path.exists() else measured | {"notes": [], "cases": []}
    content["cases"] = [case for case in content["cases"] if not case["case"].startswith(PREFIX)] + cases
    content["host_memory"] = {key: measured[key] for key in ("commit", "date", "host", "notes")}
    return content


def kept_memory(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The restores, measured anew, with what is there of the host memory."""
    old = json.loads(path.read_text()) if path.exists() else {"cases": []}
    cases = content["cases"] + [case for case in old["cases"] if case["case"].startswith(PREFIX)]
    return content | {"cases": cases} | ({"host_memory": old["host_memory"]} if "host_memory" in old else {})


if __name__ == "__main__":
    sys.exit(main())
