"""Measures pause and resume: the driver's own checkpoint and ours, with the same workload, in one run.

The stock part comes first and without an agent: its copy of the memory is pageable RAM of the workload, and that, our
pool and both workloads of the swap don't fit in the RAM of a usual machine at once.

What counts is what the caller waits: the larger of the wall time of the API call and the agent's own measure. Every
resume is followed by a comparison of all words on the GPU; a difference ends the run with an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kybernate.benchmarks.agent import OwnAgent, workload_command
from kybernate.benchmarks.conversation import Conversation, Output
from kybernate.benchmarks.results import Baseline, Case
from kybernate.model import api
from kybernate.model.errors import KybernateError, WorkloadLost
from kybernate.model.types import GIB, MIB, Depth

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. Sizes in bytes."""

    sizes: Sequence[int]
    repeat: int
    stock_repeat: int
    """Fewer than ours for large sizes: 40 GiB take the driver more than half a minute out and in."""
    swap_bytes: int | None
    simulated_bytes: int | None = None
    budget_s: float = 360.0
    """Stock repetitions are left out when the time gets short, ours never."""

    @property
    def pool_bytes(self) -> int:
        """Both copies of a swap, and room to round to."""
        most = max(max(self.sizes), 2 * (self.swap_bytes or 0))
        return most + max(64 * MIB, most // 32 // (2 * MIB) * (2 * MIB))

    @property
    def vram_limit(self) -> int | None:
        """Of a swap: room for one of the two and a quarter, so that the one must leave for the other to come."""
        return max(max(self.sizes), self.swap_bytes + self.swap_bytes // 4) if self.swap_bytes else None

    def name(self, size: int) -> str:
        return f"{size // GIB}GiB" if size >= GIB else f"{size // MIB}MiB"


@dataclass(slots=True)
class Measured:
    """All samples by case name; seconds unless the name says bytes or GiB/s."""

    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    agent_seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    """The steps of the last sample of each case, as the agent reported them."""

    def switch(self, case: str, wall_s: float, report: api.SwitchView) -> None:
        self.samples[case].append(max(wall_s, report.seconds))
        self.agent_seconds[case].append(report.seconds)
        self.steps[case] = {
            **{step.step: round(step.seconds, 4) for step in report.steps},
            "bytes_copied": report.bytes_copied,
            "bytes_clean": report.bytes_clean,
        }


# -- the link and the driver's own checkpoint ----------------------------------------------------------------------


def helper_environment(agent: OwnAgent | None) -> dict[str, str]:
    """For processes that are not the agent's workloads; with a simulated GPU, the agent's."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    return environment if agent is None else {**environment, **agent.simulation}


def measure_link(environment: dict[str, str], size: int) -> dict[str, float]:
    """GiB/s `out`, `in` and `both` together, of copies with nothing else going on.

    Raises:
        KybernateError: it can't be measured; the message holds what the helper said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "kybernate.benchmarks.gpu", "link", str(size)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        raise KybernateError(f"measuring the link failed: {done.stderr.strip()[-400:]}")
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


class Stock:
    """The driver's own checkpoint of one process, called from a process of its own."""

    def __init__(self, pid: int, environment: dict[str, str]) -> None:
        self._helper = subprocess.Popen(
            [sys.executable, "-m", "kybernate.benchmarks.gpu", "stock", str(pid)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> str:
        assert self._helper.stdout is not None
        assert self._helper.stderr is not None
        if line := self._helper.stdout.readline():
            return line.strip()
        raise KybernateError(f"the driver's own checkpoint failed: {self._helper.stderr.read().strip()[-400:]}")

    def order(self, what: str) -> float:
        """`pause` or `resume`; returns the seconds."""
        assert self._helper.stdin is not None
        self._helper.stdin.write(f"{what}\n")
        self._helper.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._helper.communicate()


@contextlib.contextmanager
def plain_workload(size: int, environment: dict[str, str]) -> Iterator[tuple[int, Conversation]]:
    """The workload without anything of ours: its pid, and the way to talk to it."""
    with tempfile.TemporaryDirectory(prefix="kyb-stock-") as directory:
        commands, log = Path(directory) / "commands", Path(directory) / "output.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                workload_command(size, "--commands", str(commands)), env=environment, stdout=sink, stderr=sink
            )
        try:
            output = Output(log, alive=lambda: process.poll() is None)
            output.wait("ready ", timeout_s=180)
            yield process.pid, Conversation(commands=commands, output=output)
            process.terminate()
            if process.wait(120) != 0:
                raise WorkloadLost(f"the workload of the stock measure ended wrongly: {output.tail()}")
        finally:
            process.kill()
            process.wait()


def measure_stock(plan: Plan, measured: Measured, environment: dict[str, str], *, say: Say) -> None:
    """Fills `stock.pause.SIZE` and `stock.resume.SIZE`. All dirty, since the driver knows no clean data."""
    started = time.monotonic()
    for size in plan.sizes:
        name = plan.name(size)
        repeat = plan.stock_repeat if size < 20 * GIB else min(plan.stock_repeat, 2)
        with plain_workload(size, environment) as (pid, conversation):
            stock = Stock(pid, environment)
            try:
                for turn in range(repeat):
                    if turn and time.monotonic() - started > plan.budget_s / 2:
                        measured.notes.append(f"stock {name}: {turn} of {repeat} repetitions, to stay within the time")
                        break
                    conversation.order("dirty", 1.0)
                    measured.samples[f"stock.pause.{name}"].append(stock.order("pause"))
                    measured.samples[f"stock.resume.{name}"].append(stock.order("resume"))
                    conversation.order("verify")
                    say(
                        f"stock {name}: out {measured.samples[f'stock.pause.{name}'][-1]:.3f} s, "
                        f"in {measured.samples[f'stock.resume.{name}'][-1]:.3f} s"
                    )
            finally:
                stock.close()


# -- ours ----------------------------------------------------------------------------------------------------------


def timed(call: Callable[[], api.SwitchView]) -> tuple[float, api.SwitchView]:
    started = time.perf_counter()
    report = call()
    return time.perf_counter() - started, report


def measure_ours(plan: Plan, measured: Measured, agent: OwnAgent, *, say: Say) -> None:
    """Fills `pause.*`, `resume.*` and `vram_after_zero_bytes`."""
    baseline: int | None = used_vram(agent)
    for turn, size in enumerate(plan.sizes):
        conversation = agent.commanded("bench", size)
        if turn == 0:
            # Once, not counted: what an agent makes at its first switch (compiled kernel, streams) isn't made again.
            _cycle(plan, Measured(), agent, conversation, size)
            baseline = None
        for _ in range(plan.repeat):
            _cycle(plan, measured, agent, conversation, size)
        name = plan.name(size)
        say(
            f"ours  {name}: "
            + ", ".join(
                f"{case.removesuffix('.' + name)} {min(values):.3f}"
                for case, values in measured.samples.items()
                if case.endswith(f".{name}") and not case.startswith("stock")
            )
        )
        agent.client.pause("bench", depth=Depth.ZERO)
        listed, used = listed_vram(agent, "bench"), used_vram(agent)
        agent.client.resume("bench")
        agent.exact_end("bench")
        agent.client.remove("bench")
        after = used_vram(agent)
        measured.samples["vram_after_zero_bytes"].append(float(listed))
        measured.notes.append(
            f"{name}: with the workload paused {used - after:+d} bytes of VRAM in use compared with after its end"
            + ("" if baseline is None else f", {used - baseline:+d} with before its start")
        )
        baseline = after


def _cycle(plan: Plan, measured: Measured, agent: OwnAgent, conversation: Conversation, size: int) -> None:
    """Zero dirty, zero clean, warm dirty, warm clean; everything compared after each."""
    name = plan.name(size)
    for depth in (Depth.ZERO, Depth.WARM):
        for state in ("dirty", "clean"):
            if state == "dirty":
                conversation.order("dirty", 1.0)
            wall, report = timed(lambda: agent.client.pause("bench", depth=depth))  # noqa: B023 - called at once
            measured.switch(f"pause.{depth.value}.{state}.{name}", wall, report)
            wall, report = timed(lambda: agent.client.resume("bench"))
            measured.switch(f"resume.{depth.value}.{name}", wall, report)
            conversation.order("verify")


def measure_swap(plan: Plan, measured: Measured, agent: OwnAgent, *, say: Say) -> None:
    """Fills `swap.zero.SIZE`: the one leaves with all of its data dirty while the other comes; both verified."""
    size = plan.swap_bytes
    if size is None:
        return
    case = f"swap.zero.{plan.name(size)}"
    measured.notes.append(
        f"{case}: resume of the one, for which the other (all of its data dirty) has to leave: VRAM is limited to "
        f"{plan.name(plan.vram_limit or 0)}; the time until both are done"
    )
    here, away = "swap-a", "swap-b"
    talks = {away: agent.commanded(away, size, seed=2)}
    agent.client.pause(away)
    talks[here] = agent.commanded(here, size, seed=3)
    for turn in range(plan.repeat + 1):
        talks[here].order("dirty", 1.0)
        wall, _ = timed(lambda: agent.client.resume(away))  # noqa: B023
        talks[away].order("verify")
        if turn:  # The first one fills the pool with the second copy and isn't counted.
            measured.samples[case].append(wall)
            say(f"ours  {case}: {wall:.3f} s")
        here, away = away, here
    agent.exact_end(here)
    agent.client.remove(here)
    agent.wait_free(size)
    agent.client.resume(away)
    agent.exact_end(away)
    agent.client.remove(away)


# -- VRAM as the driver reports it ---------------------------------------------------------------------------------


def used_vram(agent: OwnAgent) -> int:
    """All VRAM in use on the first GPU, in bytes, whoever uses it."""
    if agent.simulation:
        gpu = agent.client.node().gpus[0]
        return gpu.total_bytes - gpu.free_bytes
    said = _smi("--query-gpu=memory.used", "--id=0")
    return int(said.split()[0]) * MIB if said else 0


def listed_vram(agent: OwnAgent, name: str) -> int:
    """VRAM that the driver's list of compute processes gives for the workload's processes; 0: it isn't listed."""
    view = agent.client.workload(name)
    if agent.simulation:
        return view.resident_bytes
    total = 0
    for line in _smi("--query-compute-apps=pid,used_memory").splitlines():
        pid, _, used = line.partition(",")
        if pid.strip().isdigit() and int(pid) in view.pids:
            total += int(used.split()[0]) * MIB if used.split()[0].isdigit() else 0
    return total


def _smi(*query: str) -> str:
    done = subprocess.run(
        ["nvidia-smi", *query, "--format=csv,noheader,nounits"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.stdout.strip() if done.returncode == 0 else ""


# -- together ------------------------------------------------------------------------------------------------------


def cases(plan: Plan, measured: Measured, link: dict[str, float]) -> list[Case]:
    """The fixed names, each with the stock driver as baseline and the link as floor."""
    made: list[Case] = []
    for size in plan.sizes:
        name = plan.name(size)
        for depth in ("zero", "warm"):
            for state in ("dirty", "clean"):
                floor = size / GIB / link["out"] if state == "dirty" else 0.0
                made.append(_case(measured, f"pause.{depth}.{state}.{name}", f"stock.pause.{name}", floor))
            made.append(_case(measured, f"resume.{depth}.{name}", f"stock.resume.{name}", size / GIB / link["in"]))
    if plan.swap_bytes is not None:
        name = plan.name(plan.swap_bytes)
        floor = 2 * plan.swap_bytes / GIB / link["both"]
        made.append(_case(measured, f"swap.zero.{name}", f"stock.swap.{name}", floor))
    made += [
        Case(case=f"stock.{way}.{plan.name(size)}", unit="s", samples=tuple(values))
        for size in plan.sizes
        for way in ("pause", "resume")
        if (values := measured.samples.get(f"stock.{way}.{plan.name(size)}"))
    ]
    if vram := measured.samples.get("vram_after_zero_bytes"):
        made.append(Case(case="vram_after_zero_bytes", unit="B", samples=(max(vram),), floor=0.0))
    made += [Case(case=f"link.{way}", unit="GiB/s", samples=(rate,)) for way, rate in link.items()]
    return [case for case in made if case.samples]


def _case(measured: Measured, case: str, stock: str, floor: float) -> Case:
    if stock.startswith("stock.swap."):
        size = stock.removeprefix("stock.swap.")
        out, back = measured.samples.get(f"stock.pause.{size}"), measured.samples.get(f"stock.resume.{size}")
        values = [a + b for a, b in zip(out or [], back or [], strict=True)]
        name = "driver checkpoint, then restore"
    else:
        values = measured.samples.get(stock, [])
        name = "driver checkpoint" if ".pause." in stock else "driver restore"
    compared = Case(case=stock, unit="s", samples=tuple(values)) if values else None
    inside = measured.agent_seconds.get(case)
    notes: dict[str, object] = {}
    if inside:
        notes["agent_value"] = round(sorted(inside)[len(inside) // 2], 6)
    if case in measured.steps:
        notes["steps"] = measured.steps[case]
    return Case(
        case=case,
        unit="s",
        samples=tuple(measured.samples.get(case, ())),
        baseline=Baseline(name=name, value=compared.value, n=len(compared.samples)) if compared else None,
        floor=floor,
        notes=notes,
    )
