"""The stages of bench/multiplex.py. Each returns what it found as plain values, for a file; times in seconds, sizes in bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from kybernate.benchmarks.agent import LOOK_S, OwnAgent, plain_environment
from kybernate.benchmarks.conversation import until
from kybernate.demo.baseline import Plain, ask_alone, surroundings, train_alone
from kybernate.demo.fleet import TRAINING, Fleet
from kybernate.demo.load import Ask, Told, ask_once, drive, free_address, prompts, session, zipf
from kybernate.model.api_serving import ServedView, ServingView
from kybernate.model.errors import KybernateError
from kybernate.model.types import TierName
from kybernate.policy.registry import DEFAULT

SEED = 11
PROMPTS = 8
ANSWER_S = 180.0
SETTLED_S = 30.0
SERVING = {"min_run": 1.0, "hysteresis": 0.5, "batch_idle": 2.0, "due_after": 20.0}


@dataclass(slots=True)
class Run:
    """What is measured, and what every answer must be once that is known."""

    fleet: Fleet
    requests: int
    seconds: float
    tokens: int
    every: float
    gap: float
    compared: int
    rounds: int
    llama_swap: Path | None
    listen: str = field(default_factory=free_address)
    expected: dict[str, str] = field(default_factory=dict)
    result: str = ""

    def asks(self) -> list[Ask]:
        return zipf(
            self.fleet.models,
            count=self.requests,
            seconds=self.seconds,
            seed=SEED,
            tokens=self.tokens,
            prompts_each=PROMPTS,
            every=self.every,
            gap=self.gap,
        )

    def ask(self, model: str, number: int) -> Ask:
        return Ask(at=0.0, model=model, prompt=prompts(model, PROMPTS)[number % PROMPTS], tokens=self.tokens)

    def sections(self, policy: str, *, training: bool, quiet: bool = False) -> dict[str, Any]:
        """Of kybernate.yaml. `quiet`: nothing moves by itself, only for requests."""
        serving = {**SERVING, "policy": policy}
        if quiet:
            serving |= {"return_home": False, "staging": {"budget": "off"}}
        sections = self.fleet.sections(listen=self.listen, serving=serving, hold_s=ANSWER_S)
        if not training:
            del sections["jobs"]
        return sections


def as_plain(run: Run, told: Sequence[Told]) -> list[dict[str, Any]]:
    """For a file: what was asked and what became of it."""
    return [
        {
            "model": each.ask.model,
            "at": round(each.sent_at, 4),
            "status": each.status,
            "complete": each.complete,
            "equal": each.complete and each.text == run.expected[each.ask.prompt],
            "tokens_equal": each.complete and _tokens(each.text) == _tokens(run.expected[each.ask.prompt]),
            "first_s": None if each.first_s is None else round(each.first_s, 5),
            "total_s": round(each.total_s, 5),
            "tokens": len(each.text.split()),
            "held_s": each.held_s,
            "tier": each.headers.get("tier"),
            "error": each.error[:200],
        }
        for each in told
    ]


def _tokens(text: str) -> list[str]:
    """Without the sums over bits that the transformer's words carry."""
    return [word.partition(".")[0] for word in text.split()]


# -- without Kybernate -----------------------------------------------------------------------------------------------------


def alone(run: Run, deadline: float) -> dict[str, Any]:
    """Each server by itself, one after the other; the training beside them, as its result doesn't depend on that."""
    models: dict[str, Any] = {}
    with ThreadPoolExecutor(max_workers=1) as pool:
        training = pool.submit(train_alone, run.fleet, timeout_s=deadline - time.monotonic())
        for model in run.fleet.models:
            asks = [run.ask(model, number) for number in range(PROMPTS)]
            found = ask_alone(run.fleet, model, asks, start_s=deadline - time.monotonic())
            run.expected |= found.answers
            first, *others = (told.first_s for told in found.told if told.first_s is not None)
            models[model] = {
                "ready_s": found.ready_s,
                "first_s": first,
                "warm_s": others,
                "total_s": [told.total_s for told in found.told],
                "unstable": found.unstable,
            }
        run.result, seconds = training.result()
    return {"models": models, "training": {"result": run.result, "seconds": seconds}, "answers": run.expected}


def start_stop(run: Run, deadline: float) -> dict[str, Any] | None:
    """llama-swap with the same servers, one request after the other, each for another model."""
    if run.llama_swap is None:
        return None
    with llama_swap(run, run.llama_swap) as url:
        told = asyncio.run(_in_rounds(run, url, deadline=deadline))
    return {"name": "llama-swap", "told": as_plain(run, told)}


async def _in_rounds(run: Run, url: str, *, deadline: float) -> list[Told]:
    """Until the rounds are over or the next one would not end in time."""
    told: list[Told] = []
    async with session() as http:
        for number in range(run.rounds):
            longest = max((each.total_s for each in told), default=0.0)
            if time.monotonic() + 1.5 * longest > deadline:
                break
            ask = run.ask(run.fleet.models[number % len(run.fleet.models)], number)
            told.append(await ask_once(http, url, ask, timeout_s=deadline - time.monotonic()))
    return told


@contextlib.contextmanager
def llama_swap(run: Run, program: Path) -> Iterator[str]:
    """Its address. Every server alone in the VRAM, as it does without further settings."""
    port = int(free_address().rpartition(":")[2])
    models = {
        model: {
            "cmd": " ".join(run.fleet.server(model)).replace("--port 8000", "--port ${PORT}"),
            "checkEndpoint": "/health",
        }
        for model in run.fleet.models
    }
    simulated = run.fleet.model_bytes * 2 if run.fleet.simulated else None
    with surroundings(simulated_bytes=simulated) as environment:
        configuration = Path(f"/tmp/kyb-llama-swap-{os.getpid()}.yaml")
        configuration.write_text(yaml.safe_dump({"healthCheckTimeout": 120, "startPort": port + 1, "models": models}))
        command = [str(program), "--config", str(configuration), "--listen", f"127.0.0.1:{port}"]
        try:
            with Plain(command, environment={**plain_environment(), **environment}):
                until(lambda: _listens(port) or None, timeout_s=20, what="llama-swap listening")
                yield f"http://127.0.0.1:{port}"
        finally:
            configuration.unlink()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# -- with it ---------------------------------------------------------------------------------------------------------------


def all_up(run: Run, agent: OwnAgent, *, timeout_s: float) -> float:
    """Wait for a first start of every server."""
    began = time.monotonic()
    count = len(run.fleet.models)
    until(
        lambda: ready(agent.client.serving(), count),
        timeout_s=timeout_s,
        what="a start of each model",
        every_s=LOOK_S,
    )
    return time.monotonic() - began


def ready(serving: ServingView, count: int) -> bool | None:
    models = [each for each in serving.served if each.kind == "model" and each.phase in ("resident", "away")]
    good = [each for each in models if each.open or each.phase == "away"]
    return True if serving.listen and len(good) == count else None


def trace(run: Run, agent: OwnAgent, deadline: float) -> dict[str, Any]:
    """The main thing: the whole trace, and the training in its gaps and after it."""
    _reconfigure(agent, run.sections(DEFAULT, training=True))
    before = agent.client.serving()
    began = time.time()
    with Busy(simulated=run.fleet.simulated) as busy:
        told = _drive(run, agent, run.asks(), over_s=deadline - time.monotonic() - 20)
    after = agent.client.serving()
    history = agent.client.history(began)
    trained = _trained(agent, deadline)
    switches = [
        {"workload": s.workload, "operation": s.operation, "seconds": s.seconds, "bytes": s.bytes_total}
        for s in agent.client.history(began).switches
    ]
    return {
        "told": as_plain(run, told),
        "busy": busy.samples,
        "usage": _usage(before, after),
        "classes": [each.model_dump() for each in after.classes],
        "staging": after.staging.model_dump(),
        "notes": after.notes,
        "seconds": history.now - began,
        "switches": switches,
        "intervals": [i.model_dump(include={"workload", "place", "began", "ended"}) for i in history.intervals],
        "training": {"result": trained, "exact": trained == run.result, "expected": run.result},
    }


def _trained(agent: OwnAgent, deadline: float) -> str | None:
    """The training's last word once it has ended; None where it has not in time."""
    output = agent.output(TRAINING)

    def look() -> str | None:
        job = next((served for served in agent.client.serving().served if served.name == TRAINING), None)
        return None if job is not None and job.wanted else output.last("result ") or f"no result: {output.tail()}"

    try:
        return until(look, timeout_s=max(1.0, deadline - time.monotonic()), what="the training's end", every_s=LOOK_S)
    except KybernateError:
        return None


def policies(run: Run, agent: OwnAgent, deadline: float) -> dict[str, Any]:
    """The beginning of the same trace under each policy, with nothing else going on; each gets half of the time."""
    asks = run.asks()[: run.compared]
    found: dict[str, Any] = {}
    for left, policy in ((2, DEFAULT), (1, "fifo")):
        _reconfigure(agent, run.sections(policy, training=True))
        told = _drive(run, agent, asks, over_s=(deadline - time.monotonic()) / left - 2)
        found[policy] = {"told": as_plain(run, told)}
    return found


def switch(run: Run, agent: OwnAgent, deadline: float) -> dict[str, Any]:
    """One request at a time for whatever is parked in RAM, nothing else going on."""
    _reconfigure(agent, run.sections(DEFAULT, training=True, quiet=True))
    told: list[Told] = []
    for number in range(run.rounds):
        model = _parked(_settled(agent), TierName.RAM)
        if time.monotonic() > deadline - 3:
            break
        told += _drive(run, agent, [run.ask(model.name, number)], over_s=deadline - time.monotonic())
    return {"told": as_plain(run, told)}


def nvme(run: Run, agent: OwnAgent, deadline: float) -> dict[str, Any]:
    """The same, after it was moved from RAM to the disk. As often as the time allows."""
    _reconfigure(agent, run.sections(DEFAULT, training=True, quiet=True))
    told: list[Told] = []
    moved: list[float] = []
    longest = 0.0
    number = 0
    while number < run.rounds and time.monotonic() + 1.2 * longest < deadline:
        began = time.monotonic()
        model = _parked(_settled(agent), TierName.RAM)
        agent.client.move(model.name, TierName.NVME)
        moved.append(time.monotonic() - began)
        if _tier(agent, model.name) != TierName.NVME:
            raise KybernateError(f"{model.name} is not on the disk after it was moved there")
        told += _drive(run, agent, [run.ask(model.name, number)], over_s=max(1.0, deadline - time.monotonic()))
        longest = max(longest, time.monotonic() - began)
        number += 1
    return {"told": as_plain(run, told), "moved_s": moved}


def _drive(run: Run, agent: OwnAgent, asks: Sequence[Ask], *, over_s: float) -> list[Told]:
    return asyncio.run(drive(f"http://{run.listen}", asks, timeout_s=ANSWER_S, over_s=max(1.0, over_s)))


def _reconfigure(agent: OwnAgent, sections: Mapping[str, Any]) -> None:
    _settled(agent)
    agent.configure(sections)
    agent.client.reload()


def _settled(agent: OwnAgent) -> ServingView:
    """Once nobody is on the way and nobody waits."""

    def look() -> ServingView | None:
        serving = agent.client.serving()
        moving = [s for s in serving.served if s.phase in ("coming", "leaving") or s.waiting or s.in_flight]
        return None if moving else serving

    return until(look, timeout_s=SETTLED_S, what="an end of all switches", every_s=LOOK_S)


def _parked(serving: ServingView, tier: TierName) -> ServedView:
    """The one that has been there longest, so that all take their turn. Raises KybernateError for none."""
    there = [s for s in serving.served if s.kind == "model" and s.phase == "away" and s.tier == tier]
    if not there:
        states = ", ".join(f"{s.name} {s.phase} in {s.tier}" for s in serving.served)
        raise KybernateError(f"no model is parked in {tier}: {states}")
    return min(there, key=lambda served: served.last_use)


def _tier(agent: OwnAgent, name: str) -> str | None:
    return next((served.tier for served in agent.client.serving().served if served.name == name), None)


def _usage(before: ServingView, after: ServingView) -> dict[str, Any]:
    """What was added meanwhile, by workload."""
    earlier = {served.name: served.usage for served in before.served}
    added: dict[str, Any] = {}
    for served in after.served:
        old = earlier.get(served.name)
        added[served.name] = {
            "resident_s": served.usage.resident_s - (old.resident_s if old else 0.0),
            "busy_s": served.usage.busy_s - (old.busy_s if old else 0.0),
        }
    return added


class Busy:
    """The share of time in which kernels ran, as the driver says, sampled; nothing on the simulated driver."""

    def __init__(self, *, simulated: bool) -> None:
        self.samples: list[float] = []
        self._simulated = simulated
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="busy", daemon=True)

    def __enter__(self) -> Self:
        if not self._simulated:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _sample(self) -> None:
        command = [
            "nvidia-smi",
            "--id=0",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "-lms",
            "200",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as smi:
            assert smi.stdout is not None
            for line in smi.stdout:
                if self._over.is_set():
                    smi.terminate()
                    break
                with contextlib.suppress(ValueError):
                    self.samples.append(float(line.split()[0]) / 100)
