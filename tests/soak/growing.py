"""A training job grows in the gaps that two models leave it: again and again, as often as is asked.

    python -m tests.soak.growing --times 20

Two models of 128 MB and a job that takes 100 MB in steps of 10 share 200 MiB, so that only one of the three has room for all it
wants. A request goes to each model in turn, one a second. Every answer and the training's result must be what they are without
Kybernate.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from tests.agent.serving.conftest import ServingAgent, free_port, server
from tests.guardian import guarded

from kybernate.cli.simulated import gpu_path
from kybernate.cuda import simulated
from kybernate.demo.baseline import surroundings
from kybernate.model.errors import NotFound
from kybernate.model.types import MIB

GPU_BYTES = 200 * MIB
MODEL_BYTES = 128_000_000
JOB_BYTES = 100_000_000
PIECE_BYTES = 10_000_000
MODELS = ("one", "two")
PROGRAM = Path(__file__).parents[1] / "agent" / "programs" / "growing.py"
START_S = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """How it is asked."""

    requests: int = 30
    apart_s: float = 1.0
    pause_s: float = 0.3
    """That the job computes between two allocations, at least."""
    said: int | None = JOB_BYTES
    """The job's `vram:`; None: not said."""
    serving: dict[str, Any] | None = None
    arbiter: dict[str, Any] | None = None


def job_command(pause_s: float) -> list[str]:
    size = ["--bytes", str(JOB_BYTES), "--piece", str(PIECE_BYTES)]
    return [sys.executable, str(PROGRAM), *size, "--seconds", str(pause_s)]


def result_alone() -> str:
    with surroundings(simulated_bytes=GPU_BYTES) as environment:
        done = subprocess.run(job_command(0.0), env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def once(
    load: Load, *, expected: str, timeout_s: float = 300.0, say: Callable[[str], None] = lambda _: None
) -> str | None:
    """Returns what went wrong."""
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root):
        agent = ServingAgent(root, settings="", simulated_gpu=True, gpu_bytes=GPU_BYTES)
        agent.peers, agent.port = [], free_port()
        job: dict[str, Any] = {"command": job_command(load.pause_s), "restart": "never"}
        agent.write(
            models={name: server(name, size=MODEL_BYTES) for name in MODELS},
            jobs={"job": job if load.said is None else {**job, "vram": load.said}},
            agent={"arbiter": load.arbiter or {"min_run": 5, "settle": 1, "wait_limit": 600}},
            serving=load.serving or {"min_run": 2, "hysteresis": 1, "batch_idle": 5, "drain": 20},
        )
        agent.start()
        try:
            return _watched(agent, load, expected=expected, timeout_s=timeout_s, say=say)
        finally:
            agent.stop_all()
            agent.end()
            agent.client.close()
            simulated.remove(gpu_path(agent.state))


def _watched(
    agent: ServingAgent, load: Load, *, expected: str, timeout_s: float, say: Callable[[str], None]
) -> str | None:
    with httpx2.Client(timeout=START_S) as http, ThreadPoolExecutor(32) as pool:

        def ask(name: str) -> str:
            asked = {"model": name, "prompt": "x", "max_tokens": 8}
            while True:
                try:
                    answer = http.post(f"http://127.0.0.1:{agent.port}/v1/completions", json=asked)
                except httpx2.ConnectError:  # the activator is still coming
                    time.sleep(0.1)
                    continue
                return str(answer.json()["choices"][0]["text"]) if answer.status_code == 200 else answer.text

        answers: list[tuple[str, Future[str]]] = []
        began = time.monotonic()
        for number, name in zip(range(load.requests), itertools.cycle(MODELS), strict=False):
            answers.append((name, pool.submit(ask, name)))
            if (left := began + (number + 1) * load.apart_s - time.monotonic()) > 0:
                time.sleep(left)
        texts = {name: {answer.result() for asked, answer in answers if asked == name} for name in MODELS}
        if wrong := [text for found in texts.values() if len(found) > 1 for text in found]:
            return f"answers differ: {wrong}"
    state = _end_of_job(agent, timeout_s)
    say(f"the job {state}; pauses: {_pauses(agent)}")
    if agent.said("job").splitlines()[-1:] == [expected]:
        return None
    events = [f"{event.time:.2f} {event.workload} {event.said}" for event in agent.client.events(count=200)]
    return "\n".join([f"the job {state}: {agent.said('job')[-800:]}", *events])


def _end_of_job(agent: ServingAgent, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            view = agent.client.wait("job", timeout_s=5)
        except NotFound:  # not started yet
            time.sleep(0.1)
        else:
            if view.state in ("exited", "lost"):
                return f"ended with status {view.exit_status}"
        if time.monotonic() > deadline:
            return f"has not ended within {timeout_s:g} s"


def _pauses(agent: ServingAgent) -> dict[str, int]:
    return {
        name: sum(event.kind == "paused" for event in agent.client.events(name, count=500)) for name in (*MODELS, "job")
    }


def main() -> int:
    """Returns 0 when nothing went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.growing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--unsaid", action="store_true", help="the job has no vram:")
    options = parser.parse_args()
    expected, failures = result_alone(), 0
    load = Load(requests=options.requests, said=None if options.unsaid else JOB_BYTES)
    for number in range(1, options.times + 1):
        wrong = once(load, expected=expected, say=lambda text: print(text, flush=True))
        failures += wrong is not None
        print(f"{number}: {'exact' if wrong is None else wrong}", flush=True)
    print(f"{options.times - failures} of {options.times} exact")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
