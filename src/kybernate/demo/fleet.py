"""The programs of demo, benchmark and soak: several model servers and a training job, and the kybernate.yaml that serves them.

On the simulated driver they are `server.py` and `training.py`, with a GPU `torch_server.py` and `torch_training.py`: the same
options, the same words. Pure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kybernate.model.quantities import format_size

TRAINING = "training"
PORT = 8000
"""Of every server, each in its own network."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Sizes in bytes, times in seconds."""

    simulated: bool
    models: tuple[str, ...]
    model_bytes: int
    training_bytes: int
    training_steps: int
    training_pace: float = 0.0
    """What a step takes at least, so that a simulated GPU's training lasts long enough to be interrupted."""
    seconds_per_token: float = 0.0

    @property
    def wanted_bytes(self) -> int:
        """All at once."""
        return len(self.models) * self.model_bytes + self.training_bytes

    def server(self, model: str, *, port: int = PORT) -> list[str]:
        program = "server" if self.simulated else "torch_server"
        command = [sys.executable, "-m", f"kybernate.demo.{program}", "--name", model, "--port", str(port)]
        command += ["--bytes", str(self.model_bytes), "--seed", str(self.models.index(model) + 1)]
        if self.simulated and self.seconds_per_token:
            command += ["--seconds-per-token", str(self.seconds_per_token)]
        return command

    def training(self, *, paced: bool = True) -> list[str]:
        program = "training" if self.simulated else "torch_training"
        command = [sys.executable, "-m", f"kybernate.demo.{program}", "--bytes", str(self.training_bytes)]
        command += ["--steps", str(self.training_steps)]
        return [*command, "--pace", str(self.training_pace)] if paced and self.training_pace else command

    def sections(self, *, listen: str, serving: Mapping[str, Any], hold_s: float = 600.0) -> dict[str, Any]:
        """`models`, `jobs`, `activator` and `serving` of a kybernate.yaml."""
        environment = {name: os.environ[name] for name in ("PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
        return {
            "models": {
                model: {
                    "command": self.server(model),
                    "port": PORT,
                    "ready": "/health",
                    "start": "eager",
                    "vram": self.model_bytes,
                    "environment": environment,
                    "limits": {"max_wait": hold_s},
                }
                for model in self.models
            },
            "jobs": {TRAINING: {"command": self.training(), "vram": self.training_bytes, "environment": environment}},
            "activator": {"listen": listen},
            "serving": dict(serving),
        }

    def __str__(self) -> str:
        return (
            f"{len(self.models)} model servers of {format_size(self.model_bytes)} and a training job of "
            f"{format_size(self.training_bytes)}"
        )
