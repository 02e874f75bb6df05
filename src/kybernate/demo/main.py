"""The main job: three model servers that don't fit together and a training job, behind one address. `make demo`, `kybernate demo`.

Each server and the training run alone first, so that it is known what they must answer. Then `kybernate up` gets a
kybernate.yaml with all four, requests come in by a trace with gaps, models change places, training goes on in the gaps; every
answer and the training's result must be those of before. A chart says who held VRAM when. With a GPU and PyTorch the servers
are real transformers with weights made at random; without, all runs on the simulated driver and says so: then it shows that it
works, and no speed.

It starts an agent of its own in a temporary state directory and leaves nothing behind; an agent that is already running
on the machine isn't touched, but the GPU should be free.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json as json_module
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from rich.console import Console

from kybernate.benchmarks.agent import LOOK_S, OwnAgent, available_ram
from kybernate.benchmarks.conversation import until
from kybernate.cli.common import Seconds
from kybernate.demo import swap as demo_swap
from kybernate.demo.baseline import ask_alone, train_alone
from kybernate.demo.fleet import TRAINING, Fleet
from kybernate.demo.load import Ask, drive, free_address, prompts, zipf
from kybernate.demo.outcome import Outcome, outcome_of, show
from kybernate.model.api_history import HistoryView
from kybernate.model.api_serving import ServingView
from kybernate.model.errors import BadInput, KybernateError, Unsupported
from kybernate.model.quantities import format_size, parse_size
from kybernate.model.types import GIB, MIB

MODELS = ("ada", "bob", "cem")
SIMULATED_BYTES = 240 * MIB
PART = 0.4
"""Of the VRAM that each of the four takes: two fit at a time, and the training is one of them only if a model leaves."""
LIMIT_MOST = 40 * GIB
LEAST_REAL_BYTES = 2 * GIB
TOKENS = 12
PROMPTS = 4
EVERY_S, GAP_S = 6.0, 4.0
"""A gap in which nobody asks after every so many seconds of requests."""
SEED = 7
START_S = 300.0
ANSWER_S = 120.0
SERVING = {"min_run": 0.5, "hysteresis": 0.5, "batch_idle": 1.0, "due_after": 5.0}
"""Shorter than the defaults, so that half a minute shows what a day does."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What fits this machine. Bytes."""

    gpu: str
    limit: int
    pool: int
    fleet: Fleet


def demo(
    *,
    requests: int = 70,
    seconds: Seconds = 15.0,
    limit: str | None = None,
    simulated: str | None = None,
    swap: bool = False,
    turns: int = 10,
    json: bool = False,
) -> int:
    """Run three model servers that do not fit together and a training job on one GPU, behind one address.

    Exit status 0 if every answer and the result of the training were exact.

    Args:
        requests: Number of requests, all models together.
        seconds: Time in which they come, without gaps: seconds, or with units, as in 1m.
        limit: VRAM to share. Default: as the GPU and the free RAM allow, at most 40 GiB.
        simulated: Use a simulated GPU with this VRAM.
        swap: Run the small demo: two workloads change places.
        turns: With --swap, how often they change places.
        json: Print JSON instead of the chart.

    Raises:
        Unsupported: neither a GPU nor the simulated driver is there, or this machine is too small.
    """
    if swap:
        return demo_swap.swap(turns=turns, limit=limit, simulated=simulated, json=json)
    if requests < 1 or seconds <= 0:
        raise BadInput(
            f"{requests} requests in {seconds:g} seconds are no trace",
            hint="give --requests 1 or more, --seconds above 0",
        )
    console = Console(stderr=True, soft_wrap=True)
    setting = choose(
        limit=None if limit is None else parse_size(limit),
        simulated=None if simulated is None else parse_size(simulated),
    )
    if setting.fleet.simulated:
        console.print("No GPU in use: this is the SIMULATED driver. It shows that it works, and no speed.")
    console.print(f"{setting.gpu}: {setting.fleet} share {format_size(setting.limit)} of VRAM.")
    asks = zipf(
        MODELS,
        count=requests,
        seconds=seconds,
        seed=SEED,
        tokens=TOKENS,
        prompts_each=PROMPTS,
        every=EVERY_S,
        gap=GAP_S,
    )
    expected, result = alone(setting.fleet, console)
    with OwnAgent(
        pool_bytes=setting.pool,
        simulated_bytes=setting.limit if setting.fleet.simulated else None,
        settings={"vram": {"limit": None if setting.fleet.simulated else setting.limit}},
        sections=setting.fleet.sections(listen=free_address(), serving=SERVING, hold_s=ANSWER_S),
    ) as agent:
        outcome, history, began = serve(agent, setting, asks, expected=expected, result=result, console=console)
    if json:
        sys.stdout.write(json_module.dumps(asdict(outcome)) + "\n")
    else:
        show(history, outcome, [*MODELS, TRAINING], began=began)
    return 0 if outcome.exact == outcome.requests and outcome.training_exact else 1


def choose(*, limit: int | None, simulated: int | None) -> Setting:
    """What to run on here. Raises Unsupported."""
    gpu = None if simulated is not None else demo_swap.real_gpu()
    if gpu is None:
        total = simulated or limit or SIMULATED_BYTES
        each = _part(total)
        if each < 8 * MIB:
            raise BadInput(f"{format_size(total)} of VRAM are too little for four programs", hint="give 64MiB or more")
        fleet = Fleet(
            simulated=True,
            models=MODELS,
            model_bytes=each,
            training_bytes=each,
            training_steps=400,
            training_pace=0.02,
            seconds_per_token=0.02,
        )
        return Setting(gpu="simulated GPU", limit=total, pool=_pool(fleet), fleet=fleet)
    if importlib.util.find_spec("torch") is None:
        raise Unsupported(
            f"there is a {gpu[0]}, but no PyTorch for {sys.executable}, of which the demo's servers are made",
            hint="install torch for it, or try `kybernate demo --swap` or `kybernate demo --simulated 240MiB`",
        )
    name, total = gpu
    by_ram = int(available_ram() * 0.6 / (len(MODELS) + 1) / PART)
    fits = min(limit or min(LIMIT_MOST, by_ram), int(total * 0.9)) // (2 * MIB) * (2 * MIB)
    if fits < LEAST_REAL_BYTES:
        raise Unsupported(
            f"only {format_size(fits)} of VRAM can be used with {format_size(available_ram())} of free RAM",
            hint=f"free some RAM; {format_size(LEAST_REAL_BYTES)} are needed",
        )
    fleet = Fleet(
        simulated=False,
        models=MODELS,
        model_bytes=_part(fits),
        training_bytes=_part(fits),
        training_steps=200,
    )
    return Setting(gpu=name, limit=fits, pool=_pool(fleet), fleet=fleet)


def _part(total: int) -> int:
    return int(total * PART) // (2 * MIB) * (2 * MIB)


def _pool(fleet: Fleet) -> int:
    """All at once and some room: a model's copy stays while it is away and while it is not."""
    return (fleet.wanted_bytes + fleet.wanted_bytes // 8) // (2 * MIB) * (2 * MIB) + 64 * MIB


def alone(fleet: Fleet, console: Console) -> tuple[dict[str, str], str]:
    """What each answers alone, by prompt, and what the training's result is without interruption.

    Raises:
        KybernateError: one of them doesn't run, or doesn't answer the same twice.
    """
    asks = {
        model: [Ask(at=0, model=model, prompt=prompt, tokens=TOKENS) for prompt in prompts(model, PROMPTS)]
        for model in fleet.models
    }
    expected: dict[str, str] = {}
    # A real GPU is for one at a time here; simulated ones are as many as one likes.
    with ThreadPoolExecutor(max_workers=len(MODELS) if fleet.simulated else 1) as pool:
        trained = pool.submit(train_alone, fleet, timeout_s=START_S)
        for model, found in zip(
            fleet.models,
            pool.map(lambda model: ask_alone(fleet, model, asks[model], start_s=START_S), fleet.models),
            strict=True,
        ):
            if found.unstable:
                raise KybernateError(f"{model} alone gives another answer the second time")
            expected |= found.answers
        result, seconds = trained.result()
    console.print(f"each alone first, without Kybernate: {len(expected)} answers; the training took {seconds:.1f} s")
    return expected, result


def serve(
    agent: OwnAgent,
    setting: Setting,
    asks: Sequence[Ask],
    *,
    expected: Mapping[str, str],
    result: str,
    console: Console,
) -> tuple[Outcome, HistoryView, float]:
    """The job itself; the outcome, the history and when the requests began.

    Raises:
        KybernateError: a server didn't come up, or the training doesn't end.
    """
    serving = until(
        lambda: _all_there(agent.client.serving()),
        timeout_s=START_S,
        what="a first start of each model",
        every_s=LOOK_S,
    )
    console.print(f"all behind http://{serving.listen}/v1 now; {len(asks)} requests come")
    began = time.time()
    told = asyncio.run(drive(f"http://{serving.listen}", asks, timeout_s=ANSWER_S))
    answered_in = max(each.sent_at + each.total_s for each in told)
    console.print(f"answered in {answered_in:.1f} s; the training goes on")
    output = agent.output(TRAINING)
    until(
        lambda: output.last("result ") or _over(agent.client.serving()),
        timeout_s=START_S,
        what="the training's end",
        every_s=LOOK_S,
    )
    trained = output.last("result ") or output.tail()
    history = agent.client.history(began)
    outcome = outcome_of(
        told, history, expected=expected, trained=trained, result=result, seconds=answered_in, began=began
    )
    return outcome, history, began


def _all_there(serving: ServingView) -> ServingView | None:
    """Once every model has been ready."""
    if serving.listen is None:
        return None
    models = [served for served in serving.served if served.kind == "model"]
    ready = [
        served for served in models if served.phase in ("resident", "away") and (served.open or served.tier != "vram")
    ]
    return serving if len(models) == len(ready) == len(MODELS) else None


def _over(serving: ServingView) -> bool | None:
    """Whether the training has no work left, however it ended."""
    return any(served.name == TRAINING and not served.wanted for served in serving.served) or None
