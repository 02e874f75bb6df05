"""Policies against each other in the simulator: `python bench/policy.py`, to bench/results/policy.json.

A model of a node, not a measurement of one (see the simulator's own text for what it leaves out); the same numbers on
every machine. Each set has three loads; a set's numbers are of all its requests together. `--trace FILE` instead compares on a
recorded trace and writes nothing; `--export SET-LOAD` prints a shipped trace in that form. (`kybernate simulate` compares on a
configuration and traffic of one's own.)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from kybernate.benchmarks import results as bench_results
from kybernate.benchmarks.results import Baseline, Case
from kybernate.model.errors import KybernateError
from kybernate.policy.comparison import Summary, compare, summary
from kybernate.policy.recorded import read_trace, written
from kybernate.policy.registry import DEFAULT, POLICIES
from kybernate.policy.settings import PolicySettings
from kybernate.policy.simulation import Outcome
from kybernate.policy.traces import REQUESTS, SUSTAINED, shipped

RESULT = Path(__file__).resolve().parent / "results" / "policy.json"
SEEDS = 5
FIRST_SEED = 100
"""Constants of the policy were chosen on small seeds; what is reported comes from others."""
NOTES = (
    "a model in virtual time, the same on every machine: no GPU, no clock and no request was involved",
    "waits are from a request's arrival until its model begins with it; p99 and mean over all seeds of a trace",
    "the baseline of each case is the better of fifo and lru for that number",
    "constants of the default were chosen on other seeds of the same traces",
    "heavy is more than fifo and lru can keep up with on two-hot, and on day-night at noon: the margin grows with the trace there",
    "cases named SET.sustained are of the light and medium loads alone",
    "all three policies give batch work the same gaps; fifo and lru differ in order and victims",
)


def cases(name: str, found: Mapping[str, Summary]) -> list[Case]:
    ours, others = found[DEFAULT], {policy: s for policy, s in found.items() if policy != DEFAULT}
    made = []
    for number in ("mean", "p99"):
        best = min(others, key=lambda policy: getattr(others[policy], number))
        value, base = getattr(ours, number), getattr(others[best], number)
        notes: dict[str, Any] = {
            "better_by_percent": round(100 * (1 - value / base), 1) if base else 0.0,
            **{policy: round(getattr(s, number), 4) for policy, s in found.items()},
        }
        made.append(
            Case(f"{name}.wait.{number}", "s", (value,), Baseline(best, base, others[best].requests), notes=notes)
        )
    everybody = {
        "worst_wait_s": {policy: round(s.worst, 3) for policy, s in found.items()},
        "switches": {policy: s.switches for policy, s in found.items()},
        "unanswered": {policy: s.unanswered for policy, s in found.items()},
        "interactive_share": {policy: round(s.interactive_share, 4) for policy, s in found.items()},
        "batch_share": {policy: round(s.batch_share, 4) for policy, s in found.items()},
    }
    return [*made, Case(f"{name}.batch_share", "ratio", (ours.batch_share,), notes=everybody)]


def table() -> Table:
    made = Table(title="Simulated waits in seconds, mean / p99")
    for heading in ("trace", *POLICIES, "better by", "batch share", "switches"):
        made.add_column(heading, justify="left" if heading == "trace" else "right")
    return made


def row(made: Table, name: str, found: Mapping[str, Summary]) -> None:
    others = [s for policy, s in found.items() if policy != DEFAULT]
    gains = []
    for number in ("mean", "p99"):
        base = min(getattr(s, number) for s in others)
        gains.append(f"{100 * (1 - getattr(found[DEFAULT], number) / base):.0f} %" if base else "-")
    made.add_row(
        name,
        *(f"{s.mean:.2f} / {s.p99:.1f}" for s in found.values()),
        " / ".join(gains),
        " ".join(f"{s.batch_share:.2f}" for s in found.values()),
        " ".join(str(s.switches) for s in found.values()),
    )


def run(*, seeds: int, requests: int) -> tuple[Table, list[Case]]:
    made, found_cases = table(), []
    sets: dict[str, dict[str, list[Outcome]]] = {}
    sustained: dict[str, dict[str, list[Outcome]]] = {}
    for load in shipped():
        traces = [load.trace(seed=seed, requests=requests) for seed in range(FIRST_SEED, FIRST_SEED + seeds)]
        outcomes = compare(traces, POLICIES, PolicySettings())
        for policy, some in outcomes.items():
            for by in (sets, sustained) if load.load in SUSTAINED else (sets,):
                by.setdefault(load.set, {}).setdefault(policy, []).extend(some)
        found = {policy: summary(some) for policy, some in outcomes.items()}
        found_cases += cases(f"{load.set}.{load.load}", found)
        row(made, load.name, found)
        print(f"{load.name}: {found[DEFAULT].mean:.2f} / {found[DEFAULT].p99:.2f} s", file=sys.stderr, flush=True)
    first: list[Case] = []
    for some_sets, suffix in ((sustained, ".sustained"), (sets, "")):
        made.add_section()
        for name, by_policy in some_sets.items():
            found = {policy: summary(some) for policy, some in by_policy.items()}
            first += cases(name + suffix, found)
            row(made, name + suffix, found)
    return made, first + found_cases


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="per trace")
    parser.add_argument("--trace", type=Path, help="a recorded one")
    parser.add_argument("--export", metavar="SET-LOAD", help="print a shipped trace, seed 0")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    console = bench_results.wide_console()
    if given.export:
        load = next((load for load in shipped() if load.name == given.export), None)
        if load is None:
            parser.error(f"no trace is called {given.export}: choose one of {', '.join(x.name for x in shipped())}")
        for line in written(load.trace(seed=0, requests=given.requests)):
            print(line)
        return 0
    if given.trace:
        try:
            trace = read_trace(given.trace)
        except KybernateError as e:
            parser.error(str(e))
        found = {name: summary(some) for name, some in compare([trace], POLICIES, PolicySettings()).items()}
        made = table()
        row(made, trace.name, found)
        console.print(made)
        return 0
    made, results = run(seeds=given.seeds, requests=given.requests)
    bench_results.write(given.output, bench_results.document("policy", results, simulated=True, notes=NOTES))
    console.print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
