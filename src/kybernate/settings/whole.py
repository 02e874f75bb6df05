"""The whole file."""

# ruff: noqa: RUF012 - pydantic copies defaults; ruff knows that only of direct subclasses

from __future__ import annotations

from kybernate.settings.agent import AgentSettings
from kybernate.settings.serving import ActivatorSettings, JobSettings, ModelSettings, ServingSettings
from kybernate.settings.values import Section, WorkloadKey


class Settings(Section):
    agent: AgentSettings = AgentSettings()
    models: dict[WorkloadKey, ModelSettings] = {}
    """Servers behind one address, by name."""
    jobs: dict[WorkloadKey, JobSettings] = {}
    """Programs that compute in the gaps, by name."""
    activator: ActivatorSettings = ActivatorSettings()
    serving: ServingSettings = ServingSettings()
