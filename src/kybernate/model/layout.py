"""Where things lie in the agent's state directory. Paths only; creates nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kybernate.model.types import WorkloadName

STATE_VARIABLE = "KYBERNATE_STATE_DIR"


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The agent's directory. It lies on a tmpfs by default: nothing in it means anything after a reboot."""

    root: Path

    @classmethod
    def default(cls, environment: Mapping[str, str] = os.environ) -> StateDirectory:
        """$KYBERNATE_STATE_DIR, else /run/kybernate for root, else $XDG_RUNTIME_DIR/kybernate."""
        if named := environment.get(STATE_VARIABLE):
            return cls(Path(named).absolute())
        if os.geteuid() == 0:
            return cls(Path("/run/kybernate"))
        runtime = environment.get("XDG_RUNTIME_DIR") or f"/tmp/kybernate-{os.geteuid()}"
        return cls(Path(runtime) / "kybernate")

    @property
    def socket(self) -> Path:
        """The REST API."""
        return self.root / "agent.sock"

    @property
    def token(self) -> Path:
        """What requests over TCP carry, where the settings name no other file."""
        return self.root / "api.token"

    @property
    def lock(self) -> Path:
        """Held by the one agent of this directory."""
        return self.root / "agent.lock"

    @property
    def log(self) -> Path:
        """What a detached agent prints."""
        return self.root / "agent.log"

    @property
    def database(self) -> Path:
        return self.root / "agent.db"

    @property
    def hash_key(self) -> Path:
        """Key of the GPU hash, so that a restarted agent agrees with its predecessor."""
        return self.root / "hash.key"

    @property
    def pool_mount(self) -> Path:
        return self.root / "pool"

    @property
    def workloads(self) -> Path:
        return self.root / "workloads"

    def run_directory(self, name: WorkloadName) -> Path:
        return self.workloads / name
