"""Workloads that take their VRAM piece by piece, beside others that want the same room."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.agent.serving.conftest import NEEDED, ServingAgent, server, training
from tests.conftest import SLOWER, Eventually
from tests.soak.growing import Load, once, result_alone

from kybernate.model.types import MIB, WorkloadState

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

Begin = Callable[..., ServingAgent]

QUICK = Load(
    requests=12,
    apart_s=0.2,
    pause_s=0.1,
    serving={"min_run": 0.1, "hysteresis": 0.1, "batch_idle": 0.3, "drain": 20},
    arbiter={"min_run": 0.5, "settle": 0.2, "wait_limit": 600},
)


@pytest.mark.parametrize("said", [True, False], ids=["its-vram-is-said", "its-vram-is-not-said"])
def test_a_job_that_grows_beside_two_models_that_are_asked_in_turn_ends_exactly(said: bool) -> None:
    load = QUICK if said else Load(**{**{each: getattr(QUICK, each) for each in QUICK.__slots__}, "said": None})
    assert once(load, expected=result_alone()) is None


GROWS = """
import sys, threading, time
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from kybernate.benchmarks.driver import Driver

driver, (first, more, gate, asked) = Driver(), sys.argv[1:]
serve = HTTPServer(("127.0.0.1", 8000), SimpleHTTPRequestHandler).serve_forever
if asked == "early":
    threading.Thread(target=serve, daemon=True).start()
held = [driver.allocate(8 << 20) for _ in range(int(first))]
print("grows", flush=True)
while not Path(gate).exists():
    time.sleep(0.01)
held += [driver.allocate(8 << 20) for _ in range(int(more))]
print("whole", flush=True)
while asked == "early":
    time.sleep(1)
serve()
"""
"""Takes so many times 8 MiB, and so many more once a file is there. It may be asked when it has all of it, or early."""


def grows(first: int, more: int, gate: Path, *, asked: str = "whole", **more_settings: object) -> dict[str, object]:
    command = [sys.executable, "-c", GROWS, str(first), str(more), str(gate), asked]
    environment = {key: os.environ[key] for key in NEEDED if key in os.environ}
    return {"command": command, "environment": environment, **more_settings}


def test_two_models_that_grow_at_once_and_do_not_fit_both_answer(
    begin: Begin, eventually: Eventually, tmp_path: Path
) -> None:
    """Each holds what the other needs, and says less than it takes: both are on their way, and each waits for the other."""
    gate = tmp_path / "gate"
    half = {"port": 8000, "ready": "/", "vram": 56 * MIB}
    agent = begin(
        models={name: grows(7, 3, gate) | half for name in ("a", "b")},
        agent={"arbiter": {"wait_limit": 600}},
    )
    peer = agent.peer()
    peer.request("a", waiting=1)
    peer.request("b", waiting=1)
    eventually(lambda: all("grows" in agent.said(name) for name in ("a", "b")), timeout_s=90, what="both hold a half")
    gate.touch()
    answered: set[str] = set()

    def both() -> bool:
        for name in ("a", "b"):
            if peer.is_open(name) and name not in answered:
                answered.add(name)
                peer.answer(name)
        return len(answered) == 2

    eventually(both, timeout_s=90, what="answers of both")
    assert not [event.text for event in agent.client.events(count=500) if event.kind == "out-of-memory"]
    gave_way = [each for each in agent.client.events(count=500) if "wait for each other" in each.text]
    assert gave_way, "one of them was paused in its call"


def test_two_models_that_need_more_for_their_requests_and_wait_for_each_other_answer_both(
    begin: Begin, eventually: Eventually, tmp_path: Path
) -> None:
    """Neither can be drained: its request ends only when it has what the other holds."""
    gate = tmp_path / "gate"
    half = {"port": 8000, "ready": "/", "vram": 56 * MIB}
    agent = begin(
        models={name: grows(7, 3, gate, asked="early", **half) for name in ("a", "b")},
        agent={"arbiter": {"wait_limit": 600}},
    )
    peer = agent.peer()
    for name in ("a", "b"):
        peer.request(name, waiting=1)
    for name in ("a", "b"):
        eventually(
            lambda name=name: peer.is_open(name) and "grows" in agent.said(name), timeout_s=90, what=f"{name} open"
        )
        peer.request(name, in_flight=1)
    gate.touch()

    def answered() -> bool:
        for name in ("a", "b"):
            if "whole" in agent.said(name):
                peer.answer(name)
        return all("whole" in agent.said(name) for name in ("a", "b"))

    eventually(answered, timeout_s=90, what="both have what they need")
    for name in ("a", "b"):
        assert not [each for each in agent.client.events(name, count=500) if each.kind == "out-of-memory"]


def test_what_is_said_for_a_job_is_kept_for_it_while_it_runs(
    begin: Begin, eventually: Eventually, tmp_path: Path
) -> None:
    """A second job gets what is left of the VRAM, not what the first one has yet to ask for."""
    late, early = tmp_path / "late", tmp_path / "early"
    agent = begin(
        jobs={
            "patient": grows(1, 8, late, vram=72 * MIB, restart="never"),
            "greedy": grows(1, 8, early, restart="never"),
        },
        serving={"min_run": 600, "batch_quantum": 600},
    )
    for name in ("patient", "greedy"):
        eventually(lambda name=name: "grows" in agent.said(name), timeout_s=90, what=f"{name} runs")
    early.touch()
    # 128 MiB less the reserve of 2 %, and less 72 MiB: six times 8 MiB are left.
    eventually(
        lambda: agent.client.workload("greedy").resident_bytes == 48 * MIB, timeout_s=60, what="greedy has the rest"
    )
    late.touch()
    eventually(lambda: "whole" in agent.said("patient"), timeout_s=60, what="the first job has all of it")
    assert agent.client.workload("greedy").resident_bytes == 48 * MIB
    assert agent.client.workload("greedy").state == "running", "it waits in its call"


def test_a_job_whose_room_busy_models_hold_is_paused_in_its_call_and_goes_on_afterwards(
    begin: Begin, eventually: Eventually, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    agent = begin(
        models={"chat": server("chat", size=64 * MIB)},
        jobs={"job": grows(3, 6, gate, restart="never")},
        agent={"arbiter": {"min_run": 0.2, "wait_limit": 2}},
    )
    peer = agent.peer()
    peer.request("chat", waiting=1)
    eventually(lambda: peer.is_open("chat") and "grows" in agent.said("job"), timeout_s=90, what="both there")
    peer.request("chat", in_flight=1)
    gate.touch()
    eventually(lambda: agent.client.workload("job").state == "paused", timeout_s=60, what="the job gave way")
    since = agent.client.serving().time
    eventually(lambda: agent.client.serving().time > since + 4, timeout_s=30, what="twice the limit of its wait")
    assert "whole" not in agent.said("job")
    assert agent.client.workload("job").state == "paused", "it doesn't come only to wait"
    peer.answer("chat")
    eventually(lambda: "whole" in agent.said("job"), timeout_s=60, what="the job has all of it")
    assert not [event for event in agent.client.events("job", count=500) if event.kind == "out-of-memory"]


def test_an_allocation_that_waited_in_vain_says_for_whom(begin: Begin, eventually: Eventually, tmp_path: Path) -> None:
    agent = begin(
        jobs={"holder": training(size=64 * MIB), "late": grows(3, 6, tmp_path, restart="never")},
        serving={"min_run": 600, "batch_quantum": 600},
        agent={"arbiter": {"wait_limit": 0.5}},
    )

    def said() -> str:
        events = [event.text for event in agent.client.events("late", count=500) if event.kind == "out-of-memory"]
        return events[0] if events else ""

    text = eventually(said, timeout_s=90, what="it gives up")
    assert "others did not give way within " in text, text
    assert "8.0 MiB asked for on GPU 0: 5.4 MiB are free" in text, text
    assert "holder (running, holds 64.0 MiB)" in text, text


def test_room_that_was_made_is_had_though_making_it_took_longer_than_the_limit(
    begin: Begin, eventually: Eventually
) -> None:
    agent = begin(agent={"arbiter": {"wait_limit": 0.01, "min_run": 0}})
    for name in ("one", "two"):
        agent.run_cuda(name, bytes_=120 * MIB)
        eventually(lambda name=name: agent.said(name).count("step ") > 1, timeout_s=60, what=f"{name} computes")  # type: ignore[misc]
    assert agent.client.workload("one").state is WorkloadState.PAUSED
