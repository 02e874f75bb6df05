"""A person's stop holds, whatever would start the workload again by itself; `down --stop` leaves no workload's process behind."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.agent.serving.conftest import ServingAgent, hours, server, training
from tests.conftest import SLOWER, Eventually

from kybernate.client import Client
from kybernate.model.api import SnapshotRequest
from kybernate.model.errors import AgentAway, Busy, KybernateError, NotFound
from kybernate.model.types import MIB, EndedBy, TierName, WorkloadState
from kybernate.process.remains import remains

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

Begin = Callable[..., ServingAgent]

FAILS = {"command": [sys.executable, "-c", "print('ran'); raise SystemExit(1)"], "restart": "on-failure"}
SLEEPS = {"command": [sys.executable, "-c", "import time; time.sleep(600)"]}


def starts(agent: ServingAgent, name: str) -> int:
    try:
        return sum(event.kind == "started" for event in agent.client.events(name, count=1000))
    except NotFound:
        return 0  # it has never been begun


def decided(agent: ServingAgent, eventually: Eventually, seconds: float = 2.5) -> None:
    """The controller has looked at everything again, and what was left alone for a while might have been tried again."""
    began = agent.client.serving().time
    eventually(lambda: agent.client.serving().time > began + seconds, what="more decisions")


def holds(agent: ServingAgent, name: str, eventually: Eventually) -> None:
    before = starts(agent, name)
    decided(agent, eventually)
    assert starts(agent, name) == before
    assert agent.state_of(name) == "absent"


def kybernate(agent: ServingAgent, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kybernate.cli", *words, "--state-dir", str(agent.state.root)],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def running(agent: ServingAgent, name: str, eventually: Eventually) -> None:
    eventually(lambda: agent.state_of(name) == "resident", timeout_s=90, what=f"{name} runs")


@pytest.mark.parametrize("order", ["resume", "start"])
def test_a_model_stays_stopped_after_a_person_had_asked_for_it(
    begin: Begin, eventually: Eventually, order: str
) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB)})
    peer = agent.peer()
    if order == "start":
        agent.client.start("a")
        eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    else:
        peer.request("a", waiting=1)
        eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
        peer.answer("a")
        agent.client.pause("a")
        agent.client.resume("a")
    agent.client.stop("a")
    assert agent.client.workload("a").ended_by is EndedBy.ORDER
    holds(agent, "a", eventually)
    assert "next request starts it" in next(each.reason for each in agent.client.serving().served if each.name == "a")
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a again, for a request")


def test_a_job_stays_stopped_until_a_person_starts_it(begin: Begin, eventually: Eventually) -> None:
    agent = begin(jobs={"j": {**SLEEPS, "schedule": hours(inside=False)}})
    agent.client.start("j")
    running(agent, "j", eventually)
    agent.client.stop("j")
    holds(agent, "j", eventually)
    agent.client.start("j")
    running(agent, "j", eventually)


def test_a_job_that_waits_to_be_started_again_stays_stopped(begin: Begin, eventually: Eventually) -> None:
    agent = begin(jobs={"j": FAILS})
    eventually(lambda: starts(agent, "j") and agent.client.workload("j").state is WorkloadState.EXITED, timeout_s=60)
    agent.client.stop("j")
    eventually(lambda: agent.client.workload("j").state is WorkloadState.EXITED)
    holds(agent, "j", eventually)
    agent.kill()
    agent.start()
    holds(agent, "j", eventually)
    before = starts(agent, "j")
    agent.client.start("j")
    eventually(lambda: starts(agent, "j") > before, timeout_s=60, what="its start by order")


def test_a_job_that_has_not_begun_can_be_stopped(begin: Begin, eventually: Eventually) -> None:
    agent = begin(jobs={"j": {**SLEEPS, "schedule": hours(inside=False)}})
    assert "not started" in (agent.client.stop("j").note or "")
    agent.write(jobs={"j": SLEEPS})
    agent.client.reload()
    holds(agent, "j", eventually)


def test_a_changed_job_runs_after_its_stop(begin: Begin, eventually: Eventually) -> None:
    agent = begin(jobs={"j": SLEEPS})
    running(agent, "j", eventually)
    agent.client.stop("j")
    holds(agent, "j", eventually)
    agent.write(jobs={"j": {"command": [*SLEEPS["command"], "another"]}})
    agent.client.reload()
    running(agent, "j", eventually)


def test_requests_from_before_the_stop_are_refused_and_start_nothing(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": {**server("a", size=16 * MIB), "ready": "/never"}})
    peer = agent.peer()
    peer.request("a", waiting=2)
    eventually(lambda: agent.state_of("a") == "coming" and starts(agent, "a"), timeout_s=60, what="a on its way")
    refused: list[str] = []
    peer.on_refusal = lambda refusal: refused.append(refusal.message)
    agent.client.stop("a")
    eventually(lambda: refused, what="a refusal")
    assert "stopped by order" in refused[-1]
    holds(agent, "a", eventually)  # though nobody has told yet that none waits any more
    peer.request("a", ended=2)
    holds(agent, "a", eventually)
    before = starts(agent, "a")
    peer.request("a", waiting=1)
    eventually(lambda: starts(agent, "a") > before, timeout_s=60, what="its start for a later request")


def test_an_eager_model_stopped_on_its_way_stays_stopped(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": {**server("a", size=16 * MIB, start="eager"), "ready": "/never"}})
    eventually(lambda: starts(agent, "a"), timeout_s=60, what="its start")
    agent.client.stop("a")
    holds(agent, "a", eventually)


def test_down_stop_leaves_no_process(begin: Begin, eventually: Eventually) -> None:
    agent = begin(
        models={"a": server("a", size=16 * MIB), "b": server("b", size=16 * MIB, start="eager")},
        jobs={"t": training(size=16 * MIB), "f": FAILS},
    )
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: {"a", "b"} <= peer.opened.keys(), timeout_s=90, what="both models up")
    agent.client.pause("a")
    agent.client.resume("a")
    running(agent, "t", eventually)
    agent.run("own", "sleep", "600")
    eventually(lambda: starts(agent, "f"), what="the failing job")
    peer.request("a", waiting=3)  # which nobody answers: they ask for it all the time
    pids = [pid for workload in agent.client.workloads() for pid in workload.pids]
    done = kybernate(agent, "down", "--stop")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no process of a workload is left" in done.stdout
    assert remains(agent.state.workloads) == {}
    assert not [
        pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_text()
    ]
    with pytest.raises(AgentAway):
        agent.client.node()


def test_what_lies_below_ram_stays_there_at_down_stop(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB)})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.answer("a")
    agent.run_cuda("own", bytes_=8 * MIB)
    eventually(lambda: agent.steps("own") > 1, timeout_s=60)
    agent.client.pause("own", tier="nvme")  # type: ignore[arg-type]
    assert kybernate(agent, "down", "--stop").returncode == 0
    agent.end()
    agent.start()
    own = agent.client.workload("own")
    assert (own.state, own.tier) == (WorkloadState.PAUSED, "nvme")
    agent.client.resume("own")
    eventually(lambda: agent.steps("own") > 3, timeout_s=60, what="it goes on")


def test_a_model_that_lies_on_the_disk_stays_there_when_it_is_stopped(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB)})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.answer("a")
    agent.client.pause("a", tier=TierName.NVME)
    agent.client.stop("a")
    decided(agent, eventually)
    assert agent.state_of("a") == "away in nvme"
    before = starts(agent, "a")
    agent.client.resume("a")
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a again")
    assert starts(agent, "a") == before


def test_a_job_that_lies_on_the_disk_stays_there_until_a_person_resumes_it(
    begin: Begin, eventually: Eventually
) -> None:
    agent = begin(jobs={"t": training(size=16 * MIB)})
    running(agent, "t", eventually)
    agent.client.pause("t", tier=TierName.NVME)
    assert agent.client.stop("t").stays is TierName.NVME
    decided(agent, eventually)
    agent.kill()
    agent.start()
    decided(agent, eventually)
    assert agent.state_of("t") == "away in nvme"
    before = starts(agent, "t")
    agent.client.resume("t")
    running(agent, "t", eventually)
    assert starts(agent, "t") == before


def test_a_stopping_agent_starts_nothing(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB)}, jobs={"j": {**SLEEPS, "schedule": hours(inside=False)}})
    peer = agent.peer()
    let_go = agent.file.parent / "let-go"
    program = (
        "import os, signal, sys, time\n"
        "def end(*_):\n    while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n    os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('here', flush=True)\ntime.sleep(600)"
    )
    agent.run("slow", sys.executable, "-c", program, str(let_go))
    eventually(lambda: "here" in agent.output("slow"))
    with ThreadPoolExecutor(1) as pool, Client(agent.state.socket) as other:
        down = pool.submit(other.shutdown, stop=True, grace_s=600)
        eventually(lambda: agent.client.workload("slow").state is WorkloadState.STOPPING, what="its stop")
        peer.request("a", waiting=1)
        for order in (lambda: agent.client.start("j"), lambda: agent.run("more", "sleep", "600")):
            with pytest.raises(Busy, match="going down"):
                order()
        let_go.touch()
        down.result()
    eventually(lambda: not agent.state.socket.exists(), what="the agent's end")
    assert remains(agent.state.workloads) == {}
    agent.end()
    agent.start()
    assert starts(agent, "a") == starts(agent, "j") == 0


@pytest.fixture
def frozen_disk(small_disk: Callable[..., Path]) -> Iterator[Path]:
    """Whoever writes there waits in the kernel, and no signal ends that, until the disk is let go of."""
    disk = small_disk(16 * MIB)
    # Its stdin ends with this process, however that ends: nobody is left waiting in the kernel.
    command = ["sh", "-c", 'read -r _; fsfreeze -u "$0" 2>/dev/null', str(disk)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        subprocess.run(["fsfreeze", "-f", str(disk)], check=True)
        yield disk


def test_down_stop_names_what_it_could_not_end(begin: Begin, eventually: Eventually, frozen_disk: Path) -> None:
    agent = begin()
    agent.run("own", "sleep", "600")
    stuck = agent.run("stuck", sys.executable, "-c", f"open('{frozen_disk}/file', 'w')")
    eventually(
        lambda: any(
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"
            for pid in agent.client.workload("stuck").pids
        ),
        what="it waits in the kernel",
    )
    done = kybernate(agent, "down", "--stop")
    assert done.returncode == 3
    assert "stuck (process " in done.stderr
    assert "own (" not in done.stderr
    assert stuck.name in remains(agent.state.workloads)
    assert agent.client.workload("own").state is WorkloadState.EXITED
    subprocess.run(["fsfreeze", "-u", str(frozen_disk)], check=True)
    assert kybernate(agent, "down", "--stop").returncode == 0
    assert remains(agent.state.workloads) == {}


def test_down_stop_ends_clones_that_have_not_come_yet(begin: Begin, eventually: Eventually) -> None:
    agent = begin()
    agent.run_cuda("own", bytes_=8 * MIB)
    eventually(lambda: agent.steps("own") > 1, timeout_s=60)
    agent.client.snapshot("own", SnapshotRequest.of(image="gold"))
    with ThreadPoolExecutor(1) as pool, Client(agent.state.socket) as other:
        clones = pool.submit(other.clone, "gold", "c", count=12)
        eventually(lambda: any(each.name == "c-12" for each in agent.client.workloads()), what="the clones")
        assert agent.client.workload("c-12").state is WorkloadState.STARTING
        done = kybernate(agent, "down", "--stop")
        assert (done.returncode, done.stderr) == (0, "")
        assert remains(agent.state.workloads) == {}
        with contextlib.suppress(KybernateError):
            clones.result()
    agent.end()
    agent.start()
    assert all(each.state is WorkloadState.EXITED for each in agent.client.workloads())


def test_a_clone_that_has_not_come_yet_can_be_stopped(begin: Begin, eventually: Eventually) -> None:
    agent = begin()
    agent.run_cuda("own", bytes_=8 * MIB)
    eventually(lambda: agent.steps("own") > 1, timeout_s=60)
    agent.client.snapshot("own", SnapshotRequest.of(image="gold"))
    with ThreadPoolExecutor(1) as pool, Client(agent.state.socket) as other:
        clones = pool.submit(other.clone, "gold", "c", count=8)
        eventually(lambda: any(each.name == "c-8" for each in agent.client.workloads()), what="the clones")
        assert agent.client.workload("c-8").state is WorkloadState.STARTING
        agent.client.stop("c-8")
        agent.client.stop("c-7", remove=True)
        agent.run("c-7", "sleep", "600")  # another one, of which the clone is to leave its hands
        made = {each.workload: each.note for each in clones.result().clones}
        assert "stopped before it had come" in str(made["c-7"])
        assert "stopped before it had come" in str(made["c-8"])
        assert agent.client.workload("c-7").state is WorkloadState.RUNNING
    assert starts(agent, "c-8") == 0
    assert agent.client.workload("c-8").state is WorkloadState.EXITED


def test_requests_that_the_policy_lets_end_get_the_grace_of_a_stop_too(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=80 * MIB), "b": server("b", size=80 * MIB)})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.request("a", in_flight=1)
    peer.request("b", waiting=1)
    eventually(lambda: not peer.is_open("a"), timeout_s=60, what="a is closed for b")
    with ThreadPoolExecutor(1) as pool, Client(agent.state.socket) as other:
        stop = pool.submit(other.stop, "a", grace_s=600)
        decided(agent, eventually, 1.0)
        assert not stop.done()
        assert agent.client.workload("a").state is WorkloadState.RUNNING
        peer.answer("a")
        stop.result()


def test_a_model_whose_stop_failed_is_started_by_a_later_request(
    begin: Begin, eventually: Eventually, frozen_disk: Path
) -> None:
    """Once it has ended after all."""
    command = [sys.executable, "-c", f"open('{frozen_disk}/file', 'w')"]
    agent = begin(models={"a": {"command": command, "port": 8000, "ready": "/health"}})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: starts(agent, "a"), timeout_s=60, what="its start")
    eventually(
        lambda: any(
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"
            for pid in agent.client.workload("a").pids
        ),
        what="it waits in the kernel",
    )
    with pytest.raises(Busy):
        agent.client.stop("a", grace_s=0)
    peer.request("a", ended=1)
    subprocess.run(["fsfreeze", "-u", str(frozen_disk)], check=True)
    eventually(lambda: agent.client.workload("a").state is WorkloadState.EXITED, what="its end")
    before = starts(agent, "a")
    peer.request("a", waiting=1)
    eventually(lambda: starts(agent, "a") > before, timeout_s=60, what="its start for a later request")


def test_a_stop_waits_for_no_pause_that_waits_for_requests(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB)})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.request("a", in_flight=1)
    with ThreadPoolExecutor(1) as pool, Client(agent.state.socket) as other:
        pause = pool.submit(other.pause, "a", timeout_s=3600)
        eventually(lambda: not peer.is_open("a"), what="a is closed for the pause")
        agent.client.stop("a", grace_s=0)
        assert agent.client.workload("a").state is WorkloadState.EXITED
        with pytest.raises(Busy, match="is to be stopped"):
            pause.result()


@pytest.mark.parametrize("end", ["stop", "down"])
def test_an_end_waits_for_no_resume_that_waits_for_room(begin: Begin, eventually: Eventually, end: str) -> None:
    agent = begin(models={"a": server("a", size=80 * MIB)}, agent={"arbiter": {"drain": 0.2}})
    peer = agent.peer()
    agent.run_cuda("one", bytes_=80 * MIB)
    eventually(lambda: agent.steps("one") > 1, timeout_s=60)
    agent.client.pause("one")
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.request("a", in_flight=1)  # it is answered for ever, so a gives nobody its room
    with ThreadPoolExecutor(1) as pool, Client(agent.state.socket) as other:
        resume = pool.submit(other.resume, "one", timeout_s=3600)
        eventually(lambda: agent.client.workload("one").state is WorkloadState.RESUMING, what="it waits for room")
        if end == "stop":
            agent.client.stop("one", grace_s=0)
            assert agent.client.workload("one").state is WorkloadState.EXITED
        else:
            agent.end()
        with pytest.raises(KybernateError):
            resume.result()
    if end == "down":
        agent.start()
        assert agent.client.workload("one").state is WorkloadState.PAUSED
