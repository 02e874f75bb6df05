"""Training in the gaps: paused for requests and never killed, in its hours, started again as its policy says, and accounted for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.agent.serving.conftest import ServingAgent, hours, server, training
from tests.conftest import SLOWER, Eventually

from kybernate.model.api_serving import ServedView
from kybernate.model.types import MIB

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

Begin = Callable[..., ServingAgent]


def test_training_gives_way_to_requests_and_ends_with_its_exact_result(begin: Begin, eventually: Eventually) -> None:
    """Its program compares every step with what it must be."""
    agent = begin(
        models={"chat": server("chat", size=96 * MIB)},
        # Slow enough that it isn't through before it has been interrupted twice, however long this takes.
        jobs={"train": training(size=64 * MIB, steps=300, pace_s=0.03)},
    )
    peer = agent.peer()

    def served(name: str) -> ServedView:
        return next(each for each in agent.client.serving().served if each.name == name)

    eventually(lambda: "step" in agent.said("train"), timeout_s=90, what="training that computes")
    for _ in range(2):
        peer.request("chat", waiting=1)
        eventually(lambda: peer.is_open("chat"), timeout_s=90, what="chat open")
        assert agent.state_of("train") == "away in ram"
        peer.request("chat", in_flight=1)
        eventually(lambda: served("chat").usage.busy_s > 0, what="a request that flies, and is accounted for")
        peer.answer("chat")
        eventually(lambda: agent.state_of("train") == "resident", timeout_s=90, what="training in the gap")
        assert not peer.is_open("chat")
    ended = eventually(
        lambda: (view := agent.client.workload("train")).state == "exited" and view, timeout_s=120, what="its end"
    )
    assert ended.exit_status == 0
    assert "MISMATCH" not in agent.output("train")
    train, chat = served("train").usage, served("chat").usage
    assert 0 < train.busy_s <= train.resident_s
    assert 0 < chat.busy_s < chat.resident_s
    shares = {each.klass: each.share for each in agent.client.serving().classes}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) > 0
    text = agent.metrics()
    assert 'kybernate_workload_gpu_seconds_total{class="batch",workload="train"}' in text
    assert 'kybernate_served_in_flight{model="chat"} 0.0' in text


def test_a_stream_that_is_only_open_keeps_no_training_away(begin: Begin, eventually: Eventually) -> None:
    agent = begin(
        models={"chat": {**server("chat", size=96 * MIB), "limits": {"stream_idle": 7}}},
        jobs={"train": training(size=64 * MIB)},
    )
    peer = agent.peer()
    peer.request("chat", waiting=1)
    eventually(lambda: peer.is_open("chat"), timeout_s=90, what="chat open")
    assert peer.configured is not None
    assert peer.configured.endpoints[0].limits.stream_idle_s == 7
    assert peer.configured.endpoints[0].rewrite_model == "chat"
    peer.request("chat", in_flight=1)
    eventually(lambda: next(each for each in agent.client.serving().served if each.name == "chat").in_flight == 1)
    assert agent.state_of("train") != "resident"
    peer.request("chat", in_flight=1, still=1)
    eventually(lambda: agent.state_of("train") == "resident", timeout_s=90, what="training beside an idle stream")
    assert not peer.is_open("chat")


def test_a_job_runs_in_its_hours_only(begin: Begin, eventually: Eventually) -> None:
    agent = begin(
        jobs={
            "now": training(size=16 * MIB, schedule=hours(inside=True)),
            "later": training(size=16 * MIB, schedule=hours(inside=False)),
        }
    )
    eventually(lambda: agent.state_of("now") == "resident", timeout_s=90, what="the one whose hours these are")
    assert agent.state_of("later") == "absent"
    agent.write(jobs={"now": training(size=16 * MIB, schedule=hours(inside=False))})
    agent.client.reload()
    eventually(lambda: agent.state_of("now") == "away in ram", timeout_s=90, what="paused, its hours being over")
    assert agent.client.workload("now").paused_by == "arbiter"


def test_a_job_is_started_again_as_it_wants_and_no_more(begin: Begin, eventually: Eventually) -> None:
    def job(status: int, restart: str) -> dict[str, object]:
        return {"command": [sys.executable, "-c", f"print('ran'); raise SystemExit({status})"], "restart": restart}

    agent = begin(
        jobs={
            "once": job(1, "never"),
            "well": job(0, "on-failure"),
            "again": job(1, "on-failure"),
            "ever": job(0, "always"),
        }
    )

    def starts(name: str) -> int:
        return sum(event.kind == "started" for event in agent.client.events(name, count=1000))

    eventually(lambda: starts("again") > 1 and starts("ever") > 1, timeout_s=90, what="both started again")
    assert (starts("once"), starts("well")) == (1, 1)
    agent.kill()
    agent.start()
    eventually(lambda: starts("ever") > 2, timeout_s=90, what="started by the next agent, too")
    assert (starts("once"), starts("well")) == (1, 1)


def test_a_job_that_ended_while_no_agent_ran_has_ended(begin: Begin, eventually: Eventually) -> None:
    program = "import time; print('ran', flush=True); time.sleep(3)"
    jobs: dict[str, object] = {"once": {"command": [sys.executable, "-c", program]}}
    agent = begin(jobs=jobs)
    pid = eventually(lambda: "ran" in agent.said("once") and agent.client.workload("once").pids[0], timeout_s=60)
    agent.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=30, what="its end")
    agent.start()
    # Its supervisor may outlive it by a moment, and be found running.
    eventually(lambda: agent.client.workload("once").state == "exited", timeout_s=60, what="its end is known")
    agent.write(jobs={**jobs, "other": training(size=16 * MIB)})
    agent.client.reload()
    eventually(lambda: agent.state_of("other") == "resident", timeout_s=90, what="the policy at work")
    assert agent.state_of("once") == "absent"
    agent.client.start("once")
    eventually(lambda: agent.client.workload("once").state == "running", timeout_s=60, what="started by order")
    eventually(lambda: agent.client.workload("once").state == "exited", timeout_s=60, what="its second end")
    assert sum(event.kind == "started" for event in agent.client.events("once")) == 2


def test_who_has_no_vram_has_no_gpu_time(begin: Begin, eventually: Eventually) -> None:
    agent = begin(jobs={"thinks": {"command": ["sleep", "600"]}, "train": training(size=16 * MIB)})

    def seconds(name: str) -> float:
        return next(each.usage.resident_s for each in agent.client.serving().served if each.name == name)

    eventually(lambda: seconds("train") > 1.5, timeout_s=90, what="some time of the one that computes")
    assert agent.client.workload("thinks").state == "running"
    assert seconds("thinks") == 0.0


def test_the_account_goes_on_in_the_next_agent(begin: Begin, eventually: Eventually) -> None:
    agent = begin(jobs={"train": training(size=16 * MIB)})

    def resident() -> float:
        return next(each.usage.resident_s for each in agent.client.serving().served if each.name == "train")

    before = eventually(lambda: (seconds := resident()) > 6.0 and seconds, timeout_s=90, what="some time on the GPU")
    agent.kill()
    agent.start()
    assert resident() >= before
    eventually(lambda: resident() > before + 1.0, timeout_s=60, what="counting on")
