"""Who has the VRAM, by who is asked: models come by their requests, and give way to each other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest
from tests.agent.serving.conftest import ServingAgent, server
from tests.conftest import SLOWER, Eventually

from kybernate.model.errors import Busy
from kybernate.model.types import MIB, TierName

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

Begin = Callable[..., ServingAgent]


def test_a_request_starts_a_model_and_the_next_one_swaps(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a"), "b": server("b")})
    peer = agent.peer()
    eventually(lambda: peer.configured)
    assert peer.configured is not None
    assert [endpoint.model for endpoint in peer.configured.endpoints] == ["a", "b"]
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    assert peer.opened["a"].waited_for == "start"
    assert agent.state_of("a") == "resident"
    peer.answer("a")
    peer.request("b", waiting=2)
    eventually(lambda: peer.is_open("b"), timeout_s=90, what="b open")
    assert not peer.is_open("a")
    assert agent.state_of("a") == "away in ram"
    peer.answer("b")
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a again")
    assert peer.opened["a"].waited_for == "ram"
    assert peer.opened["a"].victims == ("b",)


def test_requests_in_flight_end_before_their_model_leaves(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a"), "b": server("b")}, serving={"due_after": 1})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.request("a", in_flight=3)
    with pytest.raises(Busy, match="3 requests in flight"):
        agent.client.pause("a", timeout_s=0.3)
    eventually(lambda: peer.is_open("a"), what="a open again after a pause that came to nothing")
    peer.request("b", waiting=1)
    eventually(lambda: not peer.is_open("a"), timeout_s=90, what="a closed for b, which has waited long enough")
    assert agent.client.workload("a").state == "running"
    assert agent.state_of("a") == "leaving"
    assert agent.state_of("b") == "coming"
    peer.request("a", in_flight=1, ended=2)
    assert agent.client.workload("a").state == "running"
    peer.answer("a")
    eventually(lambda: peer.is_open("b"), timeout_s=90, what="b open")
    order = [event.kind for event in agent.client.events("a") if event.kind in ("paused", "pause-refused")]
    assert order == ["paused"]


def test_a_batch_model_is_cut_off_for_an_interactive_one(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"bulk": server("bulk") | {"class": "batch"}, "chat": server("chat")})
    peer = agent.peer()
    peer.request("bulk", waiting=1)
    eventually(lambda: peer.is_open("bulk"), timeout_s=90, what="bulk open")
    peer.request("bulk", in_flight=2)
    peer.request("chat", waiting=1)
    eventually(lambda: peer.is_open("chat"), timeout_s=90, what="chat open")
    assert agent.state_of("bulk") == "away in ram"


def test_what_a_person_paused_stays_so_and_says_it(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a")})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.answer("a")
    agent.client.pause("a")
    assert not peer.is_open("a")
    peer.request("a", waiting=1)
    eventually(lambda: "a" in peer.refusals, what="a refusal")
    assert (peer.refusals["a"].status, "paused by order" in peer.refusals["a"].message) == (503, True)
    assert agent.client.workload("a").paused_by == "user"
    agent.client.resume("a")
    eventually(lambda: peer.is_open("a"), what="a open again")
    assert not peer.refusals


def test_workers_know_where_a_model_lies_and_how_soon_it_answers(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a")})
    peer = agent.peer()

    def status() -> tuple[str, str | None, float | None]:
        said = peer.statuses["a"]
        return said.state, said.tier, said.expected_s

    eventually(lambda: "a" in peer.statuses, what="a status of what was never started")
    state, tier, expected = status()
    assert (state, tier) == ("stopped", None)
    assert expected is not None
    assert expected > 10, "a start costs more than any resume, as long as nobody measured it"
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    eventually(lambda: status() == ("running", "vram", 0.0), what="word that it answers")
    peer.answer("a")
    agent.client.pause("a")
    eventually(lambda: status()[:2] == ("paused", "ram") and "a" in peer.refusals, what="word of the pause")
    from_ram = status()[2]
    agent.client.pause("a", tier=TierName.NVME)
    eventually(lambda: status()[:2] == ("paused", "nvme") and "a" in peer.refusals, what="word of its tier")
    from_disk = status()[2]
    assert 0 < (from_ram or 0) < (from_disk or 0)
    late = agent.peer(1)
    eventually(lambda: "a" in late.refusals, what="the same word to a worker that comes later")
    assert late.statuses["a"] == peer.statuses["a"]
    agent.client.resume("a")
    eventually(lambda: peer.is_open("a") and status() == ("running", "vram", 0.0), what="a open again")
    assert not peer.refusals


NATIVE = """
from http.server import HTTPServer, SimpleHTTPRequestHandler
from kybernate.benchmarks.driver import Driver

driver = Driver()
held = [driver.allocate(1 << 20) for _ in range(60)] + [driver.allocate(4 << 20)]
HTTPServer(("127.0.0.1", 8000), SimpleHTTPRequestHandler).serve_forever()
"""
"""Most of its memory is in pieces too small for extents: the driver keeps them, and they stand in none of our books."""


def test_room_is_made_for_what_the_driver_keeps(begin: Begin, eventually: Eventually) -> None:
    native = {**server("a"), "command": [sys.executable, "-c", NATIVE], "ready": None, "idle": 0.3, "vram": 4 * MIB}
    agent = begin(models={"native": native, "b": server("b")})
    peer = agent.peer()
    peer.request("native", waiting=1)
    eventually(lambda: peer.is_open("native"), timeout_s=90, what="native open")
    peer.answer("native")
    eventually(lambda: agent.state_of("native") == "away in ram", timeout_s=30, what="native idle")
    peer.request("b", waiting=1)
    eventually(lambda: peer.is_open("b"), timeout_s=90, what="b open")
    peer.answer("b")
    peer.request("native", waiting=1)
    eventually(lambda: peer.is_open("native"), timeout_s=90, what="native back in the place of b")
    assert agent.state_of("b") == "away in ram"
    failed = [event for event in agent.client.events("native") if event.kind == "come-failed"]
    assert len(failed) == 1, "once is how it is learned"


def test_one_that_ended_while_an_order_had_it_paused_is_started_again(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a")})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.answer("a")
    agent.client.pause("a")
    peer.request("a", waiting=1)
    eventually(lambda: "a" in peer.refusals, what="a refusal")
    peer.answer("a")
    agent.client.stop("a", grace_s=0)
    eventually(lambda: "a" not in peer.refusals, what="an end of the refusal")
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open again")
    assert peer.opened["a"].waited_for == "start"


def test_an_idle_model_gives_its_vram_back_and_sinks_to_its_lowest_tier(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB, idle=0.5, demote_after=0.5)})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.answer("a")
    eventually(lambda: agent.state_of("a") == "away in nvme", timeout_s=90, what="a on the disk")
    eventually(
        lambda: (peer.statuses["a"].state, peer.statuses["a"].tier) == ("paused", "nvme"), what="the worker is told so"
    )
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a back from the disk")
    assert peer.opened["a"].waited_for == "nvme"


def test_a_model_that_left_by_its_idle_time_stays_away_until_it_is_asked_for(
    begin: Begin, eventually: Eventually
) -> None:
    """However likely that is: there is room, and it was asked for a moment ago."""
    agent = begin(models={"a": server("a", size=16 * MIB, idle=0.5)})
    peer = agent.peer()
    for _ in range(3):
        peer.request("a", waiting=1)
        eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
        peer.answer("a")
    since = eventually(lambda: agent.state_of("a") == "away in ram" and agent.client.workload("a").since, timeout_s=60)
    eventually(lambda: agent.client.serving().time > since + 3.0, what="six times its idle time")
    view = agent.client.workload("a")
    assert (view.state, view.since) == ("paused", since)
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open again")


def test_one_that_shall_stay_in_ram_does(begin: Begin, eventually: Eventually) -> None:
    agent = begin(
        models={"a": server("a", size=16 * MIB, idle=0.3, lowest_tier="ram")}, agent={"store": {"demote": {"idle": 1}}}
    )
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.answer("a")
    since = eventually(lambda: agent.state_of("a") == "away in ram" and agent.client.workload("a").since, timeout_s=60)
    eventually(lambda: agent.client.serving().time > since + 2.0, what="twice the idle time of the store")
    assert agent.state_of("a") == "away in ram"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        pytest.param({"command": ["/nowhere/server"]}, "nowhere", id="no such program"),
        pytest.param(
            {"command": [sys.executable, "-c", "raise SystemExit(3)"]}, "ended before it was ready", id="ends"
        ),
        pytest.param(
            {"command": [sys.executable, "-c", "import time; time.sleep(60)"], "ready_timeout": 0.5},
            "not ready within 0.5 s",
            id="never ready",
        ),
        pytest.param({"vram": 4096 * MIB}, "than this node hands out", id="too large"),
        pytest.param({"user": "nobody-of-that-name"}, "no such user", id="no such user"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused_with_the_reason(
    begin: Begin, eventually: Eventually, model: dict[str, object], words: str
) -> None:
    agent = begin(models={"a": {**server("a"), **model}})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: "a" in peer.refusals, timeout_s=90, what="a refusal")
    refusal = peer.refusals["a"]
    assert refusal.status == 503
    assert words in refusal.message
    peer.request("a", ended=1)

    def said() -> None:
        assert words in next(each.reason for each in agent.client.serving().served if each.name == "a")
        assert words in agent.client.explain("a").text

    said()
    began = agent.client.serving().time
    eventually(lambda: agent.client.serving().time > began + 1.5, what="the end of its pause after a failure")
    said()
    if words == "than this node hands out":
        next_step = agent.client.explain("a").next_step
        assert "its first request" not in next_step, "which would be refused as the last one was"
        assert "kybernate reload" in next_step
    assert not [each for each in agent.client.workloads() if each.state not in ("exited", "lost")]


def test_a_model_that_ends_is_started_again_by_its_next_request(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a")})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.answer("a")
    first = peer.opened["a"].epoch
    os.kill(agent.client.workload("a").pids[0], signal.SIGKILL)
    eventually(lambda: not peer.is_open("a"), what="a closed")
    assert agent.state_of("a") == "absent"
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a again")
    assert peer.opened["a"].epoch > first


def test_an_image_is_taken_at_the_first_start_and_starts_the_next_one(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB, image={"name": "gold", "take": True})})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    assert [view.name for view in agent.client.snapshots().snapshots] == ["gold"]
    peer.answer("a")
    agent.client.stop("a", remove=True)
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="its clone open")
    assert peer.opened["a"].waited_for == "clone"
    assert agent.client.workload("a").image == "gold"


def test_eager_models_are_up_with_the_agent_one_after_the_other(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={name: server(name, start="eager") for name in "ab"})
    peer = agent.peer()
    eventually(lambda: {"a", "b"} <= peer.opened.keys(), timeout_s=90, what="both up once")
    eventually(lambda: agent.state_of("a") != "absent" != agent.state_of("b"))


def test_concurrency_is_shared_among_the_workers(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", limits={"concurrency": 6})})
    eventually(lambda: any(worker.connected for worker in agent.client.serving().workers), timeout_s=90)
    one, two = agent.peer(1), agent.peer(2)
    eventually(lambda: (one.shares.get("a"), two.shares.get("a")) == (2, 2), what="equal parts for three")
    two.request("a", waiting=7)
    eventually(lambda: two.shares["a"] == 6, what="all of it for whoever has requests")
    eventually(lambda: one.shares["a"] == 0, what="nothing for the other")
    two.close()
    eventually(lambda: one.shares["a"] == 3, what="equal parts for two")


def test_an_allocation_waits_for_requests_in_flight(begin: Begin, eventually: Eventually) -> None:
    """Of a model whose size nobody knows yet: room is made when it asks for memory."""
    agent = begin(models={"a": server("a"), "b": server("b", vram=None)})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.request("a", in_flight=1)
    peer.request("b", waiting=1)
    started = lambda: [each for each in agent.client.workloads() if each.name == "b" and each.state == "running"]  # noqa: E731
    eventually(started, timeout_s=90, what="b's process")
    since = agent.client.serving().time
    eventually(lambda: agent.client.serving().time > since + 2.0, what="time in which b asks for memory")
    assert agent.client.workload("a").state == "running"
    assert not peer.is_open("b")
    peer.answer("a")
    eventually(lambda: peer.is_open("b"), timeout_s=90, what="b open")
    assert agent.state_of("a") == "away in ram"
    assert "its next request" in agent.client.explain("a").next_step


def test_what_somebody_runs_gives_way_and_is_said_to_wait(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", idle=1)})
    agent.run_cuda("mine", bytes_=80 * MIB)
    eventually(lambda: agent.steps("mine") > 0, timeout_s=60, what="it computes")
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    assert agent.client.workload("mine").paused_by == "arbiter"
    peer.request("a", in_flight=1)
    eventually(lambda: "Now: " in agent.client.explain("mine").text, what="why it waits")
    plan = agent.client.plan("a")
    assert [action for action in plan.actions if action.workload == "a"] == []
    peer.answer("a")
    steps = agent.steps("mine")
    eventually(lambda: agent.steps("mine") > steps, timeout_s=90, what="it goes on in the gap")
