"""kybernate.yaml: what it may say, and errors that point at the line.

Pydantic at the edge; everything behind it gets plain frozen values. Nothing here looks at the machine: a size
left out is None and the agent chooses when it knows the GPUs and the RAM.
"""

from __future__ import annotations

from kybernate.settings.agent import (
    AgentSettings,
    ApiSettings,
    ArbiterSettings,
    ObjectSettings,
    PoolSettings,
    StoreSettings,
    VramSettings,
)
from kybernate.settings.loading import load, parse
from kybernate.settings.schema import schema
from kybernate.settings.serving import (
    ActivatorSettings,
    JobSettings,
    ModelSettings,
    Restart,
    ServingSettings,
    Start,
)
from kybernate.settings.whole import Settings

__all__ = [
    "ActivatorSettings",
    "AgentSettings",
    "ApiSettings",
    "ArbiterSettings",
    "JobSettings",
    "ModelSettings",
    "ObjectSettings",
    "PoolSettings",
    "Restart",
    "ServingSettings",
    "Settings",
    "Start",
    "StoreSettings",
    "VramSettings",
    "load",
    "parse",
    "schema",
]
