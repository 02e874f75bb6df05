"""A policy's plan as the API tells it: actions in their order, how long each is expected to take, and who would answer."""

from __future__ import annotations

from typing import Any

import pytest
from tests.policy.node_states import member, name, node_state

from kybernate.agent.serving.plans import plan_view
from kybernate.model.api_serving import ActionView, PlanView
from kybernate.policy.node_state import Action, Bring, Cost, DropPrefetched, Leave, NodeState, Phase, Plan, Prefetch

pytestmark = pytest.mark.unit

A, B, C = name("a"), name("b"), name("c")
SEEN = node_state(
    member("a", 30, phase=Phase.AWAY, waiting=2, cost=Cost(leave=0.5, come=3.0, come_prefetched=1.0)),
    member("b", 30, cost=Cost(leave=0.7, come=1.0, come_prefetched=1.0)),
    member("c", 10, cost=Cost(leave=4.0, come=1.0, come_prefetched=1.0)),
    member("d", 10, phase=Phase.ABSENT, cost=Cost(leave=1.0, come=15.0, come_prefetched=1.0)),
    member("e", 10, phase=Phase.AWAY, prefetched=True, cost=Cost(leave=1.0, come=9.0, come_prefetched=0.25)),
)


def view(*actions: Action, seen: NodeState = SEEN, **given: Any) -> PlanView:
    return plan_view(seen, Plan(actions, reasons={C: "answers"}), policy="balanced", **given)


def told(action: Action, **given: Any) -> ActionView:
    (found,) = view(action, **given).actions
    return found


@pytest.mark.parametrize(
    ("action", "seconds"),
    [
        pytest.param(Bring(A, (), "x"), 3.0, id="its own coming"),
        pytest.param(Bring(A, (B,), "x"), 3.0, id="from RAM it comes while a victim leaves"),
        pytest.param(Bring(A, (B, C), "x"), 4.0, id="but the slowest victim holds it up"),
        pytest.param(Bring(name("d"), (B, C), "x"), 19.0, id="a cold start begins when the last victim has left"),
        pytest.param(Bring(name("e"), (), "x"), 0.25, id="what is staged comes from RAM"),
        pytest.param(Leave(B, "x"), 0.7, id="a leaving"),
        pytest.param(Prefetch(A, "x"), None, id="of staging nobody knows"),
        pytest.param(DropPrefetched(A, "x"), None, id="nor of giving that up"),
        pytest.param(Bring(name("gone"), (), "x"), None, id="of one that the picture doesn't show"),
    ],
)
def test_how_long_each_is_expected_to_take(action: Action, seconds: float | None) -> None:
    assert told(action).expected_s == seconds


def test_actions_are_told_by_their_kind_in_their_order() -> None:
    actions = (DropPrefetched(A, "u"), Bring(A, (B, C), "b", preempt=True), Leave(C, "l"), Prefetch(B, "s"))
    found = view(*actions)
    assert [each.action for each in found.actions] == ["unstage", "bring", "leave", "stage"]
    assert [each.why for each in found.actions] == ["u", "b", "l", "s"]
    assert (found.actions[1].victims, found.actions[1].preempt) == (["b", "c"], True)
    assert (found.policy, found.reasons) == ("balanced", {"c": "answers"})


def test_a_reason_that_counts_a_request_nobody_made_is_left_out() -> None:
    imagined = node_state(member("a", 30, waiting=1), member("b", 30))
    assert told(Bring(A, (), "1 waiting"), seen=imagined, asked=[A]).why == ""
    assert told(Bring(A, (), "1 waiting"), seen=imagined).why == "1 waiting"
    assert told(Bring(A, (), "2 waiting"), asked=[A]).why == "2 waiting", "somebody waits for it really"


def test_who_was_asked_for_would_answer_where_it_is_there_and_not_refused() -> None:
    found = view(asked=[A, B, C], refused={C: "no room"})
    assert (found.asked, found.answered, found.refused) == (["a", "b", "c"], ["b"], {"c": "no room"})


def test_an_empty_plan_is_an_answer_too() -> None:
    assert view().actions == []
