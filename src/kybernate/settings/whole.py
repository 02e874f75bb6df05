"""The whole file."""

# ruff: noqa: RUF012 - pydantic copies defaults; ruff knows that only of direct subclasses

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import PrivateAttr

from kybernate.settings.agent import AgentSettings
from kybernate.settings.serving import ActivatorSettings, JobSettings, ModelSettings, ServingSettings
from kybernate.settings.values import Section, WorkloadKey


@dataclass(frozen=True, slots=True)
class OfFile:
    """What is known of the file beyond its settings, as pydantic's context."""

    warnings: tuple[str, ...]


class Settings(Section):
    agent: AgentSettings = AgentSettings()
    models: dict[WorkloadKey, ModelSettings] = {}
    """Servers behind one address, by name."""
    jobs: dict[WorkloadKey, JobSettings] = {}
    """Programs that compute in the gaps, by name."""
    activator: ActivatorSettings = ActivatorSettings()
    serving: ServingSettings = ServingSettings()
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    def model_post_init(self, context: Any) -> None:
        if isinstance(context, OfFile):
            self._warnings = context.warnings

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the file still calls by an old name: a line each, with the setting's name first, its new one and its line."""
        return self._warnings
