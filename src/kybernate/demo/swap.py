"""Two workloads that don't fit together share one GPU and change places. `kybernate demo --swap`.

Each allocates 60 % of the VRAM, fills it and compares every word of it in every step. The second one's allocation makes
the agent pause the first; then the two are alternated, and a table says what each switch moved and took. On a machine
without a GPU it runs on the simulated driver and says so: then it shows that the mechanism works, and no speed.

It starts an agent of its own in a temporary state directory and leaves nothing behind; an agent that is already running
on the machine isn't touched, but the GPU should be free.
"""

from __future__ import annotations

import ctypes
import json as json_module
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from kybernate.benchmarks.agent import OwnAgent, available_ram, workload_command
from kybernate.benchmarks.conversation import Output
from kybernate.benchmarks.results import wide_console
from kybernate.model import api
from kybernate.model.errors import BadInput, KybernateError, Unsupported
from kybernate.model.quantities import format_size, parse_size
from kybernate.model.types import GIB, MIB

SIMULATED_BYTES = 320 * MIB
PART = 0.6
DIRTY = 0.25
"""Each step rewrites a quarter of the memory, as an optimizer that updates some of a model's layers would."""
LIMIT_MOST = 40 * GIB
"""Enough to show the speed; a whole large GPU would need twice its VRAM in host memory."""
STEPS = 3
"""Steps of progress before it is the other one's turn again."""
_LEAST_EACH = 32 * MIB
NAMES = ("first", "second")
START_S = 240.0
STEP_S = 60.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What fits this machine. Bytes."""

    simulated: bool
    gpu: str
    limit: int
    each: int
    pool: int


@dataclass(frozen=True, slots=True)
class Row:
    """One turn: `out` left and `came` came. Bytes and seconds."""

    turn: int
    out: str
    came: str
    bytes: int
    dirty_bytes: int
    out_s: float
    in_s: float
    waited_s: float
    """From the order until the one that came had made its first step."""
    steps: int
    """Of the one that came, all compared word by word."""


def swap(*, turns: int = 10, limit: str | None = None, simulated: str | None = None, json: bool = False) -> int:
    """Run it. Returns the exit status: 0 when every switch worked and every sum was exact.

    Args:
        turns: how often the two change places after the first time.
        limit: VRAM the two share; without it, what the GPU and the free RAM allow, at most 40 GiB.
        simulated: VRAM of a simulated GPU, to use one though there may be a real one.
        json: print JSON instead of the table.

    Raises:
        Unsupported: neither a GPU nor the simulated driver is there, or this machine is too small.
    """
    console = Console(stderr=True, soft_wrap=True)
    setting = choose(
        limit=None if limit is None else parse_size(limit),
        simulated=None if simulated is None else parse_size(simulated),
    )
    if turns < 1:
        raise BadInput(f"{turns} turns are none", hint="give --turns 1 or more")
    if setting.each < _LEAST_EACH:
        raise BadInput(
            f"{format_size(setting.limit)} of VRAM are too little for two workloads", hint="give 64MiB or more"
        )
    if setting.simulated:
        console.print("No GPU in use: this is the SIMULATED driver. It shows that it works, and no speed.")
    console.print(
        f"{setting.gpu}: two workloads of {format_size(setting.each)} each share {format_size(setting.limit)} of VRAM."
    )
    with OwnAgent(
        pool_bytes=setting.pool,
        simulated_bytes=setting.limit if setting.simulated else None,
        settings={"vram": {"limit": None if setting.simulated else setting.limit}},
    ) as agent:
        rows, ends = alternate(agent, setting, turns=turns, console=console)
    if json:
        sys.stdout.write(
            json_module.dumps({"setting": asdict(setting), "turns": [asdict(row) for row in rows], "ends": ends}) + "\n"
        )
    else:
        wide_console().print(table(setting, rows))
        for name, end in ends.items():
            print(f"{name}: {end}, every word compared in every step")
    return 0


def choose(*, limit: int | None, simulated: int | None) -> Setting:
    """What to run on here. Raises Unsupported."""
    gpu = None if simulated is not None else real_gpu()
    if gpu is None:
        total = simulated or limit or SIMULATED_BYTES
        each = int(total * PART) // (2 * MIB) * (2 * MIB)
        return Setting(simulated=True, gpu="simulated GPU", limit=total, each=each, pool=pool_for(each))
    name, total = gpu
    # Both host copies, and as much again as the page cache and the driver's own copies may want.
    by_ram = int(available_ram() * 0.6 / 2 / PART)
    fits = min(limit or min(LIMIT_MOST, by_ram), int(total * 0.9)) // (2 * MIB) * (2 * MIB)
    if fits < 256 * MIB:
        raise Unsupported(
            f"only {format_size(fits)} of VRAM can be used with {format_size(available_ram())} of free RAM",
            hint="free some RAM",
        )
    each = int(fits * PART) // (2 * MIB) * (2 * MIB)
    return Setting(simulated=False, gpu=name, limit=fits, each=each, pool=pool_for(each))


def pool_for(each: int) -> int:
    """Both host copies and some room."""
    return max(64 * MIB, (2 * each + each // 8) // (2 * MIB) * (2 * MIB) + 64 * MIB)


def real_gpu() -> tuple[str, int] | None:
    """Name and bytes of the first GPU, asked without making a context; None without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, total, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device) or cuda.cuDeviceGetName(name, 256, device):
        return None
    text = name.value.decode(errors="replace")
    return None if "simulated" in text.lower() else (text, total.value)


def alternate(agent: OwnAgent, setting: Setting, *, turns: int, console: Console) -> tuple[list[Row], dict[str, str]]:
    """The job itself. Returns a row a switch, and each workload's last words.

    Raises:
        KybernateError: a switch failed; WorkloadLost: a sum was wrong.
    """
    outputs: dict[str, Output] = {}
    rows: list[Row] = []
    for seed, name in enumerate(NAMES):
        mode = ["--loop", str(DIRTY), *(["--pace", "0.02"] if setting.simulated else [])]
        ordered = time.perf_counter()
        outputs[name] = agent.run(name, workload_command(setting.each, *mode, seed=seed + 1))
        outputs[name].wait("ready ", timeout_s=START_S)
        outputs[name].wait_steps(STEPS, timeout_s=STEP_S)
        waited = time.perf_counter() - ordered
        console.print(f"{name} runs, {format_size(setting.each)} filled and compared, {waited:.1f} s after its start")
    here, away = NAMES[1], NAMES[0]
    states = {view.name: view for view in agent.client.workloads()}
    if states[away].state != "paused":
        raise KybernateError(f"{away} is {states[away].state}, although {here} took its room")
    console.print(f"the agent paused {away} by itself: {states[away].reason}")
    for turn in range(1, turns + 1):
        before = outputs[away].steps()
        ordered = time.perf_counter()
        came = agent.client.resume(away)
        outputs[away].wait_steps(before + 1, timeout_s=STEP_S)
        waited = time.perf_counter() - ordered
        steps = outputs[away].wait_steps(before + STEPS, timeout_s=STEP_S)
        left = agent.client.workload(here)
        rows.append(_row(turn, here, away, left.last_pause, came, waited_s=waited, steps=steps))
        here, away = away, here
    ends: dict[str, str] = {}
    ends[here] = agent.exact_end(here)
    agent.wait_free(setting.each)
    agent.client.resume(away)
    ends[away] = agent.exact_end(away)
    return rows, {name: ends[name] for name in NAMES}


def _row(
    turn: int, out: str, came: str, pause: api.SwitchView | None, resume: api.SwitchView, *, waited_s: float, steps: int
) -> Row:
    if pause is None:
        raise KybernateError(f"turn {turn}: {out} was not paused when {came} was resumed")
    return Row(
        turn=turn,
        out=out,
        came=came,
        bytes=pause.bytes_total,
        dirty_bytes=pause.bytes_copied,
        out_s=pause.seconds,
        in_s=resume.seconds,
        waited_s=waited_s,
        steps=steps,
    )


def table(setting: Setting, rows: Sequence[Row]) -> Table:
    """A line a turn. GiB/s are of the content that left or came, whether it had to be copied or not."""
    made = Table(title=f"{setting.gpu}, {format_size(setting.limit)} shared by two of {format_size(setting.each)}")
    for heading in (
        "turn",
        "out",
        "in",
        "bytes",
        "dirty",
        "out s",
        "GiB/s",
        "in s",
        "GiB/s",
        "to first step s",
        "sums",
    ):
        made.add_column(heading, justify="left" if heading in ("out", "in", "sums") else "right")
    for row in rows:
        made.add_row(
            str(row.turn),
            row.out,
            row.came,
            format_size(row.bytes),
            format_size(row.dirty_bytes),
            f"{row.out_s:.3f}",
            f"{row.bytes / GIB / row.out_s:.1f}" if row.out_s else "-",
            f"{row.in_s:.3f}",
            f"{row.bytes / GIB / row.in_s:.1f}" if row.in_s else "-",
            f"{row.waited_s:.3f}",
            f"exact ({row.steps} steps)",
        )
    return made
