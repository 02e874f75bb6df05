"""A real agent on the simulated driver: pausing, resuming, who makes room for whom, and what a new agent finds.

The workloads compare all of their memory in every step, so each of these tests is one of exactness too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.conftest import AgentProcess
from tests.conftest import SLOWER, Eventually

from kybernate.cli.common import moved
from kybernate.cli.main import main
from kybernate.cli.simulated import gpu_path
from kybernate.client import Client
from kybernate.cuda import simulated
from kybernate.model.api import OperationView, SwitchView
from kybernate.model.errors import BadInput, Conflict, KybernateError, NotFound
from kybernate.model.types import MIB, Depth, WorkloadState

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

ROOT = Path(__file__).parents[3]
SIZE = 80 * MIB
"""More than half of the simulated GPU: two don't fit."""


PAIRS = """
import signal
from kybernate.benchmarks.driver import Driver

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
driver = Driver()
held = driver.allocate(32 << 20)
driver.call("cuMemsetD32_v2", held, 7, 8 << 20)
while True:
    for _ in range(3):
        pointer = driver.allocate(2 << 20)
        driver.call("cuMemsetD32_v2", pointer, 8, 1 << 19)
        driver.free(pointer)
    print("step done", flush=True)
    signal.sigwait({signal.SIGUSR1})
"""
"""Allocates, fills and frees in a loop, beside memory it holds; once more for each SIGUSR1."""


@pytest.fixture(autouse=True)
def _clean(gpu_agent: AgentProcess) -> Iterator[None]:
    yield
    gpu_agent.stop_all()  # before it is looked
    node = gpu_agent.client.node()
    assert node.gpus[0].resident_bytes == 0
    assert node.pool is not None
    assert node.pool.free_bytes == node.pool.size_bytes


def started(agent: AgentProcess, eventually: Eventually, name: str, *, seed: int = 1) -> None:
    agent.run_cuda(name, bytes_=SIZE, seed=seed)
    eventually(lambda: agent.steps(name) > 2, timeout_s=60, what=f"{name} computes")


def goes_on(agent: AgentProcess, eventually: Eventually, name: str) -> None:
    before = agent.steps(name)
    eventually(lambda: agent.steps(name) > before + 2, timeout_s=60, what=f"{name} goes on")


def test_pause_and_resume(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    client = gpu_agent.client
    started(gpu_agent, eventually, "one")
    report = client.pause("one")
    assert (report.depth, report.bytes_total, report.already) == (Depth.ZERO, SIZE, False)
    assert report.steps
    view = client.workload("one")
    assert (view.state, view.depth, view.resident_bytes, view.paused_by) == (
        WorkloadState.PAUSED,
        Depth.ZERO,
        0,
        "user",
    )
    assert client.node().gpus[0].resident_bytes == 0
    again = client.pause("one")
    assert again.already
    assert "already" in (again.note or "")
    assert not client.resume("one").already
    assert client.resume("one").already
    goes_on(gpu_agent, eventually, "one")
    kinds = [event.kind for event in client.events("one")]
    assert kinds == ["started", "paused", "resumed"]


def test_a_process_killed_while_paused_is_not_waited_for(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    """The other process of the tree goes on, and the memory of the dead one goes back."""
    client = gpu_agent.client
    one = f"{sys.executable} -m kybernate.benchmarks.workload --bytes {32 * MIB} --loop 0.25 --pace 0.02"
    gpu_agent.run("pair", "sh", "-c", f"{one} --seed 1 & {one} --seed 2 & wait")
    eventually(lambda: client.workload("pair").resident_bytes == 64 * MIB, timeout_s=60, what="both allocate")
    eventually(lambda: gpu_agent.steps("pair") > 4, timeout_s=60, what="both compute")
    client.pause("pair")
    victim = client.workload("pair").pids[-1]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in client.workload("pair").pids, what="its end")
    client.resume("pair")
    assert client.workload("pair").resident_bytes == 32 * MIB
    goes_on(gpu_agent, eventually, "pair")
    client.pause("pair")
    client.resume("pair")
    goes_on(gpu_agent, eventually, "pair")


def test_a_process_killed_in_a_pause_costs_only_itself(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    client = gpu_agent.client
    one = f"{sys.executable} -m kybernate.benchmarks.workload --bytes {32 * MIB} --loop 0.25 --pace 0.02"
    gpu_agent.run("half", "sh", "-c", f"{one} --seed 1 & {one} --seed 2 & wait")
    eventually(lambda: client.workload("half").resident_bytes == 64 * MIB, timeout_s=60, what="both allocate")
    eventually(lambda: gpu_agent.steps("half") > 4, timeout_s=60, what="both compute")
    victim = client.workload("half").pids[-1]
    os.kill(victim, signal.SIGSTOP)  # it gives no answer until it is killed

    def pause() -> None:
        with contextlib.suppress(KybernateError):
            client.pause("half")

    order = threading.Thread(target=pause)
    order.start()
    eventually(lambda: client.workload("half").state is WorkloadState.PAUSING, what="the pause begins")
    os.kill(victim, signal.SIGKILL)
    order.join(60)
    assert not order.is_alive()
    settled = (WorkloadState.RUNNING, WorkloadState.PAUSED)  # the agent may try again by itself
    eventually(lambda: client.workload("half").state in settled, timeout_s=60, what="it runs, or waits")
    client.resume("half")
    goes_on(gpu_agent, eventually, "half")


def test_freed_memory_is_not_paused(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    """What the library keeps of it for the next allocation is neither copied nor asked for at the resume."""
    client = gpu_agent.client
    gpu_agent.run("pairs", sys.executable, "-c", PAIRS)
    for steps in range(1, 3):
        eventually(lambda steps=steps: gpu_agent.steps("pairs") == steps, timeout_s=60, what="pairs")
        assert client.pause("pairs").bytes_total == 32 * MIB
        assert client.resume("pairs").bytes_total == 32 * MIB
        os.kill(client.workload("pairs").pids[-1], signal.SIGUSR1)
    eventually(lambda: gpu_agent.steps("pairs") == 3, timeout_s=60, what="pairs")


def test_warm_then_deeper(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    client = gpu_agent.client
    started(gpu_agent, eventually, "deep")
    assert client.pause("deep", depth=Depth.WARM).depth is Depth.WARM
    assert client.pause("deep").depth is Depth.ZERO
    assert client.pause("deep", depth=Depth.WARM).already, "zero is deeper than what was asked for"
    assert client.workload("deep").host_copy_bytes == SIZE
    client.resume("deep")
    goes_on(gpu_agent, eventually, "deep")


def test_two_pauses_at_once_are_one(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    started(gpu_agent, eventually, "twice")
    reports: list[SwitchView] = []
    threads = [threading.Thread(target=lambda: reports.append(gpu_agent.client.pause("twice"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 2
    assert len([event for event in gpu_agent.client.events("twice") if event.kind == "paused"]) == 1


def test_pause_during_start_waits_for_it(gpu_agent: AgentProcess) -> None:
    """The pause is sent when the name is known and the process is not yet up."""
    outcome: list[object] = []

    def run() -> None:
        outcome.append(gpu_agent.run_cuda("early", bytes_=SIZE))

    thread = threading.Thread(target=run)
    thread.start()
    while True:
        try:
            report = gpu_agent.client.pause("early", timeout_s=20)
            break
        except NotFound:
            continue
    thread.join()
    assert report.operation == "pause"
    assert gpu_agent.client.workload("early").state is WorkloadState.PAUSED
    gpu_agent.client.resume("early")


def test_an_allocation_pauses_the_other_and_it_comes_back(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    client = gpu_agent.client
    started(gpu_agent, eventually, "first", seed=1)
    started(gpu_agent, eventually, "second", seed=2)
    first = client.workload("first")
    assert (first.state, first.paused_by) == (WorkloadState.PAUSED, "arbiter")
    assert "second" in client.explain("first").text
    report = client.resume("first")
    assert "second" in (report.note or "")
    assert client.workload("second").state is WorkloadState.PAUSED
    goes_on(gpu_agent, eventually, "first")
    client.stop("first")
    eventually(lambda: client.workload("second").state is WorkloadState.RUNNING, timeout_s=30, what="automatic resume")
    goes_on(gpu_agent, eventually, "second")


def test_what_a_person_paused_stays_paused(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    client = gpu_agent.client
    started(gpu_agent, eventually, "first")
    started(gpu_agent, eventually, "second", seed=2)
    assert client.pause("first").already
    assert client.workload("first").paused_by == "user"
    client.stop("second")
    assert client.workload("first").state is WorkloadState.PAUSED
    client.resume("first")
    goes_on(gpu_agent, eventually, "first")


def test_more_than_the_gpu_has_is_out_of_memory(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    """It asks piece by piece, so the other one had to leave for its first pieces; it comes back."""
    client = gpu_agent.client
    started(gpu_agent, eventually, "small")
    gpu_agent.run_cuda("huge", bytes_=200 * MIB)
    assert client.wait("huge", timeout_s=40).exit_status == 1
    assert "OUT_OF_MEMORY" in gpu_agent.output("huge")
    eventually(lambda: client.workload("small").state is WorkloadState.RUNNING, timeout_s=30, what="automatic resume")
    goes_on(gpu_agent, eventually, "small")


def test_a_program_that_is_stopped_gets_room_for_its_last_things(
    gpu_agent: AgentProcess, eventually: Eventually
) -> None:
    """It still runs, for as long as its grace."""
    gpu_agent.run("saves", sys.executable, "-m", "tests.agent.programs.saving", str(SIZE), directory=str(ROOT))
    eventually(lambda: "ready" in gpu_agent.output("saves"), timeout_s=60)
    started(gpu_agent, eventually, "other")
    assert gpu_agent.client.stop("saves", grace_s=600).exit_status == 0
    assert gpu_agent.output("saves").splitlines()[-1] == "saved"
    goes_on(gpu_agent, eventually, "other")


def test_a_paused_workload_does_its_last_things_on_the_gpu(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    """Its handler compares all of its memory once more."""
    started(gpu_agent, eventually, "still")
    gpu_agent.client.pause("still")
    stopped = gpu_agent.client.stop("still", grace_s=60)
    assert (stopped.exit_status, stopped.note) == (0, None)
    assert gpu_agent.output("still").splitlines()[-1].startswith("exact")
    with pytest.raises(Conflict, match="exited"):
        gpu_agent.client.resume("still")


def test_a_paused_workload_without_room_is_ended_and_it_is_said(
    gpu_agent: AgentProcess, eventually: Eventually, capsys: pytest.CaptureFixture[str]
) -> None:
    client = gpu_agent.client
    started(gpu_agent, eventually, "roomless")
    client.pause("roomless")
    started(gpu_agent, eventually, "other", seed=2)
    assert main(["stop", "roomless", "--grace", "3600", "--state-dir", str(gpu_agent.state.root)]) == 0
    out = capsys.readouterr().out
    assert "roomless: stopped, exit status 137" in out
    assert "could not be resumed for its end, so it was killed after 2 s" in out
    assert client.workload("other").state is WorkloadState.RUNNING, "nobody is paused for an end"
    assert [event.kind for event in client.events("roomless")][-2:] == ["killed", "exited"]


def test_a_paused_workload_without_a_handler_ends_where_it_stands(
    gpu_agent: AgentProcess, eventually: Eventually
) -> None:
    program = PAIRS.replace("import signal\n", "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\n", 1)
    gpu_agent.run("plain", sys.executable, "-c", program)
    eventually(lambda: "step done" in gpu_agent.output("plain"), timeout_s=60)
    gpu_agent.client.pause("plain")
    assert gpu_agent.client.stop("plain", grace_s=3600).exit_status == 128 + signal.SIGTERM
    assert "resumed" not in [event.kind for event in gpu_agent.client.events("plain")]


def test_the_doctor_wants_no_gpu_beside_a_simulated_one(
    gpu_agent: AgentProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", "--json", "--state-dir", str(gpu_agent.state.root)])
    found = json.loads(capsys.readouterr().out)["checks"]
    assert "SIMULATED" in next(check["detail"] for check in found if check["name"] == "agent")
    real = [check for check in found if check["name"] in ("driver library", "GPU", "NVRTC")]
    assert len(real) == 3
    assert not [check for check in real if check["needed"] and not check["ok"]]


def test_no_grace_is_no_resume(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    started(gpu_agent, eventually, "hasty")
    gpu_agent.client.pause("hasty")
    assert gpu_agent.client.stop("hasty", grace_s=0).exit_status == 128 + signal.SIGKILL
    assert "resumed" not in [event.kind for event in gpu_agent.client.events("hasty")]


def test_a_paused_workload_that_is_killed_leaves_nothing(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    started(gpu_agent, eventually, "victim")
    gpu_agent.client.pause("victim")
    os.kill(gpu_agent.client.workload("victim").pids[0], signal.SIGKILL)
    assert gpu_agent.client.wait("victim").state is WorkloadState.EXITED


def test_a_new_agent_resumes_what_the_old_one_paused(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    client = gpu_agent.client
    started(gpu_agent, eventually, "sleeps", seed=1)
    client.pause("sleeps")
    started(gpu_agent, eventually, "runs", seed=2)
    gpu_agent.kill()
    gpu_agent.start()
    sleeps, runs = client.workload("sleeps"), client.workload("runs")
    assert (sleeps.state, sleeps.depth, sleeps.paused_by) == (WorkloadState.PAUSED, Depth.ZERO, "user")
    assert (runs.state, runs.resident_bytes) == (WorkloadState.RUNNING, SIZE)
    goes_on(gpu_agent, eventually, "runs")
    assert "runs" in (client.resume("sleeps").note or "")
    goes_on(gpu_agent, eventually, "sleeps")


@pytest.mark.parametrize("depth", list(Depth))
def test_a_new_agent_knows_since_when(gpu_agent: AgentProcess, eventually: Eventually, depth: Depth) -> None:
    client = gpu_agent.client
    started(gpu_agent, eventually, "sleeps", seed=1)
    client.pause("sleeps", depth=depth)
    started(gpu_agent, eventually, "runs", seed=2)
    before = {view.name: view.since for view in client.workloads()}
    gpu_agent.end()
    gpu_agent.start()
    assert {view.name: view.since for view in client.workloads()} == before
    client.resume("sleeps")
    assert client.workload("sleeps").since > before["sleeps"]


def test_a_process_that_was_not_started_by_us(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    gpu = simulated.describe(gpu_path(gpu_agent.state))
    environment = simulated.environment([gpu], os.environ)
    command = [sys.executable, "-m", "kybernate.benchmarks.workload", "--bytes", str(8 * MIB), "--loop", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"ready")
            report = gpu_agent.client.pause_external(process.pid)
            assert report.backend == "driver"
            view = gpu_agent.client.workload(f"pid-{process.pid}")
            assert (view.external, view.state) == (True, WorkloadState.PAUSED)
            with pytest.raises(Conflict, match="not started by this agent"):
                gpu_agent.client.stop(view.name)
            gpu_agent.client.resume_external(process.pid)
            assert not any(w.external for w in gpu_agent.client.workloads()), "it runs and is none of ours"
            assert gpu_agent.client.pause_external(process.pid).backend == "driver", "and can be paused again"
            gpu_agent.client.resume_external(process.pid)
            process.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
            assert process.wait(60) == 0
            assert rest.strip().splitlines()[-1].startswith(b"exact")
        finally:
            process.kill()
    eventually(lambda: not any(w.external for w in gpu_agent.client.workloads()), what="it is forgotten")


def test_external_refusals(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    client = gpu_agent.client
    with pytest.raises(NotFound, match="no process"):
        client.pause_external(4_000_000)
    with pytest.raises(Conflict, match="agent itself"):
        client.pause_external(gpu_agent.pid)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with pytest.raises(BadInput, match=f"process {process.pid} has no CUDA context"):
                client.pause_external(process.pid)
            command = [sys.executable, "-m", "kybernate.cli", "pause", "--pid", str(process.pid)]
            command += ["--state-dir", str(gpu_agent.state.root)]
            refused = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        finally:
            process.kill()
    assert client.workloads() == []
    started(gpu_agent, eventually, "ours")
    with pytest.raises(Conflict, match="belongs to workload ours"):
        client.pause_external(client.workload("ours").pids[-1])


def test_driver_backend(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    module = ["-m", "kybernate.benchmarks.workload", "--bytes", str(8 * MIB), "--loop", "0.5", "--pace", "0.02"]
    gpu_agent.run("stock", sys.executable, *module, backend="driver")
    eventually(lambda: gpu_agent.steps("stock") > 2, timeout_s=30)
    assert gpu_agent.client.pause("stock").backend == "driver"
    gpu_agent.client.resume("stock")
    goes_on(gpu_agent, eventually, "stock")


def test_how_far_a_switch_has_come(slow_agent: AgentProcess, eventually: Eventually) -> None:
    client = slow_agent.client
    slow_agent.run(
        "slow", sys.executable, "-m", "kybernate.benchmarks.workload", "--bytes", str(SIZE), "--commands", "/none"
    )
    eventually(lambda: "ready" in slow_agent.output("slow"), timeout_s=60, what="it has its memory")
    for order, kind in ((client.pause, "pause"), (client.resume, "resume")):
        seen: list[OperationView] = []
        thread = threading.Thread(target=lambda order=order: order("slow"))
        thread.start()
        while thread.is_alive():
            with Client(slow_agent.state.socket) as watcher:  # the other one is waiting
                operation = watcher.workload("slow").operation
            if operation is not None and operation.bytes_total:
                seen.append(operation)
        thread.join()
        assert {o.kind for o in seen} == {kind}
        assert {o.bytes_total for o in seen} == {SIZE}
        done = [o.bytes_done or 0 for o in seen]
        assert done == sorted(done)
        if kind == "resume":
            middle = next(o for o in seen if 0 < (o.bytes_done or 0) < SIZE)
            assert middle.bytes_per_s
            assert middle.seconds_left is not None
            assert 0 < middle.seconds_left < 30
            assert " MiB of 80.0 MiB, " in moved(middle)
            assert moved(middle).endswith(" s left")


CONTEXT = """
import signal
from kybernate.benchmarks.driver import Driver

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
driver = Driver()
print("has a context", flush=True)
signal.sigwait({signal.SIGUSR1})
held = driver.allocate(16 << 20)
driver.call("cuMemsetD32_v2", held, 7, 4 << 20)
print("has memory", flush=True)
signal.sigwait({signal.SIGUSR1})
"""
"""A context, and an allocation only when it is told to."""
NO_GPU = """
import signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("has a context", flush=True)
signal.sigwait({signal.SIGUSR1})
print("has memory", flush=True)
signal.sigwait({signal.SIGUSR1})
"""


@pytest.mark.parametrize(
    ("program", "depth", "found"),
    [
        pytest.param(CONTEXT, Depth.WARM, Depth.WARM, id="a context, warm"),
        pytest.param(CONTEXT, Depth.ZERO, Depth.ZERO, id="a context, zero"),
        pytest.param(NO_GPU, Depth.WARM, Depth.ZERO, id="no CUDA yet, so it stands still at either depth"),
        pytest.param(NO_GPU, Depth.ZERO, Depth.ZERO, id="no CUDA yet, zero"),
    ],
)
def test_one_that_was_paused_before_its_first_allocation_is_so_for_a_new_agent(
    gpu_agent: AgentProcess, eventually: Eventually, program: str, depth: Depth, found: Depth
) -> None:
    client = gpu_agent.client
    gpu_agent.run("early", sys.executable, "-c", program)
    eventually(lambda: "has a context" in gpu_agent.output("early"), timeout_s=60)
    client.pause("early", depth=depth)
    before = client.workload("early")
    gpu_agent.kill()
    gpu_agent.start()
    view = client.workload("early")
    assert (view.state, view.depth, view.paused_by) == (WorkloadState.PAUSED, found, "user")
    assert view.reason == before.reason
    os.kill(view.pids[0], signal.SIGUSR1)
    client.resume("early")
    assert client.workload("early").state is WorkloadState.RUNNING
    eventually(lambda: "has memory" in gpu_agent.output("early"), timeout_s=30)
