"""Stages of bench/tiers.py: a process full of random data goes to the disk or into a bucket and comes back, compared bit by bit.

Every turn gives all of it new content before, so all of it is copied out of VRAM, hashed and written. What counts is what the
caller waits. Beside the times: how much RAM the demotion took besides the workload's own, of the whole machine (for the disk;
the bucket's own files may lie in RAM) and of the agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiers_plan import (
    Plan,
    Recorder,
    Watch,
    file_system,
    fitting,
    program_environment,
    scratch,
    size_name,
    total_ram,
)
from tiers_store import bucket_settings, s3_server, where_bucket

from kybernate.benchmarks.agent import OwnAgent, workload_command
from kybernate.benchmarks.conversation import Conversation
from kybernate.benchmarks.results import Case
from kybernate.model import api
from kybernate.model.errors import NoRoom
from kybernate.model.types import CHUNK_BYTES, GIB, MIB, TierName

NAME = "tensors"
PROGRAM = Path(__file__).resolve().parent / "programs" / "tensors.py"
POOL_MARGIN = 1 / 32
RESIDUAL_BYTES = 5 * GIB
"""Besides the content: the processes' images, on their way through the scratch directory and in the store."""


def disk(plan: Plan, recorder: Recorder) -> None:
    """To the tier `nvme` and back."""
    with scratch(plan.directory, "process") as place:
        size = min(
            fitting(plan.process_bytes, plan.directory, spare=0 if plan.simulated else 2 * RESIDUAL_BYTES),
            _in_ram(plan, copies=1),
        )
        recorder.note(f"process to nvme: {plan.directory} ({file_system(plan.directory)})")
        _turns(plan, recorder, TierName.NVME, size, {"directory": str(place / "store")})


def bucket(plan: Plan, recorder: Recorder) -> None:
    """To the tier `object`, a server on this host, and back."""
    most = _in_ram(plan, copies=1 if plan.bucket is not None else 2)
    with scratch(plan.directory, "process") as place, s3_server(plan, most + RESIDUAL_BYTES) as server:
        size = min(most, fitting(plan.process_bytes, server.root, spare=0 if plan.simulated else RESIDUAL_BYTES))
        settings = {"directory": str(place / "store"), "object": bucket_settings(server, place)}
        recorder.note(f"process to object: {where_bucket(plan)}")
        _turns(plan, recorder, TierName.OBJECT, size, settings)


def _in_ram(plan: Plan, *, copies: int) -> int:
    """How large the process may be: the pool, and a bucket in RAM, must fit."""
    room = int((total_ram() - 2 * RESIDUAL_BYTES) / (copies + POOL_MARGIN))
    return min(plan.process_bytes, max(0, room // GIB * GIB)) if not plan.simulated else plan.process_bytes


def _turns(plan: Plan, recorder: Recorder, tier: TierName, size: int, store: dict[str, Any]) -> None:
    if size < plan.process_bytes:
        recorder.note(f"{tier}: only {size_name(size)} of {size_name(plan.process_bytes)} fit there")
    if size < CHUNK_BYTES:
        raise NoRoom(f"no room for the {tier} tier")
    least = 64 * MIB if plan.simulated else 512 * MIB  # the program's own room to work in
    pool = size + max(least, int(size * POOL_MARGIN) // CHUNK_BYTES * CHUNK_BYTES)
    with OwnAgent(pool_bytes=pool, simulated_bytes=plan.simulated_bytes, settings={"store": store}) as agent:
        recorder.say(f"agent ready, pool {size_name(pool)}")
        talk = _start(plan, agent, size)
        found: dict[str, list[float]] = {}

        def note(case: str, unit: str, value: float, **notes: Any) -> None:
            found.setdefault(case, []).append(value)
            recorder.case(Case(f"process.{tier}.{case}.{size_name(size)}", unit, tuple(found[case]), notes=notes))

        for _ in range(plan.process_rounds):
            talk.order("dirty", 1.0)
            with Watch(agent) as watch:
                out_s, report = _timed(lambda: agent.client.pause(NAME, tier=tier))
            note("pause", "s", out_s, steps=_steps(report), bytes_stored=report.bytes_stored)
            note("pause_rate", "GiB/s", size / GIB / out_s)
            if tier is TierName.NVME:
                note("demotion_ram", "B", watch.system)
            note("demotion_ram_agent", "B", watch.own)
            with Watch(agent) as watch:
                back_s, report = _timed(lambda: agent.client.resume(NAME))
            note("resume", "s", back_s, steps=_steps(report))
            note("resume_rate", "GiB/s", size / GIB / back_s)
            note("promotion_ram_agent", "B", watch.own)
            talk.output = agent.output(NAME)  # it came back with a new one
            talk.order("verify")
            agent.client.collect(tier=tier)
        agent.exact_end(NAME)


def _start(plan: Plan, agent: OwnAgent, size: int) -> Conversation:
    """Its orders lie outside of the run directory, which is another one after each return."""
    commands = agent.root / "orders"
    argv = (
        workload_command(size, "--commands", str(commands))
        if plan.simulated
        else [plan.python, str(PROGRAM), str(size), str(commands)]
    )
    output = agent.run(NAME, argv, environment=program_environment(plan))
    output.wait("ready ", timeout_s=180)
    return Conversation(commands=commands, output=output)


def _timed(call: Callable[[], api.SwitchView]) -> tuple[float, api.SwitchView]:
    began = time.monotonic()
    report = call()
    return time.monotonic() - began, report


def _steps(report: api.SwitchView) -> dict[str, float]:
    return {step.step: round(step.seconds, 3) for step in report.steps}
