"""A real agent on a simulated GPU with models and jobs of its own."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest
import yaml
from tests.agent.conftest import POOL_BYTES, AgentProcess
from tests.agent.serving.peer import Peer
from tests.guardian import guarded

from kybernate.cli.simulated import gpu_path
from kybernate.cuda import simulated
from kybernate.model.errors import KybernateError, NotFound
from kybernate.model.types import MIB

NEEDED = ("LD_PRELOAD", "ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS")
"""What a sanitizer's build of our library needs."""


def server(name: str, *, size: int = 80 * MIB, port: int = 8000, **more: object) -> dict[str, object]:
    """A model of kybernate.yaml that holds that much VRAM."""
    command = [
        sys.executable,
        "-m",
        "kybernate.demo.server",
        "--port",
        port,
        "--bytes",
        size,
        "--name",
        name,
        "--seed",
        len(name) + ord(name[0]),
    ]
    environment = {key: os.environ[key] for key in NEEDED if key in os.environ}
    return {"command": command, "port": port, "ready": "/health", "environment": environment, "vram": size, **more}


def training(*, size: int = 40 * MIB, steps: int = 100000, pace_s: float = 0.0, **more: object) -> dict[str, object]:
    """A job. `pace_s`: how long a step takes at least."""
    command = [sys.executable, "-m", "kybernate.demo.training", "--bytes", size, "--steps", steps, "--pace", pace_s]
    environment = {key: os.environ[key] for key in NEEDED if key in os.environ}
    return {"command": command, "environment": environment, "vram": size, **more}


def hours(*, inside: bool) -> str:
    """One that holds now, or one that is over."""
    now = time.localtime()
    minute = now.tm_hour * 60 + now.tm_min
    begin, end = (minute - 30, minute + 90) if inside else (minute + 120, minute + 180)
    return "-".join(f"{each // 60 % 24:02}:{each % 60:02}" for each in (begin, end))


class ServingAgent(AgentProcess):
    """One whose file may be written anew."""

    peers: list[Peer]
    port: int
    """Where the activator answers; 0: somewhere that nobody knows."""

    def write(self, **sections: object) -> None:
        agent: dict[str, object] = {
            "pool": {"size": POOL_BYTES * 2},
            "arbiter": {"min_run": 0.2, "settle": 0.2, "wait_limit": 20},
            "store": {"directory": str(self.file.parent / "store")},
        }
        for name, more in dict(sections.get("agent", {})).items():  # type: ignore[call-overload]
            agent[name] = {**dict(agent.get(name, {})), **more}  # type: ignore[call-overload]
        whole = {**sections, "agent": agent}
        whole["activator"] = {"listen": f"127.0.0.1:{self.port}", "grace": 5, **dict(whole.get("activator", {}))}  # type: ignore[call-overload]
        serving = {"min_run": 0.1, "hysteresis": 0.1, "batch_idle": 0.3, "drain": 20}
        whole["serving"] = {**serving, **dict(whole.get("serving", {}))}  # type: ignore[call-overload]
        self.file.write_text(yaml.safe_dump(whole))

    @property
    def activator_socket(self) -> Path:
        return self.state.root / "activator.sock"

    def peer(self, worker: int = 0, **more: object) -> Peer:
        """A worker of the test's; closed with the agent."""
        peer = Peer(self.activator_socket, pid=os.getpid() + worker, worker=worker, **more)  # type: ignore[arg-type]
        self.peers.append(peer)
        return peer

    def metrics(self) -> str:
        transport = httpx2.HTTPTransport(uds=str(self.state.socket))
        with httpx2.Client(transport=transport) as http:
            return http.get("http://agent/metrics").text

    def said(self, name: str) -> str:
        """Its output; empty before its start."""
        try:
            return self.output(name)
        except NotFound:
            return ""

    def state_of(self, name: str) -> str:
        """As the policy sees it: phase, and the tier where it is away."""
        found = next(each for each in self.client.serving().served if each.name == name)
        return found.phase if found.phase != "away" else f"away in {found.tier}"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def serving_agent(
    *, port: int = 0, environment: Mapping[str, str] | None = None, root: Path | None = None, **sections: object
) -> Iterator[ServingAgent]:
    """`root`: a short path for its directory and its file."""
    root = root or Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root):
        agent = ServingAgent(root, settings="", simulated_gpu=True, environment=environment)
        agent.peers, agent.port = [], port
        agent.write(**sections)
        try:
            agent.start()
            yield agent
        finally:
            for peer in agent.peers:
                peer.close()
            with suppress(KybernateError):
                agent.stop_all()
            agent.end()
            agent.client.close()
            with suppress(KybernateError):
                simulated.remove(gpu_path(agent.state))


@pytest.fixture
def begin() -> Iterator[Callable[..., ServingAgent]]:
    """`begin(models=..., jobs=...)` starts an agent with such a file."""
    with ExitStack() as stack:
        yield lambda **sections: stack.enter_context(serving_agent(**sections))
