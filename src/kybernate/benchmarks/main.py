"""`kybernate bench pause`: the driver's own checkpoint and ours side by side, as a table and as JSON."""

from __future__ import annotations

import json as json_module
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kybernate.benchmarks import results
from kybernate.benchmarks.agent import OwnAgent, available_ram
from kybernate.benchmarks.pause import (
    Measured,
    Plan,
    cases,
    helper_environment,
    measure_link,
    measure_ours,
    measure_stock,
    measure_swap,
)
from kybernate.benchmarks.results import wide_console
from kybernate.model.errors import BadInput
from kybernate.model.quantities import parse_size
from kybernate.model.types import GIB, MIB

SIZES = "1GiB,10GiB,40GiB"
RESULTS = Path("bench/results/pause.json")
RAM_PART = 0.8
"""How much of the RAM that is free now a pool may take: the driver's own copies and the page cache need some, too."""


def pause(
    *,
    sizes: str = SIZES,
    repeat: int = 5,
    stock_repeat: int = 3,
    quick: bool = False,
    swap: bool = True,
    simulated: str | None = None,
    output: Path | None = None,
    json: bool = False,
) -> int:
    """Measure pause and resume. It takes about five minutes and needs the GPU for itself.

    Args:
        sizes: Sizes of the workload's VRAM, separated by commas.
        repeat: Repetitions with Kybernate; the median counts.
        stock_repeat: Repetitions of the driver's own checkpoint; at most two for 20 GiB and more.
        quick: Measure 1 GiB only, three repetitions, no swap.
        swap: Also swap two workloads of the largest size.
        simulated: VRAM of a simulated GPU. Its numbers prove nothing; they are written only with --output.
        output: File for the JSON. Default: bench/results/pause.json in a working tree.
        json: Print the JSON instead of the table.

    Raises:
        BadInput: sizes that make no sense.
    """
    started = time.monotonic()
    plan = _plan(sizes, repeat=repeat, stock_repeat=stock_repeat, quick=quick, swap=swap, simulated=simulated)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - started:5.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)

    measured = Measured()
    if plan.pool_bytes > (allowed := int(available_ram() * RAM_PART)):
        # Said and tried all the same: some virtual machines show less RAM than they get when they use it.
        say(f"a pool of {plan.pool_bytes / GIB:.1f} GiB may be too much: {allowed / GIB:.1f} GiB of RAM seem free")
    settings = {"vram": {"limit": plan.vram_limit}}
    if plan.simulated_bytes is None:
        environment = helper_environment(None)
        link = measure_link(environment, GIB)
        say(f"link: {link['out']:.1f} GiB/s out, {link['in']:.1f} GiB/s in")
        measure_stock(plan, measured, environment, say=say)
        with OwnAgent(pool_bytes=plan.pool_bytes, settings=settings) as agent:
            say(f"agent ready, pool {plan.pool_bytes / GIB:.1f} GiB")
            _measure(plan, measured, agent, say)
    else:
        with OwnAgent(pool_bytes=plan.pool_bytes, simulated_bytes=plan.simulated_bytes, settings=settings) as agent:
            environment = helper_environment(agent)
            link = measure_link(environment, 64 * MIB)
            measure_stock(plan, measured, environment, say=say)
            _measure(plan, measured, agent, say)
    content = results.document(
        "pause", cases(plan, measured, link), simulated=plan.simulated_bytes is not None, notes=measured.notes
    )
    target = output or (RESULTS if RESULTS.parents[1].is_dir() and plan.simulated_bytes is None else None)
    if target is not None:
        results.write(target, content)
        say(f"written: {target}")
    if json:
        sys.stdout.write(json_module.dumps(content, indent=2) + "\n")
    else:
        wide_console().print(table(content))
    return 0


def _measure(plan: Plan, measured: Measured, agent: OwnAgent, say: Any) -> None:
    measure_ours(plan, measured, agent, say=say)
    measure_swap(plan, measured, agent, say=say)


def _plan(sizes: str, *, repeat: int, stock_repeat: int, quick: bool, swap: bool, simulated: str | None) -> Plan:
    if repeat < 1 or stock_repeat < 0:
        raise BadInput("repeat must be at least 1", hint="the default is 5")
    wanted = sorted({parse_size(size) for size in ("1GiB" if quick and sizes == SIZES else sizes).split(",")})
    if not wanted or wanted[0] < 2 * MIB:
        raise BadInput(f"{sizes!r}: sizes must be 2 MiB or more", hint="for example --sizes 1GiB,10GiB")
    return Plan(
        sizes=wanted,
        repeat=min(repeat, 3) if quick else repeat,
        stock_repeat=min(stock_repeat, 2) if quick else stock_repeat,
        swap_bytes=wanted[-1] if swap and not quick else None,
        simulated_bytes=None if simulated is None else parse_size(simulated),
    )


def table(content: dict[str, Any]) -> Table:
    """One line a case, with the stock driver and the link beside it."""
    host = content["host"]
    where = "simulated GPU: these numbers prove nothing" if content["simulated"] else host["gpu"]
    made = Table(title=f"pause and resume, {where}, driver {host['driver'] or '-'}, medians")
    for heading in ("case", "Kybernate", "min .. max", "n", "driver alone", "n", "times faster", "link's limit"):
        made.add_column(heading, justify="left" if heading == "case" else "right")
    for case in content["cases"]:
        if case["unit"] != "s" or case["case"].startswith("stock."):
            continue
        baseline = case["baseline"]
        made.add_row(
            case["case"],
            f"{case['value']:.3f} s",
            f"{case['min']:.3f} .. {case['max']:.3f}",
            str(case["n"]),
            f"{baseline['value']:.2f} s" if baseline else "-",
            str(baseline["n"]) if baseline else "-",
            f"{baseline['value'] / case['value']:.1f}" if baseline and case["value"] else "-",
            f"{case['floor']:.3f} s" if case["floor"] else "-",
        )
    for case in content["cases"]:
        if case["unit"] in ("B", "GiB/s"):
            value = f"{case['value']:.0f} bytes" if case["unit"] == "B" else f"{case['value']:.1f} GiB/s"
            made.add_row(case["case"], value, "", str(case["n"]), "", "", "", "")
    return made
