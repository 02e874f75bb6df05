"""Five model servers on a GPU that holds two of them, by a trace of requests: `python bench/multiplex.py --results DIR`.

Writes bench/results/multiplex.json, and after each stage what it found into DIR, so that a run that is cut off has not measured for
nothing. Each stage has its own time; what is left out or cut is said in the notes. The stages:

    alone       each server by itself, without Kybernate: the answers that all others must equal, and what a cold start takes
    start-stop  llama-swap, if given, ends one server and starts the next for each request (else: the cold starts of `alone`)
    trace       all of them behind one address, requests by Zipf's law with gaps, a training job in the gaps
    policies    the beginning of the same trace twice, the training over: with the default policy, and with `fifo`
    switch      one request at a time, each for a model that is parked in RAM: like with like against start-stop
    nvme        the same for models parked on the disk

With a GPU the servers are transformers with weights made at random (PyTorch); with --simulated all is small and proves only
that it works. A cold start here makes its weights on the GPU; a real one reads them from a disk, which takes longer.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import multiplex_cases
import multiplex_stages
from multiplex_stages import Run

from kybernate.benchmarks import results
from kybernate.benchmarks.agent import OwnAgent
from kybernate.demo.fleet import Fleet
from kybernate.model.errors import KybernateError
from kybernate.model.quantities import format_size, parse_size
from kybernate.model.types import MIB
from kybernate.policy.registry import DEFAULT

MODEL_PART, TRAINING_PART, POOL_PART = 24 / 60, 16 / 60, 120 / 60
"""Of the VRAM budget: two servers fit, but not two servers and the training; in RAM there is room for three that wait, one that
leaves for another that comes, and the training."""
STAGES = ("alone", "start-stop", "trace", "policies", "switch", "nvme")
SECONDS = {"alone": 110.0, "start-stop": 45.0, "trace": 220.0, "policies": 120.0, "switch": 30.0, "nvme": 110.0}
"""What each stage may take at most; all together may not take more than --limit-s."""


@dataclass(slots=True)
class Diary:
    """What was found, on disk after each stage."""

    directory: Path
    output: Path
    simulated: bool
    found: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def keep(self, stage: str, found: Any) -> None:
        self.found[stage] = found
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / f"{stage}.json").write_text(json.dumps(found) + "\n")
        self.write()

    def note(self, text: str) -> None:
        print(text, flush=True)
        self.notes.append(text)

    def write(self) -> dict[str, Any]:
        cases = multiplex_cases.cases(self.found)
        content = results.document("multiplex", cases, simulated=self.simulated, notes=self.notes)
        results.write(self.directory / "multiplex.json", content)
        if cases:
            results.write(self.output, content)
        return content


def fleet_of(options: argparse.Namespace) -> Fleet:
    limit = options.vram
    return Fleet(
        simulated=options.simulated,
        models=tuple(f"model-{chr(ord('a') + k)}" for k in range(options.models)),
        model_bytes=_even(limit * MODEL_PART),
        training_bytes=_even(limit * TRAINING_PART),
        training_steps=options.steps,
        training_pace=0.01 if options.simulated else 0.0,
        seconds_per_token=0.005 if options.simulated else 0.0,
    )


def _even(size: float) -> int:
    return int(size) // (2 * MIB) * (2 * MIB)


def measure(options: argparse.Namespace, diary: Diary) -> None:
    began = time.monotonic()
    fleet = fleet_of(options)
    run = Run(
        fleet=fleet,
        requests=options.requests,
        seconds=options.seconds,
        tokens=options.tokens,
        every=options.every,
        gap=options.gap,
        compared=options.compared,
        rounds=options.rounds,
        llama_swap=options.llama_swap,
    )
    wanted = [stage for stage in STAGES if stage in options.stages.split(",")]

    def stage(name: str, work: Callable[[float], Any]) -> None:
        if name not in wanted:
            return
        left = options.limit_s - (time.monotonic() - began)
        share = min(SECONDS[name] * options.patience, left)
        if share < 10:
            diary.note(f"{name}: left out, no time left")
            return
        print(f"{time.monotonic() - began:6.1f} s  {name}, at most {share:.0f} s", flush=True)
        try:
            found = work(time.monotonic() + share)
        except (KybernateError, OSError, ExceptionGroup) as e:
            diary.note(f"{name}: failed: {type(e).__name__}: {e}")
            return
        if found is not None:
            diary.keep(name, found)
        if name == "trace" and found["training"]["result"] is None:
            diary.note("trace: the training has not ended in time; give it fewer --steps")

    stage("alone", lambda deadline: multiplex_stages.alone(run, deadline))
    if "alone" not in diary.found:
        raise KybernateError("nothing to compare with: the servers didn't run alone")
    stage("start-stop", lambda deadline: multiplex_stages.start_stop(run, deadline))
    if not set(wanted) & set(STAGES[2:]):
        return
    with (
        tempfile.TemporaryDirectory(prefix="kyb-multiplex-", dir=options.disk) as disk,
        OwnAgent(
            pool_bytes=options.pool,
            simulated_bytes=options.vram if options.simulated else None,
            settings={
                "vram": {"limit": None if options.simulated else options.vram},
                "store": {"directory": f"{disk}/store"},
            },
            sections=run.sections(DEFAULT, training=False),
            log=options.results / "agent.log",
        ) as agent,
    ):
        seconds = multiplex_stages.all_up(run, agent, timeout_s=options.start_s)
        print(
            f"{time.monotonic() - began:6.1f} s  all {len(fleet.models)} up, {seconds:.1f} s after the agent",
            flush=True,
        )
        stage("trace", lambda deadline: multiplex_stages.trace(run, agent, deadline))
        stage("policies", lambda deadline: multiplex_stages.policies(run, agent, deadline))
        stage("switch", lambda deadline: multiplex_stages.switch(run, agent, deadline))
        stage("nvme", lambda deadline: multiplex_stages.nvme(run, agent, deadline))
    print(f"{time.monotonic() - began:6.1f} s  done", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="directory for what each stage found")
    parser.add_argument("--output", type=Path, default=Path("bench/results/multiplex.json"))
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--simulated", action="store_true", help="a small run on the simulated driver")
    parser.add_argument("--vram", type=parse_size, help="budget; 60GiB, simulated 64MiB")
    parser.add_argument("--pool", type=parse_size, help="host memory for what is paused; left out: twice the budget")
    parser.add_argument(
        "--disk", type=Path, default=Path("/var/tmp"), help="directory on the disk that is the tier nvme"
    )
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=125.0, help="in which they come, gaps not counted")
    parser.add_argument("--every", type=float, default=30.0, help="seconds of requests between two gaps")
    parser.add_argument("--gap", type=float, default=6.0, help="seconds in which nobody asks")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400, help="of the training job")
    parser.add_argument("--compared", type=int, default=200, help="requests of `policies`")
    parser.add_argument(
        "--rounds", type=int, default=16, help="single requests of `switch`, and of `start-stop` as time allows"
    )
    parser.add_argument(
        "--llama-swap", type=Path, help="its program; left out: the cold starts of `alone` are the comparison"
    )
    parser.add_argument("--start-s", type=float, default=120.0, help="for all servers to come up the first time")
    parser.add_argument("--limit-s", type=float, default=540.0, help="for everything")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on the time of each stage")
    options = parser.parse_args(arguments)
    if unknown := set(options.stages.split(",")) - set(STAGES):
        parser.error(f"no such stages: {', '.join(sorted(unknown))}")
    options.vram = options.vram or (64 * MIB if options.simulated else parse_size("60GiB"))
    options.pool = options.pool or _even(options.vram * POOL_PART)
    if options.simulated:
        print("This is the SIMULATED driver: it shows that it works, and no speed.")
    diary = Diary(directory=options.results, output=options.output, simulated=options.simulated)
    diary.notes.append(f"VRAM budget {format_size(options.vram)}, pool {format_size(options.pool)}")
    # The last resort: whatever hangs, what was found so far is kept and the agent is ended.
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("time is over"))
    signal.setitimer(signal.ITIMER_REAL, options.limit_s + 15)
    try:
        measure(options, diary)
    except KybernateError as e:
        diary.note(f"failed: {e}")
    finally:
        content = diary.write()
    for case in content["cases"]:
        print(f"{case['case']:40} {case['value']:>12} {case['unit']:6} n={case['n']}")
    unequal = [case for case in content["cases"] if case["case"] == "answers_equal_ratio" and case["value"] != 1]
    return 1 if unequal or any("failed" in note for note in diary.notes) else 0


if __name__ == "__main__":
    sys.exit(main())
