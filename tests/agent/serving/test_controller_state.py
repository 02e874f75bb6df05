"""What the controller knows of workloads: actions under way, persons' orders, what came of actions."""

from __future__ import annotations

import pytest
from tests.agent.building import GPU, NOW, A, B

from kybernate.agent.serving.controller_state import Acting, ActionsUnderWay, Outcomes, Requested
from kybernate.policy.node_state import Phase

pytestmark = pytest.mark.unit


def test_a_victim_that_was_released_keeps_the_action_that_was_begun_on_it_since() -> None:
    actions = ActionsUnderWay()
    first = {A: Acting(Phase.COMING, NOW), B: Acting(Phase.LEAVING, NOW)}
    actions.begin(first)
    actions.release(B)
    second = {B: Acting(Phase.COMING, NOW + 1)}
    actions.begin(second)
    actions.end(first)
    assert actions.of(A) is None
    assert actions.of(B) is second[B]
    assert actions.any_of((A, B))
    assert not actions.any_of((A,))


def test_flags_are_set_and_taken_back() -> None:
    actions, outcomes = ActionsUnderWay(), Outcomes()
    for flag in (True, True, False, False):
        actions.set_starting(A, flag)
        actions.set_replacing(A, flag)
        outcomes.set_been_up(A, flag)
        outcomes.set_refused(A, flag)
        assert actions.is_starting(A) is actions.is_replacing(A) is flag
        assert outcomes.has_been_up(A) is outcomes.is_refused(A) is flag
        assert not actions.is_starting(B)


def test_a_shortage_is_known_until_the_workload_ends() -> None:
    outcomes = Outcomes()
    assert outcomes.shortage(A) == {}
    outcomes.set_shortage(A, {GPU: 5})
    assert outcomes.shortage(A) == {GPU: 5}
    outcomes.set_shortage(A, None)
    outcomes.set_shortage(A, None)
    assert outcomes.shortage(A) == {}


def test_what_a_person_ordered() -> None:
    requested = Requested()
    requested.add(A)
    assert A in requested
    assert B not in requested
    requested.discard(A)
    requested.discard(A)
    assert A not in requested
    requested.set_stopped(A, 3)
    assert requested.stopped() == [(A, 3)]
    requested.set_stopped(A, None)
    assert requested.stopped() == []
