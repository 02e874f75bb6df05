"""A real agent in a process of its own, with or without a simulated GPU, and workloads for it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.conftest import SLOWER, Eventually
from tests.guardian import clean, guarded
from tests.store.server import ACCESS, SECRET, Proxy, Server, Unbuildable

from kybernate.cli.simulated import gpu_path
from kybernate.client import Client
from kybernate.cuda import simulated
from kybernate.model.api import RunRequest, WorkloadView
from kybernate.model.errors import AgentAway, KybernateError, NotFound
from kybernate.model.layout import StateDirectory
from kybernate.model.types import MIB

GPU_BYTES = 128 * MIB
SIZE = 16 * MIB
"""Of workloads that are `started`, if nothing else is said."""
POOL = 192 * MIB
"""Of agents with tiers."""
POOL_BYTES = 128 * MIB
START_S = 120.0 * SLOWER

MakeAgent = Callable[..., "AgentProcess"]


class AgentProcess:
    """`kybernate up` in a directory of its own; may be killed and started again there."""

    def __init__(
        self,
        root: Path,
        *,
        settings: str,
        simulated_gpu: bool,
        gpu_bytes: int = GPU_BYTES,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._gpu_bytes = gpu_bytes
        self._environment = dict(environment or {})
        self.state = StateDirectory(root / "s")
        self.file = root / "kybernate.yaml"
        self.file.write_text(settings)
        self._simulated = simulated_gpu
        self._process: subprocess.Popen[bytes] | None = None
        self.log = root / "log"
        self.client = Client(self.state.socket)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **environment_too: str) -> None:
        command = [
            sys.executable,
            "-m",
            "kybernate.cli",
            "up",
            "-f",
            str(self.file),
            "--state-dir",
            str(self.state.root),
        ]
        command += [f"--simulated={self._gpu_bytes}"] if self._simulated else []
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith("KYBERNATE_") or k == "KYBERNATE_NATIVE_DIR"
        }
        with self.log.open("ab") as log:
            whole = {**environment, **self._environment, **environment_too}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=whole)
        deadline = time.monotonic() + START_S
        while True:
            try:
                pool = self.client.node().pool
                if pool is None or pool.ready_bytes >= pool.size_bytes:
                    return
            except AgentAway:
                assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        """As a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def run(self, name: str, *argv: str, **options: object) -> WorkloadView:
        # And what a sanitizer's build of our library needs.
        needed = ("PATH", "LD_PRELOAD", "ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS")
        environment = {key: os.environ[key] for key in needed if key in os.environ}
        return self.client.run(
            RunRequest.model_validate(
                {"name": name, "argv": list(argv), "directory": "/", "environment": environment, **options}
            )
        )

    def run_cuda(self, name: str, *, bytes_: int = 80 * MIB, seed: int = 1, noise: bool = False) -> WorkloadView:
        """A workload that fills VRAM and goes on rewriting and comparing it; with `noise`, by what doesn't compress."""
        module = "kybernate.benchmarks.workload"
        size = ["--bytes", str(bytes_), "--seed", str(seed), *(["--noise"] if noise else [])]
        return self.run(name, sys.executable, "-m", module, *size, "--loop", "0.25", "--pace", "0.05")

    def output(self, name: str) -> str:
        return b"".join(self.client.logs(name)).decode()

    def steps(self, name: str) -> int:
        """How far such a workload came; fails when it found wrong content."""
        text = self.output(name)
        assert "MISMATCH" not in text, text[-500:]
        return text.count("step ")

    def stop_all(self) -> None:
        for workload in self.client.workloads():
            if workload.external:
                continue
            with contextlib.suppress(NotFound):
                self.client.stop(workload.name, grace_s=0, remove=True)


def agent_process(
    *, settings: str, simulated_gpu: bool, environment: Mapping[str, str] | None = None
) -> Iterator[AgentProcess]:
    # Not pytest's own directory: paths of sockets are limited to 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root):
        agent = AgentProcess(root, settings=settings, simulated_gpu=simulated_gpu, environment=environment)
        try:
            agent.start()
            yield agent
            agent.stop_all()
        finally:
            agent.end()
            agent.client.close()
            with contextlib.suppress(KybernateError):
                simulated.remove(gpu_path(agent.state))


@pytest.fixture(scope="module")
def lasting_plain_agent() -> Iterator[AgentProcess]:
    yield from agent_process(settings="", simulated_gpu=False)


@pytest.fixture
def plain_agent(lasting_plain_agent: AgentProcess) -> Iterator[AgentProcess]:
    """An agent without a GPU. Workloads end with their test."""
    yield lasting_plain_agent
    lasting_plain_agent.stop_all()


@pytest.fixture
def gpu_agent(lasting_gpu_agent: AgentProcess) -> Iterator[AgentProcess]:
    """An agent on a simulated GPU that holds one of the workloads at a time. They end with their test."""
    yield lasting_gpu_agent
    lasting_gpu_agent.stop_all()


@pytest.fixture(scope="module")
def lasting_gpu_agent() -> Iterator[AgentProcess]:
    settings = f"agent:\n  pool: {{size: {POOL_BYTES * 2}}}\n  arbiter: {{min_run: 0.2, settle: 0.2, wait_limit: 20}}\n"
    yield from agent_process(settings=settings, simulated_gpu=True)


@pytest.fixture
def slow_agent() -> Iterator[AgentProcess]:
    """An agent that moves some 40 MiB/s, in extents as small as may be."""
    settings = f"agent:\n  pool: {{size: {POOL_BYTES}}}\n  extent_size: {64 * MIB}\n"
    yield from agent_process(
        settings=settings, simulated_gpu=True, environment={"KYBERNATE_SIMULATED_LINK_GIB_S": "0.04"}
    )


# -- agents with tiers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A short path, for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(directory):
        yield directory


@pytest.fixture
def make_agent(root: Path) -> Iterator[MakeAgent]:
    """`make_agent(store="...")`: an agent with a directory of its own; with `beside` on the other one's GPU. All that ran there
    ends with the test."""
    made: list[AgentProcess] = []
    places: list[Path] = []

    def make(
        *,
        store: str = "{}",
        pool: int = POOL,
        gpu: int = GPU_BYTES,
        beside: AgentProcess | None = None,
        **environment: str,
    ) -> AgentProcess:
        place = root / secrets.token_hex(3)
        place.mkdir()
        places.append(place)
        if beside is not None:
            environment |= simulated.environment([simulated.describe(gpu_path(beside.state))], {})
        settings = f"agent:\n  pool: {{size: {pool}}}\n  arbiter: {{min_run: 0.2, settle: 0.2}}\n  store: {store}\n"
        agent = AgentProcess(
            place, settings=settings, simulated_gpu=beside is None, gpu_bytes=gpu, environment=environment
        )
        made.append(agent)
        agent.start()
        return agent

    yield make
    for agent in reversed(made):
        agent.end()
        agent.client.close()
    for place in places:
        clean(place)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        running = Server(tmp_path_factory.mktemp("s3"))
    except Unbuildable as e:
        pytest.skip(str(e))
    yield running
    running.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    between = Proxy(server.port)
    yield between
    between.close()


@pytest.fixture
def bucket(server: Server, tmp_path: Path) -> Callable[..., str]:
    """The `store` setting of an agent with a bucket of the test's own."""
    name = f"b-{secrets.token_hex(6)}"
    server.make_bucket(name)
    credentials = tmp_path / "credentials.yaml"
    credentials.touch(0o600)
    credentials.write_text(f"access_key_id: {ACCESS}\nsecret_access_key: {SECRET}\n")

    def setting(port: int | None = None, *, patience_s: int = 1, **more: object) -> str:
        place = {
            "url": f"s3://{name}/snapshots",
            "endpoint": f"http://127.0.0.1:{port or server.port}",
            "region": "us-east-1",
            "credentials_file": str(credentials),
            "patience": patience_s,
        }
        return json.dumps({"object": place, **more})

    return setting


@pytest.fixture
def first(make_agent: MakeAgent, bucket: Callable[..., str], eventually: Eventually) -> AgentProcess:
    """An agent with a bucket; the workload `one` computes there."""
    agent = make_agent(store=bucket())
    started(agent, eventually, "one")
    return agent


@pytest.fixture
def make_second(make_agent: MakeAgent, bucket: Callable[..., str], first: AgentProcess) -> Callable[[], AgentProcess]:
    """Another agent with nothing but the bucket of the first."""
    return lambda: make_agent(store=bucket(), beside=first)


# -- workloads and the command line ---------------------------------------------------------------------------------------


def started(agent: AgentProcess, eventually: Eventually, name: str, *, size: int = SIZE, seed: int = 1) -> None:
    agent.run_cuda(name, bytes_=size, seed=seed)
    eventually(lambda: agent.steps(name) > 2, timeout_s=60, what=f"{name} computes")


def goes_on(agent: AgentProcess, eventually: Eventually, name: str) -> None:
    before = agent.steps(name)
    eventually(lambda: agent.steps(name) > before + 2, timeout_s=60, what=f"{name} goes on")


def kybernate(agent: AgentProcess, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kybernate.cli", words[0], "--state-dir", str(agent.state.root), *words[1:]],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
