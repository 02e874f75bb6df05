"""`make soak-serving`: random requests for models that don't fit together, while everything that serves them is killed,
restarted, reconfigured and ordered about; for as long as is asked, from a seed that is printed.

    python -m tests.soak.serving --seconds 3600 --seed 7

Whatever happens, every request must end with the exact answer or an error that says why; afterwards each model answers, and when
all have been taken off, no VRAM, pool, descriptor or process is left of them. Counts are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx2
from tests.agent.conftest import GPU_BYTES
from tests.agent.serving.conftest import ServingAgent, free_port
from tests.guardian import clean, guarded
from tests.soak import remains
from tests.soak.traffic import ANYBODY, Question, Traffic

from kybernate.cli.simulated import gpu_path
from kybernate.cuda import simulated
from kybernate.demo.baseline import ask_alone
from kybernate.demo.fleet import PORT, Fleet
from kybernate.demo.load import Ask, prompts
from kybernate.model.errors import AgentAway, KybernateError
from kybernate.model.types import MIB, TierName, workload_name
from kybernate.policy.registry import DEFAULT, POLICIES
from kybernate.process.cgroups import WorkloadCgroup

MODELS = ("ada", "bob", "cem", "dot")
FLEET = Fleet(
    simulated=True,
    models=MODELS,
    model_bytes=48 * MIB,
    training_bytes=40 * MIB,
    training_steps=0,
    seconds_per_token=0.01,
)
assert 2 * FLEET.model_bytes < GPU_BYTES < 3 * FLEET.model_bytes
JOB = "job"
HOLD_S = 30.0
TOKENS = (1, 8, 40)
AGAIN_S = 60.0
"""For a model to answer once nobody disturbs it any more, and for requests to be answered at all meanwhile."""


class World:
    """One agent, its activator and a simulated GPU. What `tests.soak.remains` looks at, besides."""

    def __init__(self, root: Path, source: random.Random) -> None:
        self.root = root
        self.disks: list[Path] = []
        self.bucket = root / "none"
        self.deaths = 0
        self._source = source
        self._agent = ServingAgent(root, settings="", simulated_gpu=True)
        self._agent.peers, self._agent.port = [], free_port()

    def __enter__(self) -> Self:
        self.configure()
        self._agent.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AssertionError):
            self._agent.kill()
        self._agent.client.close()
        clean(self.root)
        with contextlib.suppress(KybernateError):
            simulated.remove(gpu_path(self._agent.state))

    @property
    def agent(self) -> ServingAgent:
        return self._agent

    @property
    def agents(self) -> list[ServingAgent]:
        return [self._agent]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._agent.port}"

    def configure(self, **changes: Any) -> None:
        """Write a kybernate.yaml: ever the same models, ever other numbers."""
        pick = self._source.choice
        models: dict[str, dict[str, Any]] = {
            model: {
                "command": FLEET.server(model),
                "port": PORT,
                "ready": "/health",
                "vram": FLEET.model_bytes,
                "limits": {"max_wait": HOLD_S, "concurrency": pick((0, 0, 2)), "queue": pick((1000, 1000, 3))},
                "idle": pick(("off", "off", 2.0)),
                "priority": pick((0, 0, 5)),
                "lowest_tier": pick(("ram", "nvme")),
            }
            for model in MODELS
        }
        if pick((True, False)):
            models["spare"] = {**models["ada"], "names": ["another"]}
        loop = [sys.executable, "-m", "kybernate.benchmarks.workload", "--bytes", str(FLEET.training_bytes)]
        sections: dict[str, Any] = {
            "models": models,
            "jobs": {
                JOB: {
                    "command": [*loop, "--loop", "0.25", "--pace", "0.05"],
                    "vram": FLEET.training_bytes,
                    "restart": "always",
                    "cold_start": True,
                }
            },
            "activator": {"workers": 2},
            "serving": {
                "policy": pick((DEFAULT, *POLICIES)),
                "due_after": 5,
                "min_run": pick((0, 0.5)),
            },
        }
        self._agent.write(**{**sections, **changes})

    def workers(self) -> list[int]:
        return [worker.pid for worker in self._agent.client.serving().workers]

    def processes(self, name: str, *, supervisor: bool) -> list[int]:
        state, probe = self._agent.state.root, workload_name("probe")
        tops = [group.path.parent for group in WorkloadCgroup.existing(state_directory=state, name=probe)]
        group = next((WorkloadCgroup(top / name) for top in tops if (top / name).is_dir()), None)
        if group is None:
            return []
        return list(group.helper_pids() if supervisor else group.pids())

    def restart(self, *, kill: bool, away_s: float) -> None:
        self.deaths += 1
        if kill:
            self._agent.kill()
        else:
            self._agent.end()
        time.sleep(away_s)
        self._agent.start()


class Mischief:
    """What is done to it, one thing after the other."""

    def __init__(self, world: World, traffic: Traffic, source: random.Random) -> None:
        self._world = world
        self._traffic = traffic
        self._source = source
        self.counts: Counter[str] = Counter()
        self._kinds: Sequence[tuple[Callable[[str], None], int]] = (
            (self.kill_server, 3),
            (self.kill_supervisor, 1),
            (self.kill_job, 1),
            (self.kill_worker, 1),
            (self.kill_agent, 1),
            (self.end_agent, 1),
            (self.reload, 4),
            (self.stop, 1),
            (self.pause, 2),
            (self.resume, 2),
            (self.park, 2),
            (self.prefetch, 1),
            (self.nothing, 10),
        )

    def one(self) -> str:
        kinds, weights = zip(*self._kinds, strict=True)
        act = self._source.choices(kinds, weights)[0]
        model = self._source.choice(MODELS)
        self.counts[act.__name__] += 1
        act(model)
        return f"{act.__name__} {model}"

    def nothing(self, model: str) -> None:
        """Let it run: a fault a second would hide what takes longer."""
        time.sleep(self._source.uniform(1, 4))

    def kill_server(self, model: str) -> None:
        with self._traffic.excused(model):
            _kill(self._world.processes(model, supervisor=False))

    def kill_supervisor(self, model: str) -> None:
        with self._traffic.excused(model):
            _kill(self._world.processes(model, supervisor=True))

    def kill_job(self, model: str) -> None:
        _kill(self._world.processes(JOB, supervisor=False))

    def kill_worker(self, model: str) -> None:
        workers = self._world.workers()
        if workers:
            with self._traffic.excused(ANYBODY):
                _kill([self._source.choice(workers)])

    def kill_agent(self, model: str) -> None:
        """The activator goes on without it: nobody's connection may be cut."""
        self._world.restart(kill=True, away_s=self._source.choice((0, 0.5, 2.0)))

    def end_agent(self, model: str) -> None:
        """An ordinary end takes the activator along: nobody listens until the next agent is there."""
        with self._traffic.excused(ANYBODY):
            self._world.restart(kill=False, away_s=0)
            _wait(lambda: _healthy(self._world), AGAIN_S, "an activator that answers again")

    def reload(self, model: str) -> None:
        self._world.configure()
        self._world.agent.client.reload()

    def stop(self, model: str) -> None:
        with self._traffic.excused(model), _refusals():
            self._world.agent.client.stop(model, grace_s=0, remove=self._source.choice((True, False)))

    def pause(self, model: str) -> None:
        with _refusals():
            self._world.agent.client.pause(model, timeout_s=5)

    def resume(self, model: str) -> None:
        with _refusals():
            self._world.agent.client.resume(model, timeout_s=10)

    def park(self, model: str) -> None:
        with _refusals():
            self._world.agent.client.move(model, TierName.NVME)

    def prefetch(self, model: str) -> None:
        with _refusals():
            self._world.agent.client.prefetch(model)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """An order may come at the wrong moment and be refused; an agent that doesn't answer is something else."""
    try:
        yield
    except AgentAway:
        raise
    except KybernateError:
        pass


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def answers() -> dict[str, dict[Question, str]]:
    """What each model says alone."""
    questions = [Question(prompt, tokens) for prompt in prompts("soak", 2) for tokens in TOKENS]
    expected: dict[str, dict[Question, str]] = {}
    for model in MODELS:
        # A prompt's answer depends on the number of tokens: each is a question of its own.
        by_tokens = {
            tokens: ask_alone(
                FLEET,
                model,
                [Ask(at=0, model=model, prompt=q.prompt, tokens=tokens) for q in questions if q.tokens == tokens],
                start_s=60,
                repeat=0,
            ).answers
            for tokens in TOKENS
        }
        expected[model] = {question: by_tokens[question.tokens][question.prompt] for question in questions}
    return expected


def soak(
    *, seconds: float, seed: int, expected: Mapping[str, Mapping[Question, str]], say: Callable[[str], None]
) -> tuple[list[str], dict[str, int]]:
    """Returns what went wrong, and the counts."""
    source = random.Random(seed)
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root), World(root, source) as world:
        _wait(lambda: _healthy(world), AGAIN_S, "an activator that answers")
        before = remains.Before.of(world)
        traffic = Traffic(url=lambda: world.url, expected=expected, seed=seed)
        mischief = Mischief(world, traffic, source)
        wrong: list[str] = []
        traffic.start()
        try:
            wrong += _disturb(traffic, mischief, seconds=seconds, say=say)
        finally:
            traffic.stop()
        wrong += traffic.wrong
        say("settle: every model must answer")
        wrong += _settle(world, expected)
        counts = {**traffic.counts, **mischief.counts, "agent deaths": world.deaths}
        if wrong:
            log = world.agent.log.read_text()[-8000:]
            wrong.append(f"-- agent --\n{log}")
            return wrong, counts
        say("take everything off: nothing must be left")
        wrong += _take_off(world, before)
    return wrong, counts


def _disturb(traffic: Traffic, mischief: Mischief, *, seconds: float, say: Callable[[str], None]) -> list[str]:
    began = time.monotonic()
    last, answered = began, 0
    while time.monotonic() - began < seconds:
        try:
            what = mischief.one()
        except (KybernateError, AssertionError, OSError) as e:
            return [f"{type(e).__name__}: {e}"]
        now = time.monotonic()
        say(f"{now - began:7.1f} s {what}: {dict(traffic.counts)}")
        if traffic.counts["exact"] > answered:
            last, answered = now, traffic.counts["exact"]
        if now - last > AGAIN_S:
            return [f"no request was answered for {now - last:.0f} s"]
        if traffic.counts["wrong"]:
            return []
    return []


def _settle(world: World, expected: Mapping[str, Mapping[Question, str]]) -> list[str]:
    """With the same configuration as ever, and nobody who disturbs."""
    wrong: list[str] = []
    world.configure()
    world.agent.client.reload()
    with httpx2.Client(base_url=world.url, timeout=AGAIN_S) as http:
        for model in MODELS:
            question, answer = next(iter(expected[model].items()))
            body = {"model": model, "prompt": question.prompt, "max_tokens": question.tokens}
            with contextlib.suppress(httpx2.TransportError):
                deadline = time.monotonic() + AGAIN_S
                done = http.post("/v1/completions", json=body)
                while done.status_code == 503 and time.monotonic() < deadline:
                    time.sleep(float(done.headers.get("retry-after", 1)))
                    with _refusals():  # whom an order has paused stays so until another one
                        world.agent.client.resume(model, timeout_s=10)
                    done = http.post("/v1/completions", json=body)
                if done.status_code == 200 and done.json()["choices"][0]["text"] == answer:
                    continue
                wrong.append(f"in the end {model} answered {done.status_code}: {done.text[:200]}")
                continue
            wrong.append(f"in the end {model} did not answer")
    with contextlib.suppress(KybernateError):
        if "MISMATCH" in world.agent.output(JOB):
            wrong.append(f"the job found its memory wrong: {world.agent.output(JOB)[-300:]}")
    return wrong


def _take_off(world: World, before: remains.Before) -> list[str]:
    world.agent.write(activator={"workers": 2})
    world.agent.client.reload()
    world.agent.stop_all()
    world.agent.client.collect()
    left: list[str] = []

    def look() -> bool:
        left[:] = remains.alive(world, before, own=world.workers())
        return not left

    _wait(look, AGAIN_S, "", raises=False)
    return [f"left: {each}" for each in left]


def _healthy(world: World) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return httpx2.get(f"{world.url}/v1/models", timeout=5).status_code == 200
    return False


def _wait(condition: Callable[[], bool], timeout_s: float, what: str, *, raises: bool = True) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            if raises:
                raise AssertionError(f"not within {timeout_s:g} s: {what}")
            return
        time.sleep(0.1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.serving", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument(
        "--round", type=float, default=180.0, help="seconds after which all is taken off and begun anew"
    )
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the first round; the next have the next ones"
    )
    options = parser.parse_args(arguments)
    began, seed, failures = time.monotonic(), options.seed, 0
    total: Counter[str] = Counter()
    expected = answers()
    while (left := options.seconds - (time.monotonic() - began)) > 0:
        print(f"seed {seed}, {time.monotonic() - began:.0f} s so far", flush=True)
        wrong, counts = soak(seconds=min(options.round, left), seed=seed, expected=expected, say=_say)
        total.update(counts)
        if wrong:
            failures += 1
            print(f"seed {seed} WENT WRONG:", *wrong, sep="\n", flush=True)
        seed += 1
    print(f"{seed - options.seed} rounds in {time.monotonic() - began:.0f} s, {failures} went wrong")
    for what, count in sorted(total.items()):
        print(f"{count:8} {what}")
    return 1 if failures else 0


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
