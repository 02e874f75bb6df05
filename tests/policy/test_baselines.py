"""fifo and lru: what they share, and where they differ."""

from __future__ import annotations

import pytest

from kybernate.model.errors import BadInput
from kybernate.policy.node_state import Bring, Class, Leave, NodeState, Phase, Plan
from kybernate.policy.registry import policy_named
from kybernate.policy.settings import PolicySettings

from .node_states import NOW, member, name, node_state

pytestmark = pytest.mark.unit


def plan(policy: str, seen: NodeState) -> Plan:
    return policy_named(policy)(seen, PolicySettings())


def brings(found: Plan) -> list[tuple[str, tuple[str, ...]]]:
    return [(action.name, action.victims) for action in found.actions if isinstance(action, Bring)]


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(BadInput, match="no policy is called 'best'"):
        policy_named("best")


@pytest.mark.parametrize("policy", ["fifo", "lru"])
def test_the_oldest_request_goes_first_and_the_rest_wait(policy: str) -> None:
    seen = node_state(
        member("here", 40),
        member("younger", 40, waiting=9, oldest_wait=NOW - 1),
        member("older", 40, waiting=1, oldest_wait=NOW - 2),
    )
    found = plan(policy, seen)
    assert brings(found) == [("older", ("here",))]
    assert set(found.reasons) == {"younger"}


def test_they_differ_in_whom_they_pause() -> None:
    seen = node_state(
        member("first", 30, since=NOW - 50, last_use=NOW - 1),
        member("second", 30, since=NOW - 20, last_use=NOW - 9),
        member("asked", 30, waiting=1),
    )
    assert brings(plan("fifo", seen)) == [("asked", ("first",))]
    assert brings(plan("lru", seen)) == [("asked", ("second",))]


def test_lru_spares_whoever_works() -> None:
    seen = node_state(
        member("works", 30, in_flight=1, last_use=NOW - 9),
        member("idle", 30, last_use=NOW - 1),
        member("asked", 30, waiting=1),
    )
    assert brings(plan("lru", seen)) == [("asked", ("idle",))]


@pytest.mark.parametrize("policy", ["fifo", "lru"])
def test_training_runs_in_what_is_free_and_leaves_for_requests(policy: str) -> None:
    training = member("training", 30, klass=Class.BATCH, wanted=True)
    assert brings(plan(policy, node_state(member("server", 30), training))) == [("training", ())]
    assert brings(plan(policy, node_state(member("server", 40, last_use=NOW - 1), training))) == []
    running = member("training", 30, klass=Class.BATCH, wanted=True, phase=Phase.RESIDENT)
    assert brings(plan(policy, node_state(running, member("asked", 40, waiting=1)))) == [("asked", ("training",))]


@pytest.mark.parametrize("policy", ["fifo", "lru"])
def test_time_takes_away_what_nobody_uses(policy: str) -> None:
    seen = node_state(
        member("long", 10, last_use=NOW - 100, idle_s=60),
        member("short", 10, last_use=NOW - 10, idle_s=60),
        member("done", 10, klass=Class.BATCH),
    )
    found = plan(policy, seen)
    assert {action.name for action in found.actions if isinstance(action, Leave)} == {name("long"), name("done")}
    assert found.next_poll == NOW + 50
