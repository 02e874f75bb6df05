"""Proves that real programs survive being paused: `python tests/gpu/compatibility.py`.

Each program runs under an agent of our own and is paused and resumed many times while it works (every third time warm),
with a few steps of progress between; at the end it is told to stop and must say that all was exact. Programs that can't
be paused must be refused, go on working, and be exact, too. Writes bench/results/compatibility.json, from which
`bench/report.py` makes docs/compatibility.md. Exit status 1 when a program is not in a column it belongs to.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from catalogue import CATALOGUE, MIB, NATIVE, PASSES, REFUSED, SIMULATED, NotBuilt, Program, command, python_with

from kybernate.benchmarks import results
from kybernate.benchmarks.agent import OwnAgent, workload_command
from kybernate.benchmarks.conversation import Output
from kybernate.benchmarks.pause import listed_vram
from kybernate.benchmarks.results import Case
from kybernate.model.errors import AgentAway, Busy, KybernateError, Unsupported, WorkloadLost
from kybernate.model.quantities import parse_size
from kybernate.model.types import Depth

FAILED = "failed"
FIRST_STEPS_S = 240.0
LEAST_S = 30.0
PROGRESS_S = 60.0
REFUSALS = 5
BUSY_TRIES = 5


@dataclass(slots=True)
class Outcome:
    """One row of the table. Bytes and seconds are medians over the zero pauses unless said otherwise."""

    program: str
    what: str
    verdict: str = FAILED
    expected: tuple[str, ...] = (PASSES,)
    reason: str = ""
    cycles: int = 0
    steps: int = 0
    busy: int = 0
    """Pauses answered with busy and asked for again."""
    pause_zero_s: float | None = None
    resume_zero_s: float | None = None
    pause_warm_s: float | None = None
    resume_warm_s: float | None = None
    bytes_total: int = 0
    """In extents, so that the agent moves them."""
    bytes_copied: int = 0
    bytes_native: int = 0
    """Listed by the driver for the processes, less the extents: context, modules and what is allocated natively."""
    seconds: float = 0.0
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def as_expected(self) -> bool:
        return self.verdict in self.expected


class Prover:
    """Runs programs one after the other or side by side under one agent."""

    def __init__(
        self, *, agent: OwnAgent, cycles: int, deadline: float, parallel: int, programs: Sequence[Program]
    ) -> None:
        self._agent = agent
        self._cycles = cycles
        self._deadline = deadline
        self._parallel = parallel
        self._waiting = list(programs)
        self._lock = threading.Lock()

    def _share(self, program: Program) -> float:
        """Until when its cycles may go on: a fair part of what is left, so that every program gets its turn."""
        with self._lock:
            waiting = sum(_weight(each) for each in self._waiting)
            self._waiting.remove(program)
        left = max(0.0, self._deadline - time.monotonic())
        lanes = 1 if program.alone else self._parallel
        return min(self._deadline, time.monotonic() + max(LEAST_S, left * lanes * _weight(program) / waiting))

    def prove(self, program: Program, argv: Sequence[str]) -> Outcome:
        """Never raises; what goes wrong is the outcome `failed` with its reason."""
        outcome = Outcome(program=program.name, what=program.what, expected=program.expected)
        started = time.monotonic()
        end = self._share(program)
        try:
            output = self._agent.run(program.name, argv)
            output.wait_steps(3, timeout_s=FIRST_STEPS_S)
            with contextlib.suppress(KybernateError, ValueError, IndexError):
                resident = self._agent.client.workload(program.name).resident_bytes
                outcome.bytes_native = max(0, listed_vram(self._agent, program.name) - resident)
            self._cycle_all(program, output, outcome, end=end)
            last = self._agent.exact_end(program.name)
            outcome.steps = int(last.partition("steps=")[2].split()[0])
            self._judge(program, outcome)
        except Unsupported as e:
            self._refused(program, outcome, str(e))
        except Exception as e:
            outcome.reason = f"{type(e).__name__}: {e}"
        finally:
            with contextlib.suppress(KybernateError):
                self._agent.client.stop(program.name, grace_s=0, remove=True)
        outcome.seconds = round(time.monotonic() - started, 1)
        self._say(outcome)
        return outcome

    def _cycle_all(self, program: Program, output: Output, outcome: Outcome, *, end: float) -> None:
        refusal_expected = REFUSED in program.expected
        cycles = min(self._cycles, program.cycles_at_most or self._cycles)
        for cycle in range(cycles):
            if time.monotonic() > end and cycle:
                outcome.reason = f"{cycle} of {cycles} cycles, to stay within the time"
                return
            depth = Depth.WARM if cycle % 3 == 2 else Depth.ZERO
            steps = output.steps()
            try:
                self._one_cycle(program, outcome, depth)
            except Busy as e:
                if refusal_expected:
                    raise Unsupported(e.message, hint=e.hint) from e
                raise
            outcome.cycles += 1
            output.wait_steps(steps + 3, timeout_s=PROGRESS_S)

    def _one_cycle(self, program: Program, outcome: Outcome, depth: Depth) -> None:
        client = self._agent.client
        for attempt in range(BUSY_TRIES):
            try:
                before = time.perf_counter()
                report = client.pause(program.name, depth=depth, timeout_s=program.pause_timeout_s)
                wall = time.perf_counter() - before
                break
            except Busy:
                if REFUSED in program.expected or attempt == BUSY_TRIES - 1:
                    raise
                outcome.busy += 1
        outcome.samples[f"pause_{depth.value}_s"].append(max(wall, report.seconds))
        if depth is Depth.ZERO:
            outcome.samples["bytes_total"].append(report.bytes_total)
            outcome.samples["bytes_copied"].append(report.bytes_copied)
        before = time.perf_counter()
        report = client.resume(program.name)
        outcome.samples[f"resume_{depth.value}_s"].append(max(time.perf_counter() - before, report.seconds))

    def _judge(self, program: Program, outcome: Outcome) -> None:
        for name in ("pause_zero_s", "resume_zero_s", "pause_warm_s", "resume_warm_s", "bytes_total", "bytes_copied"):
            if values := outcome.samples.get(name):
                median = statistics.median(values)
                setattr(outcome, name, int(median) if name.startswith("bytes") else round(median, 4))
        if outcome.cycles == 0:
            outcome.reason = outcome.reason or "no cycle was made"
        elif outcome.bytes_total < program.working_set // 2:
            outcome.verdict = NATIVE
            outcome.reason = outcome.reason or (
                f"{outcome.bytes_total / MIB:.0f} MiB of its {program.working_set / MIB:.0f} MiB are extents; "
                "the driver's own checkpoint moves the rest"
            )
        else:
            outcome.verdict = PASSES

    def _refused(self, program: Program, outcome: Outcome, first: str) -> None:
        """It must be refused every time, work on, and be exact."""
        output = self._agent.output(program.name)
        try:
            for _ in range(REFUSALS - 1):
                steps = output.steps()
                output.wait_steps(steps + 3, timeout_s=PROGRESS_S)
                try:
                    self._agent.client.pause(program.name, timeout_s=program.pause_timeout_s)
                except (Unsupported, Busy):
                    continue
                outcome.reason = f"refused once ({first}), then paused"
                return
            steps = output.steps()
            output.wait_steps(steps + 3, timeout_s=PROGRESS_S)
            state = self._agent.client.workload(program.name).state
            if state != "running":
                outcome.reason = f"refused ({first}), but its state is {state}"
                return
            last = self._agent.exact_end(program.name)
            outcome.steps = int(last.partition("steps=")[2].split()[0])
            outcome.verdict, outcome.reason = REFUSED, _plain(first)
        except (KybernateError, AgentAway, WorkloadLost) as e:
            outcome.reason = f"refused ({first}), but afterwards: {e}"

    def _say(self, outcome: Outcome) -> None:
        mark = "ok " if outcome.as_expected else "BAD"
        pause, resume = outcome.pause_zero_s, outcome.resume_zero_s
        times = f", out {pause:.2f} s, in {resume:.2f} s" if pause is not None and resume is not None else ""
        with self._lock:
            print(
                f"{mark} {outcome.program}: {outcome.verdict}, {outcome.cycles} cycles in {outcome.seconds:.0f} s{times}"
                + (f": {outcome.reason}" if outcome.reason else ""),
                flush=True,
            )


def _weight(program: Program) -> float:
    """Of the time: those that are refused need some seconds only."""
    return 0.15 if REFUSED in program.expected else 1.0


def _plain(reason: str) -> str:
    """Without the name and the pid, which are others each time."""
    return re.sub(r"(workload \S+: )?process \d+: ", "", reason)


def prove_all(
    prover: Prover, jobs: Sequence[tuple[Program, Sequence[str] | NotBuilt]], *, parallel: int, deadline: float
) -> list[Outcome]:
    """All outcomes in the order of `jobs`; those that must be alone come after the others."""
    outcomes: dict[str, Outcome] = {}

    def one(program: Program, argv: Sequence[str] | NotBuilt) -> None:
        if isinstance(argv, NotBuilt):
            outcome = Outcome(program=program.name, what=program.what, expected=program.expected, reason=str(argv))
            print(f"BAD {program.name}: {argv}", flush=True)
        elif time.monotonic() > deadline:
            outcome = Outcome(program=program.name, what=program.what, expected=program.expected, reason="no time left")
            print(f"BAD {program.name}: no time left", flush=True)
        else:
            outcome = prover.prove(program, argv)
        outcomes[program.name] = outcome

    with concurrent.futures.ThreadPoolExecutor(max_workers=parallel) as executor:
        for future in [executor.submit(one, *job) for job in jobs if not job[0].alone]:
            future.result()
    for job in jobs:
        if job[0].alone:
            one(*job)
    return [outcomes[program.name] for program, _ in jobs]


def result(outcomes: Sequence[Outcome], *, simulated: bool) -> dict[str, Any]:
    """Content of bench/results/compatibility.json: the usual cases, and the rows of the table."""
    cases = [
        Case(case=f"{way}.zero.{outcome.program}", unit="s", samples=tuple(outcome.samples[f"{way}_zero_s"]))
        for outcome in outcomes
        for way in ("pause", "resume")
        if outcome.samples.get(f"{way}_zero_s")
    ]
    content = results.document("compatibility", cases, simulated=simulated)
    content["programs"] = [
        {each.name: getattr(outcome, each.name) for each in fields(outcome) if each.name != "samples"}
        for outcome in outcomes
    ]
    return content


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", help="names separated by commas; all without")
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=540.0, help="time for all programs together")
    parser.add_argument("--parallel", type=int, default=5, help="programs at a time")
    parser.add_argument("--pool", default="32GiB")
    parser.add_argument("--python", help="interpreter with the frameworks")
    parser.add_argument("--output", type=Path, default=Path("bench/results/compatibility.json"))
    parser.add_argument("--log", type=Path, help="keep the agent's output here")
    parser.add_argument("--merge", action="store_true", help="keep the rows of programs that are not run now")
    parser.add_argument("--simulated", help="VRAM of a simulated GPU; for tests of this runner")
    options = parser.parse_args(arguments)
    simulated = parse_size(options.simulated) if options.simulated else None
    chosen = _chosen(options.programs, simulated=simulated is not None)
    deadline = time.monotonic() + options.seconds
    python = options.python or python_with()
    with tempfile.TemporaryDirectory(prefix="kyb-programs-") as directory:
        # Readable for a workload's user, whoever that is.
        build = Path(directory)
        build.chmod(0o755)
        jobs = [(program, _argv(program, python=python, build=build)) for program in chosen]
        with OwnAgent(pool_bytes=parse_size(options.pool), simulated_bytes=simulated, log=options.log) as agent:
            prover = Prover(
                agent=agent, cycles=options.cycles, deadline=deadline, parallel=options.parallel, programs=chosen
            )
            outcomes = prove_all(prover, jobs, parallel=options.parallel, deadline=deadline)
    content = result(outcomes, simulated=simulated is not None)
    if options.merge and options.output.exists():
        content = merged(json.loads(options.output.read_text()), content)
    results.write(options.output, content)
    wrong = [outcome for outcome in outcomes if not outcome.as_expected]
    print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} programs as expected; written: {options.output}")
    return 1 if wrong else 0


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new`, with the rows and cases of `old` for programs that `new` didn't run, in the catalogue's order."""
    run = {row["program"] for row in new["programs"]}
    order = [program.name for program in CATALOGUE]
    rows = [row for row in old["programs"] if row["program"] not in run] + new["programs"]
    rows.sort(key=lambda row: order.index(row["program"]) if row["program"] in order else len(order))
    cases = [case for case in old["cases"] if case["case"].split(".", 2)[2] not in run] + new["cases"]
    return {**new, "programs": rows, "cases": cases}


def _chosen(names: str | None, *, simulated: bool) -> list[Program]:
    programs: Sequence[Program] = CATALOGUE
    if simulated:
        programs = [
            Program("words", "stand-in for tests of the runner", 64 * MIB),
            Program("words-too", "stand-in for tests of the runner", 32 * MIB),
            Program("managed-words", "stand-in that is refused", 8 * MIB, (REFUSED,)),
            *(program for program in CATALOGUE if program.name in SIMULATED),
        ]
    if names is None:
        return list(programs)
    by_name = {program.name: program for program in programs}
    if unknown := [name for name in names.split(",") if name not in by_name]:
        raise SystemExit(f"no program {', '.join(unknown)}; there are: {', '.join(by_name)}")
    return [by_name[name] for name in names.split(",")]


def _argv(program: Program, *, python: str, build: Path) -> list[str] | NotBuilt:
    if not program.path.exists() and program.name.startswith("words"):
        return workload_command(program.working_set, "--loop", "0.25", "--pace", "0.01")
    try:
        return command(program, python=python, build=build)
    except NotBuilt as e:
        return e


if __name__ == "__main__":
    sys.exit(main())
