"""What the preload library costs while a workload runs: `python bench/overhead.py`, to bench/results/overhead.json.

The same program runs twice under one agent, once with the library and once without (backend `driver`); everything else
(user, cgroup, namespaces) is equal. The two take turns, A B B A, one at a time; each ratio is of two neighbours in time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "gpu"))

from catalogue import python_with

from kybernate.benchmarks import results
from kybernate.benchmarks.agent import OwnAgent
from kybernate.benchmarks.conversation import Conversation
from kybernate.benchmarks.results import Baseline, Case
from kybernate.model.quantities import parse_size
from kybernate.model.types import GIB, MIB, Backend, WorkloadName

CASES = {
    "ops": "torch_small_ops_ratio",
    "training": "training_step_ratio",
    "alloc": "alloc_free_pair_ratio",
    "alloc-large": "alloc_free_pair_ratio.64MiB",
}
WITH, WITHOUT = "with-library", "without-library"
START_S = 120.0
ROUNDS_MOST = {"alloc": 5, "alloc-large": 5}
"""Its pairs take long, and a ratio that is far from one needs no more."""


def start(agent: OwnAgent, name: str, backend: Backend, *, python: str, scale: float) -> Conversation:
    commands = agent.state.run_directory(WorkloadName(name)) / "commands"
    script = Path(__file__).resolve().with_name("overhead_workload.py")
    output = agent.run(name, [python, str(script), str(commands), str(scale)], backend=backend)
    output.wait("ready", timeout_s=START_S)
    return Conversation(commands=commands, output=output)


def seconds(conversation: Conversation, kind: str) -> float:
    return float(conversation.order(kind, timeout_s=180).rpartition("seconds=")[2])


def measure(talks: dict[str, Conversation], kinds: Sequence[str], *, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by kind and by workload; the first turn of each isn't counted."""
    found: dict[str, dict[str, list[float]]] = {kind: {WITH: [], WITHOUT: []} for kind in kinds}
    for kind in kinds:
        for name in (WITH, WITHOUT):
            seconds(talks[name], kind)
        for turn in range(min(rounds, ROUNDS_MOST.get(kind, rounds))):
            for name in (WITH, WITHOUT) if turn % 2 == 0 else (WITHOUT, WITH):
                found[kind][name].append(seconds(talks[name], kind))
        ours, plain = (statistics.median(found[kind][name]) for name in (WITH, WITHOUT))
        print(f"{kind}: with {ours:.4f} s, without {plain:.4f} s, ratio {ours / plain:.4f}", flush=True)
    return found


def cases(found: dict[str, dict[str, list[float]]]) -> list[Case]:
    made = []
    for kind, sides in found.items():
        ratios = tuple(a / b for a, b in zip(sides[WITH], sides[WITHOUT], strict=True))
        plain = statistics.median(sides[WITHOUT])
        made.append(
            Case(
                case=CASES[kind],
                unit="ratio",
                samples=ratios,
                baseline=Baseline(name="without the library", value=1.0, n=len(ratios)),
                floor=1.0,
                notes={"with_s": round(statistics.median(sides[WITH]), 5), "without_s": round(plain, 5)},
            )
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--kinds", default=",".join(CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of operations")
    parser.add_argument("--python", help="interpreter with PyTorch")
    parser.add_argument("--simulated", help="VRAM of a simulated GPU, to test this script with --kinds alloc")
    parser.add_argument("--output", type=Path, default=Path("bench/results/overhead.json"))
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in CASES]:
        parser.error(f"no kind {unknown[0]}; there are: {', '.join(CASES)}")
    simulated = parse_size(options.simulated) if options.simulated else None
    python = options.python or (python_with() if simulated is None else sys.executable)
    with OwnAgent(pool_bytes=GIB if simulated is None else 64 * MIB, simulated_bytes=simulated) as agent:
        talks = {
            WITH: start(agent, WITH, Backend.BROKER, python=python, scale=options.scale),
            WITHOUT: start(agent, WITHOUT, Backend.DRIVER, python=python, scale=options.scale),
        }
        found = measure(talks, kinds, rounds=options.rounds)
        for name in talks:
            agent.exact_end(name)
    content = results.document("overhead", cases(found), simulated=simulated is not None)
    results.write(options.output, content)
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
