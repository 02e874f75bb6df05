"""models, plan, start and reload: what they say of each answer, as sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.answering import AnsweringAgent, answering

from kybernate.cli.commands import serving
from kybernate.cli.common import Common
from kybernate.model.api_serving import (
    ActionView,
    ClassView,
    CostView,
    PlanView,
    ReloadView,
    ServedView,
    ServingView,
    StagingView,
    UsageView,
    WorkerView,
)
from kybernate.model.types import GIB, Class, Phase, ServedKind, WorkloadState

USAGE = UsageView(resident_s=90.0, busy_s=30.0, byte_s=1.0)
SERVED = ServedView(
    name="a",
    kind=ServedKind.MODEL,
    klass=Class.INTERACTIVE,
    priority=0,
    state=WorkloadState.PAUSED,
    phase=Phase.AWAY,
    tier="ram",
    open=False,
    waiting=2,
    oldest_wait_s=1.25,
    in_flight=1,
    begun=3,
    ended=0,
    service_s=None,
    bytes=3 * GIB,
    cost=CostView(leave_s=0.5, come_s=1.5, come_staged_s=1.0),
    staged=False,
    wanted=False,
    pinned=False,
    reason="b answers",
    last_use=0.0,
    usage=USAGE,
)


@pytest.fixture
def agent() -> Iterator[AnsweringAgent]:
    with answering() as made:
        yield made


def common(agent: AnsweringAgent, *, json: bool = False) -> Common:
    return Common(json=json, state_dir=agent.state)


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_models_are_a_table_with_who_had_the_gpu(agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]) -> None:
    view = ServingView(
        time=0.0,
        listen="127.0.0.1:8080",
        policy="balanced",
        served=[SERVED, SERVED.model_copy(update={"name": "b", "bytes": 0, "oldest_wait_s": None, "tier": None})],
        classes=[ClassView(klass=Class.BATCH, usage=USAGE, share=0.256)],
        workers=[WorkerView(worker=0, pid=1, connected=True), WorkerView(worker=1, pid=2, connected=False)],
        staging=StagingView(budget_bytes=0, used_bytes=0, hits=0, misses=0),
        notes=["activator worker 1 doesn't listen"],
    )
    agent.answer("/v1/serving", view)
    serving.models(common=common(agent))
    lines = shown(capsys)
    assert lines[0] == "on 127.0.0.1:8080, 1 of 2 workers connected, policy balanced"
    assert lines[1].split() == list(serving.COLUMNS)
    assert lines[2].startswith("a     model  interactive  paused  ram   2 1.25 s  1")
    assert lines[2].endswith("3.0 GiB  0.50 s  1.50 s  1 min 30 s  b answers")
    assert " ?  " in lines[3]
    assert lines[4:] == [
        "class batch: 26% of the VRAM handed out, 1 min 30 s of GPU",
        "activator worker 1 doesn't listen",
    ]


def plan(*actions: ActionView, **given: Any) -> PlanView:
    defaults: dict[str, Any] = {"policy": "balanced", "reasons": {}}
    return PlanView(actions=list(actions), **(defaults | given))


@pytest.mark.parametrize(
    ("view", "sentences"),
    [
        pytest.param(plan(), ["nothing would be done"], id="nothing"),
        pytest.param(
            plan(ActionView(action="bring", workload="a", victims=["b", "c"], expected_s=1.5, why="2 waiting")),
            ["a would come, and b, c would be paused for it, within 1.50 s: 2 waiting"],
            id="one comes for another",
        ),
        pytest.param(
            plan(ActionView(action="bring", workload="a", victims=["b"], preempt=True), asked=["a"]),
            ["a request for a now would bring it, and b would be paused for it, cut off from their requests"],
            id="were it asked for",
        ),
        pytest.param(
            plan(ActionView(action="leave", workload="a", why="its time is over")),
            ["a would be paused: its time is over"],
            id="one leaves",
        ),
        pytest.param(
            plan(asked=["a"], answered=["a"]), ["a request for a now would be answered at once"], id="it is there"
        ),
        pytest.param(
            plan(asked=["a"], refused={"a": "it failed"}),
            ["a request for a now would be refused: it failed"],
            id="refused",
        ),
    ],
)
def test_a_plan_is_sentences(
    agent: AnsweringAgent, capsys: pytest.CaptureFixture[str], view: PlanView, sentences: list[str]
) -> None:
    agent.answer("/v1/serving/plan", view)
    serving.plan("a", common=common(agent))
    assert shown(capsys) == sentences
    assert agent.asked[0][2] == {"models": ["a"]}


def test_reasons_of_those_who_may_not_come_follow_the_actions(
    agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.answer("/v1/serving/plan", plan(reasons={"b": "a comes first"}, asked=["b"]))
    serving.plan("b", common=common(agent))
    (line,) = shown(capsys)
    assert line.endswith("a comes first")
    assert "b" in line


@pytest.mark.parametrize(
    ("view", "lines"),
    [
        pytest.param(ReloadView(), ["nothing has changed"], id="nothing"),
        pytest.param(
            ReloadView(added=["a", "b"], removed=["c"], changed=["d"], settings=["serving.policy"], restarting=["d"]),
            [
                "added: a, b",
                "removed: c",
                "changed: d, serving.policy",
                "started anew once nobody needs them: d",
            ],
            id="all kinds of changes",
        ),
        pytest.param(
            ReloadView(notes=["agent.pool takes a restart"], advice=["models.a.port: odd"]),
            ["agent.pool takes a restart", "look at models.a.port: odd"],
            id="what a reload can't do, and what may not be meant",
        ),
    ],
)
def test_what_a_reload_changed(
    agent: AnsweringAgent, capsys: pytest.CaptureFixture[str], view: ReloadView, lines: list[str]
) -> None:
    agent.answer("/v1/serving/reload", view)
    serving.reload(common=common(agent))
    assert shown(capsys) == lines


def test_a_start_says_when_it_comes(agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]) -> None:
    agent.answer("/v1/serving/served/a/start", SERVED)
    serving.start("a", common=common(agent))
    assert shown(capsys) == ["a: comes as soon as it gets room; `kybernate models` shows it"]
    serving.start("a", common=common(agent, json=True))
    assert json.loads("\n".join(shown(capsys)))["reason"] == "b answers"
