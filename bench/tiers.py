"""The tiers below RAM, measured: `python bench/tiers.py`, to bench/results/tiers.json. Some eight minutes, the GPU for itself.

    nvme            the store against fio on the same disk                                   (tiers_store.py)
    gold            an image of an inference server, its clones, its second snapshot         (tiers_gold.py)
    process-nvme    a process full of random data to the disk and back, and the RAM it took  (tiers_process.py)
    process-object  the same, to an S3 server on this host
    object          the store against the best S3 client on the same server                  (tiers_store.py)
    snapshots       the agent's own memory with many snapshots on the disk                   (tiers_snapshots.py)

Each stage is a process of its own with its own time limit; the result is written anew whenever a stage has a number, so one that
hangs or fails costs no other's. What doesn't fit in the time or on the disk is left out or made smaller, and said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "gpu"))

import tiers_gold
import tiers_process
import tiers_snapshots
import tiers_store
from catalogue import python_with
from server import Unbuildable
from tiers_memory import touch
from tiers_plan import SCRATCH, Plan, Recorder, clear_scratch

from kybernate.benchmarks import results
from kybernate.benchmarks.agent import clear_away, left_by
from kybernate.model.errors import KybernateError
from kybernate.model.quantities import parse_size
from kybernate.model.types import GIB, MIB

RESULTS = Path(__file__).resolve().parent / "results"
LOOK_S = 0.5
RESERVE_BYTES = 8 * GIB
"""Of RAM, besides the pool and the bucket: processes, and their images in the page cache."""
END_S = 30.0
"""For a stage that is told to end to clean up."""


@dataclass(frozen=True, slots=True)
class Stage:
    run: Callable[[Plan, Recorder], None]
    limit_s: float
    least_s: float
    """It isn't begun with less time left."""


STAGES = {
    "nvme": Stage(tiers_store.disk, 130, 20),
    "gold": Stage(tiers_gold.gold, 260, 120),
    "process-nvme": Stage(tiers_process.disk, 180, 70),
    "process-object": Stage(tiers_process.bucket, 180, 80),
    "object": Stage(tiers_store.bucket, 130, 30),
    "snapshots": Stage(tiers_snapshots.snapshots, 120, 40),
}


@dataclass(slots=True)
class Findings:
    """What all stages have written down so far, in the order they were said first."""

    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: bool = False

    def take(self, lines: Sequence[str]) -> None:
        for line in lines:
            said = json.loads(line)
            if "note" in said:
                self.notes.append(said["note"])
            else:
                self.cases[said["case"]["case"]] = said["case"]

    def write(self, target: Path, *, simulated: bool) -> None:
        content = results.document("tiers", [], simulated=simulated, notes=self.notes)
        results.write(target, {**content, "cases": list(self.cases.values())})


class Lines:
    """A file that grows, read by whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def fresh(self) -> list[str]:
        with self._path.open() as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self._read += len(whole.encode())
        return whole.splitlines()


def child(name: str, plan: Plan, lines: Path) -> int:
    """One stage, in a process of its own."""
    recorder = Recorder(lines)
    try:
        STAGES[name].run(plan, recorder)
    except Unbuildable as e:
        recorder.note(f"{name} left out: {e}")
    except (KybernateError, OSError, subprocess.SubprocessError) as e:
        hint = getattr(e, "hint", None)
        recorder.note(f"{name} failed: {e}" + (f" ({hint})" if hint else ""))
        return 1
    return 0


def stage(
    name: str, limit_s: float, lines: Path, *, places: Sequence[Path], findings: Findings, written: Callable[[], None]
) -> str | None:
    """Run one and take in what it finds. Returns what is wrong, if anything.

    Args:
        places: where it has scratch directories.
        written: called whenever something was found.
    """
    lines.touch()
    reader = Lines(lines)
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name, "--lines", str(lines)]
    began = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True)
    late = None
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_S)
            if fresh := reader.fresh():
                findings.take(fresh)
                written()
            if process.returncode is not None:
                break
            if time.monotonic() - began > limit_s + (0 if late is None else END_S):
                if late is not None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    break
                late = f"{name} took longer than {limit_s:.0f} s and was ended"
                process.terminate()
    except BaseException:
        process.terminate()  # it cleans up
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        raise
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it started: a server, a model being made
    sweep_after(process.pid, places)
    findings.failed = findings.failed or process.returncode != 0
    if late is None and process.returncode not in (0, 1):
        late = f"{name} ended with status {process.returncode}"
    return late


def sweep_after(pid: int, places: Sequence[Path]) -> None:
    """What a stage that was killed has left; those that ended by themselves have left nothing."""
    for root in left_by(pid):
        clear_away(root)
    for place in places:
        for directory in place.glob(f"{SCRATCH}*-{pid}"):
            clear_scratch(directory)


def main() -> int:
    options = arguments()
    if options.merge:
        results.write(options.results / "tiers.json", merged(options.merge))
        return 0
    plan = plan_of(options)
    if options.child is not None:
        return child(options.child, plan, options.lines)
    findings = Findings()
    target = options.results / "tiers.json"
    print(f"{', '.join(options.stages)}: at most {options.budget:g} s, results in {target}", flush=True)
    began = time.monotonic()
    if not plan.simulated:
        findings.notes.append(touch(2 * plan.process_bytes + RESERVE_BYTES))
        print(findings.notes[-1], flush=True)
    with tempfile.TemporaryDirectory(prefix="kybernate-bench-") as place:
        for name in options.stages:
            left = options.budget - (time.monotonic() - began)
            one = STAGES[name]
            if left < one.least_s and not plan.simulated:
                findings.notes.append(f"{name} left out: {left:.0f} s were left, it may take {one.least_s:.0f} s")
                print(findings.notes[-1], flush=True)
                continue
            print(f"[{time.monotonic() - began:5.1f} s] {name}", flush=True)

            def written() -> None:
                findings.write(target, simulated=plan.simulated)

            wrong = stage(
                name,
                min(left, one.limit_s),
                Path(place) / name,
                places=[plan.directory, Path("/dev/shm"), *([] if plan.bucket is None else [plan.bucket])],
                findings=findings,
                written=written,
            )
            if wrong is not None:
                findings.notes.append(wrong)
                print(wrong, flush=True)
            written()
    print(f"[{time.monotonic() - began:5.1f} s] done")
    show(findings)
    return 1 if findings.failed else 0


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """The results of several runs on one machine as one: the newest run's, and of the others what it didn't measure.

    A case of another commit than the newest run's says its own commit and date.
    """
    runs = sorted(((json.loads(path.read_text()), path) for path in paths), key=lambda run: run[0]["date"])
    newest, its_path = runs[-1]
    cases: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for run, path in runs:
        for what in ("bench", "simulated"):
            if run[what] != newest[what]:
                raise SystemExit(f"{path} has {what} {run[what]!r}, {its_path} has {newest[what]!r}")
        if (here := _machine(run)) != (there := _machine(newest)):
            raise SystemExit(f"{path} is of another machine than {its_path}: {here} and {there}")
        of_then = {} if run["commit"] == newest["commit"] else {"commit": run["commit"], "date": run["date"]}
        cases |= {case["case"]: {**case, **of_then} for case in run["cases"]}
        notes += [note for note in run["notes"] if note not in notes]
    older: dict[str, list[str]] = {}
    for name, case in cases.items():
        if "commit" in case:
            older.setdefault(f"{case['commit']}, {case['date'][:10]}", []).append(name)
    notes += [f"of commit {whose}: {', '.join(names)}" for whose, names in older.items()]
    return {**newest, "notes": notes, "cases": list(cases.values())}


def _machine(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run["host"].items() if name != "ram_gib"}


def show(findings: Findings) -> None:
    """A line a case."""
    for note in findings.notes:
        print(f"note: {note}")
    for case in findings.cases.values():
        value, unit = case["value"], case["unit"]
        shown = f"{value / MIB:.0f} MiB" if unit == "B" else f"{value:.3f} {unit}"
        against = f"   against {case['baseline']['name']}" if case["baseline"] else ""
        print(f"{case['case']:55} {shown:>14}   n {case['n']}{against}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", default=",".join(STAGES), help="parts, separated by commas")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of tiers.json")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure")
    parser.add_argument("--bucket", type=Path, help="where the S3 server keeps its files; left out: in RAM")
    parser.add_argument("--process-size", help="of the process that goes to the disk and the bucket; 40GiB")
    parser.add_argument("--model-size", help="of the inference server; 10GiB")
    parser.add_argument("--turn-size", help="of one turn against fio or another client; 3GiB")
    parser.add_argument("--logical-size", help="of the many snapshots; 100GiB")
    parser.add_argument("--rounds", type=int, default=5, help="turns against fio and other clients")
    parser.add_argument("--process-rounds", type=int, default=1, help="turns of the process")
    parser.add_argument("--cold", type=int, default=3, help="cold starts of the server")
    parser.add_argument("--clones", type=int, default=5, help="clones, one after the other")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for everything")
    parser.add_argument("--python", help="interpreter with PyTorch and transformers")
    parser.add_argument("--simulated", help="VRAM of a simulated GPU, to test this script")
    parser.add_argument(
        "--merge", type=Path, nargs="+", help="make one result of those of several runs, and measure nothing"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.stages = options.stages.split(",")
    if unknown := [name for name in options.stages if name not in STAGES]:
        parser.error(f"no stage {unknown[0]}; there are: {', '.join(STAGES)}")
    if min(options.rounds, options.process_rounds, options.cold, options.clones) < 1:
        parser.error("each number of repetitions must be at least 1")
    for place in (options.directory, options.bucket):
        if place is not None and not place.is_dir():
            parser.error(f"{place} is no directory")
    if os.geteuid() != 0:
        parser.error("snapshots need root")
    return options


def plan_of(options: argparse.Namespace) -> Plan:
    simulated = None if options.simulated is None else parse_size(options.simulated)

    def size(given: str | None, usual: int, small: int) -> int:
        return parse_size(given) if given else usual if simulated is None else small

    return Plan(
        directory=options.directory,
        bucket=options.bucket,
        python=options.python or (sys.executable if simulated is not None else python_with(("torch", "transformers"))),
        process_bytes=size(options.process_size, 40 * GIB, 32 * MIB),
        model_bytes=size(options.model_size, 10 * GIB, 16 * MIB),
        turn_bytes=size(options.turn_size, 3 * GIB, 64 * MIB),
        logical_bytes=size(options.logical_size, 100 * GIB, 256 * MIB),
        rounds=options.rounds,
        process_rounds=options.process_rounds,
        cold_rounds=options.cold,
        clone_rounds=options.clones,
        simulated_bytes=simulated,
    )


if __name__ == "__main__":
    sys.exit(main())
