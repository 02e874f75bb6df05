"""Background tasks that fail: started again, told and counted. Logs that are kept within their bounds."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from tests.agent.conftest import AgentProcess
from tests.conftest import Eventually
from tests.guardian import guarded

from kybernate.agent.records.database import Database
from kybernate.agent.records.events import Events
from kybernate.agent.state_watch import rotate_own
from kybernate.agent.workloads.tasks import Tasks
from kybernate.client import Client
from kybernate.doctor.doctor import Check, of_agent
from kybernate.model.api import NodeView, StateView, TaskView


@asynccontextmanager
async def tasks_in(directory: Path) -> AsyncIterator[tuple[Tasks, Events]]:
    database = Database(directory / "agent.db")
    database.open()
    events = Events(database=database, clock=time.time, keep=1000)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = Tasks(group, events=events, clock=time.time)
            yield tasks, events
            tasks.cancel()
    finally:
        database.close()


async def test_a_task_that_dies_is_started_again_and_told(tmp_path: Path) -> None:
    async with tasks_in(tmp_path) as (tasks, events):
        begun = 0
        runs = asyncio.Event()

        async def work() -> None:
            nonlocal begun
            begun += 1
            if begun < 3:
                raise OSError(28, "No space left on device")
            runs.set()
            await asyncio.sleep(3600)

        tasks.keep(work, name="tiers")
        await asyncio.wait_for(runs.wait(), 60)
        [view] = tasks.views()
        assert (view.task, view.up, view.failures) == ("tiers", True, 2)
        assert "No space left" in view.problem
        told = [event for event in await events.last(10) if event.kind == "task-failed"]
        assert len(told) == 1, "the same failure again is no news"
        assert "it starts again in" in told[0].text


async def test_one_that_runs_once_is_told_and_not_repeated(tmp_path: Path) -> None:
    async with tasks_in(tmp_path) as (tasks, events):
        begun = 0

        async def work() -> None:
            nonlocal begun
            begun += 1
            raise ValueError("a bug")

        await asyncio.wait([tasks.start(work(), name="reload")])
        await asyncio.wait([tasks.keep(asyncio.Event().wait, name="idle")], timeout=0.01)
        assert begun == 1
        [view] = tasks.views()
        assert (view.task, view.up, view.failures, view.problem) == ("reload", True, 1, "ValueError: a bug")
        assert [event.text for event in await events.last(10)] == ["reload: ValueError: a bug"]


async def test_a_task_that_returns_is_done(tmp_path: Path) -> None:
    async with tasks_in(tmp_path) as (tasks, _):
        begun: list[int] = []

        async def work() -> None:
            begun.append(1)

        await asyncio.wait([tasks.keep(work, name="pool progress")])
        assert begun == [1]
        assert tasks.views() == []


def node(**fields: object) -> NodeView:
    plain = NodeView(
        version="1",
        pid=1,
        started=0.0,
        state_directory="/s",
        simulated=True,
        driver_version=None,
        gpus=[],
        pool=None,
        notes=[],
        workloads={},
    )
    return plain.model_copy(update=fields)


def said(view: NodeView, name: str) -> Check:
    return next(check for check in of_agent(view, now=1000.0) if check.name == name)


def test_doctor_says_which_task_is_down() -> None:
    assert said(node(), "background tasks").ok
    down = TaskView(task="tiers", up=False, failures=4, problem="OSError: x", failed=990.0)
    check = said(node(tasks=[down]), "background tasks")
    assert (check.ok, check.needed) == (False, True)
    assert "tiers failed 4 times, last 10 s ago: OSError: x" in check.detail
    again = down.model_copy(update={"up": True})
    assert said(node(tasks=[again]), "background tasks").ok is False
    assert said(node(tasks=[again]), "background tasks").needed is False
    long_ago = again.model_copy(update={"failed": 1.0})
    assert said(node(tasks=[long_ago]), "background tasks").ok


def test_doctor_says_what_else_an_agent_lacks() -> None:
    full = StateView(total_bytes=100, free_bytes=0, problem="the agent's directory /s is full")
    assert said(node(state=full), "agent's directory").ok is False
    check = said(node(workers_missing=[1]), "activator")
    assert "activator.log" in check.remedy


def test_a_live_agent_whose_task_fails_says_so_and_recovers(eventually: Eventually) -> None:
    """Its directory is moved away for a while, of all things that can happen to it."""
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root):
        agent = AgentProcess(root, settings="", simulated_gpu=False)
        agent.start()
        try:
            elsewhere = root / "t"
            agent.state.root.rename(elsewhere)
            with Client(elsewhere / "agent.sock") as client:
                found = eventually(lambda: client.node().tasks, what="the failure is seen")
                assert found[0].task == "state directory"
                assert [event.kind for event in client.events(count=100)].count("task-failed") == 1
            with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(elsewhere / "agent.sock"))) as http:
                text = http.get("http://agent/metrics").text
            assert 'kybernate_task_failures_total{task="state directory"}' in text
            elsewhere.rename(agent.state.root)
            eventually(lambda: agent.client.node().tasks[0].up, timeout_s=90, what="it runs again")
        finally:
            agent.end()
            agent.client.close()


# -- logs ------------------------------------------------------------------------------------------------------------------


def test_our_own_log_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for round_ in range(5):
            while not rotate_own(path, 1000, descriptors=(descriptor,)):
                os.write(descriptor, f"{round_} {'x' * 97}\n".encode())
        os.write(descriptor, b"last\n")
        assert path.read_text() == "last\n"
        assert (tmp_path / "agent.log.1").read_text().startswith("4 ")
        assert sorted(found.name for found in tmp_path.iterdir()) == ["agent.log", "agent.log.1"]
        other = tmp_path / "other"
        other.write_bytes(bytes(5000))
        assert not rotate_own(other, 1000, descriptors=(descriptor,)), "none of ours"
        assert not rotate_own(tmp_path / "missing", 1000, descriptors=(descriptor,))
    finally:
        os.close(descriptor)


def test_agent_log_is_bounded(eventually: Eventually) -> None:
    """Of a detached agent; the newest lines are in agent.log, what was before in agent.log.1."""
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root):
        agent = AgentProcess(root, settings="agent:\n  log: {size: 64KiB}\n", simulated_gpu=False)
        command = [sys.executable, "-m", "kybernate.cli", "up", "--detach", "-f", str(agent.file)]
        subprocess.run([*command, "--state-dir", str(agent.state.root)], check=True, timeout=120)
        pid = agent.client.node().pid
        try:
            old = agent.state.log.with_name("agent.log.1")

            def tell() -> bool:
                agent.client.reload()
                return old.exists() and agent.state.log.stat().st_size > 1000

            eventually(tell, timeout_s=120, what="agent.log.1 is there")
            assert "reloaded" in old.read_text()
            assert "reloaded" in agent.state.log.read_text()
            agent.client.shutdown()
            eventually(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), what="it has ended")
            assert "workloads run on" in agent.state.log.read_text()
        finally:
            agent.client.close()


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.root
def test_output_stays_bounded_while_no_agent_lives(eventually: Eventually) -> None:
    """It prints 20 times its bound, then the agent is killed, and it prints 20 times more; `logs` reads on."""
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    bound = 256 * 1024
    program = f"""
import os, time
def print_much(times):
    for step in range(times):
        os.write(1, b"".join(b"%d %d\\n" % (step, line) for line in range(25_000)))
        while os.fstat(1).st_blocks * 512 > {bound + 64 * 1024}:
            time.sleep(0.005)
print_much(20)
print("station", flush=True)
while not os.path.exists("{root}/go"):
    time.sleep(0.01)
print_much(20)
print("done", flush=True)
time.sleep(3600)
"""
    with guarded(root):
        agent = AgentProcess(root, settings=f"agent:\n  log: {{output: {bound}}}\n", simulated_gpu=False)
        agent.start()
        try:
            agent.run("printer", sys.executable, "-c", program)
            eventually(lambda: agent.output("printer").endswith("station\n"), timeout_s=60)
            agent.kill()
            (root / "go").touch()
            path = agent.state.run_directory("printer") / "output.log"  # type: ignore[arg-type]
            eventually(lambda: path.read_bytes()[-5:] == b"done\n", timeout_s=60, what="it prints on, within its bound")
            agent.start()
            text = agent.output("printer")
            assert text.endswith("19 24999\ndone\n")
            assert "\0" not in text
            last = b"".join(agent.client.logs("printer", lines=2)).decode()
            assert last == "19 24999\ndone\n"
            agent.stop_all()
        finally:
            agent.end()
            agent.client.close()


def test_doctor_shows_it_on_the_command_line(plain_agent: AgentProcess) -> None:
    command = [sys.executable, "-m", "kybernate.cli", "doctor", "--json", "--state-dir", str(plain_agent.state.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["background tasks"]["detail"] == "all run"
    assert str(plain_agent.state.root) in checks["agent's directory"]["detail"]
