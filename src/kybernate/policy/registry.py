"""Policies by name, as the configuration chooses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from kybernate.model.errors import BadInput
from kybernate.policy.balanced import balanced
from kybernate.policy.baselines import fifo, lru
from kybernate.policy.node_state import NodeState, Plan
from kybernate.policy.settings import PolicySettings

Policy = Callable[[NodeState, PolicySettings], Plan]
"""The same state and settings always get the same plan."""

POLICIES: Mapping[str, Policy] = MappingProxyType({"balanced": balanced, "fifo": fifo, "lru": lru})
DEFAULT = "balanced"


def policy_named(name: str) -> Policy:
    """
    Raises:
        BadInput: there is none of that name.
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise BadInput(f"no policy is called {name!r}", hint=f"choose one of: {', '.join(POLICIES)}") from None
