"""Policies by the names that a configuration uses."""

from __future__ import annotations

import pytest

from kybernate.model.errors import BadInput
from kybernate.policy.node_state import NodeState, Plan
from kybernate.policy.registry import DEFAULT, POLICIES, policy_named
from kybernate.policy.settings import PolicySettings

pytestmark = pytest.mark.unit


def test_the_default_is_one_of_them() -> None:
    assert policy_named(DEFAULT) is POLICIES[DEFAULT]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_on_a_node_with_nothing_every_policy_plans_nothing(name: str) -> None:
    plan = policy_named(name)(NodeState(0.0, {}, {}, {}), PolicySettings())
    assert plan.actions == ()
    assert plan == Plan(next_poll=plan.next_poll)


@pytest.mark.parametrize("name", ["", "Balanced", "balanced ", "random"])
def test_any_other_name_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        policy_named(name)
    assert caught.value.message == f"no policy is called {name!r}"
    assert caught.value.hint == "choose one of: balanced, fifo, lru"


def test_nobody_adds_one_in_passing() -> None:
    with pytest.raises(TypeError):
        POLICIES["mine"] = POLICIES[DEFAULT]  # type: ignore[index]
