"""An agent of our own for benchmarks, the demo and fault tests: in a temporary state directory, nothing left afterwards.

It runs as a child, so that it can be killed and started again in the same state directory while workloads run. The
workloads are `workload.py`s, spoken to by `conversation.py`; the typed client does the rest.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from kybernate.benchmarks.conversation import Conversation, Output, until
from kybernate.client import Client
from kybernate.cuda import simulated
from kybernate.model import api
from kybernate.model.errors import AgentAway, KybernateError, NotFound, WorkloadLost
from kybernate.model.layout import STATE_VARIABLE, StateDirectory
from kybernate.model.native import PRELOAD_NAME
from kybernate.model.types import Backend, WorkloadName
from kybernate.process.tree import Tree, attach, sweep

LOOK_S = 0.1
START_TIMEOUT_S = 60.0
POOL_TIMEOUT_S = 180.0
"""Populating and registering 84 GiB takes some 10 s; a machine short of memory takes longer."""

_MAIN = "import sys; from kybernate.cli.main import main; sys.exit(main())"
_PREFIX, _OWNER = "kyb-", "owner"


def available_ram() -> int:
    """Bytes that may be used now without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def workload_command(size_bytes: int, *mode: str, seed: int = 1) -> list[str]:
    """Command line of a workload.py; `mode` is `--loop FRACTION` or `--commands FILE`."""
    return [
        sys.executable, "-m", "kybernate.benchmarks.workload",
        "--bytes", str(size_bytes), "--seed", str(seed), *mode,
    ]  # fmt: skip


class AgentProcess:
    """An agent in a state directory of its own, `root`: it can be killed and started again there.

    Args:
        settings: the `agent` section of its kybernate.yaml, without the state directory.
        environment: all of it.
        preamble: Python run in the agent's process before it begins, for tests that inject faults.
        start_s: seconds it may take to start.
    """

    def __init__(
        self,
        root: Path,
        *,
        settings: Mapping[str, object],
        environment: Mapping[str, str],
        preamble: str = "",
        start_s: float = START_TIMEOUT_S,
    ) -> None:
        self.root = root
        self.state = StateDirectory(root / "state")
        self.client = Client(self.state.socket)
        self._settings = {"state_dir": str(self.state.root), **settings}
        self._environment = dict(environment)
        self._preamble = preamble
        self._start_s = start_s
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, sections: Mapping[str, Any]) -> None:
        """Write its kybernate.yaml anew, with these sections beside its own; it reads it at its start or when told to."""
        self.configuration.write_text(yaml.safe_dump({"agent": self._settings, **sections}))

    @property
    def log(self) -> Path:
        return self.root / "agent-output.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def configuration(self) -> Path:
        return self.root / "kybernate.yaml"

    def start(self, *, environment: Mapping[str, str] | None = None) -> api.NodeView:
        """Start it (again) and wait until it answers and its pool is filled."""
        command = [sys.executable, "-c", f"{self._preamble}\n{_MAIN}", "up", "-f", str(self.configuration)]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self._environment, **(environment or {}), STATE_VARIABLE: str(self.state.root)},
            )
        self.client.close()
        self.client = Client(self.state.socket)
        until(self._answering, timeout_s=self._start_s, what="an answer of the agent just started")
        node = until(self._filled, timeout_s=POOL_TIMEOUT_S, what="filling the agent's pool")
        if not node.gpus:
            raise KybernateError(f"the agent found no GPU: {'; '.join(node.notes)}")
        return node

    def _answering(self) -> api.NodeView | None:
        if not self.alive:
            raise KybernateError(f"the agent ended at its start: {self.log_tail()}")
        if not _listening(self.state.socket):
            return None
        try:
            node = self.client.node()
        except AgentAway:
            return None
        return node if node.pid == self.pid else None

    def _filled(self) -> api.NodeView | None:
        node = self._answering()
        if node is None or (node.pool is not None and node.pool.ready_bytes < node.pool.size_bytes):
            return None
        return node

    def kill(self) -> None:
        """kill -9, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait_death(self, *, timeout_s: float) -> int:
        """Status of the agent's process, which ended by itself."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def log_tail(self, count: int = 12) -> str:
        with contextlib.suppress(OSError):
            return " | ".join(self.log.read_text(errors="replace").splitlines()[-count:])[-2000:]
        return ""

    def end(self) -> None:
        """SIGTERM, and a kill where that isn't enough. Its workloads run on."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self.client.close()


class OwnAgent(AgentProcess):
    """`with OwnAgent(...) as agent:` an agent that is ready, with its pool filled.

    Args:
        pool_bytes: pinned host memory.
        simulated_bytes: VRAM of the simulated GPU; None for the real one.
        settings: further parts of its `agent` section, such as `{"vram": {"limit": BYTES}}`. Without a `store` its tiers lie in
            `root`, so on a tmpfs for root.
        environment: added to the agent's own.
        sections: further sections of its kybernate.yaml: models, jobs, activator, serving. Its own rules for allocations are then
            those of the settings.
        log: where a copy of its output is left at the end.
        preamble: Python run in the agent's process before it begins, for tests that inject faults.
        start_s: seconds it may take to start.

    Raises:
        KybernateError: it doesn't start; the message holds the end of its log.
    """

    def __init__(
        self,
        *,
        pool_bytes: int,
        simulated_bytes: int | None = None,
        settings: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        sections: Mapping[str, Any] | None = None,
        log: Path | None = None,
        preamble: str = "",
        start_s: float = START_TIMEOUT_S,
    ) -> None:
        own: dict[str, object] = {"pool": {"size": pool_bytes}}
        if not sections:
            # Whoever is asked for runs at once, and what was paused stays so: the order of things is ours here.
            own["arbiter"] = {"min_run": 0, "auto_resume": False}
        root = _parent() / f"{_PREFIX}{secrets.token_hex(4)}"
        super().__init__(
            root,
            settings={**own, **(settings or {})},
            environment={**os.environ, **(environment or {})},
            preamble=preamble,
            start_s=start_s,
        )
        self._simulated_bytes = simulated_bytes
        self._sections = dict(sections or {})
        self._log_copy = log

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # A run that is told to end must clean up, too: what it leaves are mounts and processes.
            signal.signal(signal.SIGTERM, _leave)
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def simulation(self) -> dict[str, str]:
        """What a process that is not a workload needs to find the simulated GPU; empty with a real one."""
        if self._simulated_bytes is None:
            return {}
        return {name: self._environment[name] for name in ("LD_LIBRARY_PATH", simulated.VARIABLE)}

    def _make(self) -> None:
        self.root.mkdir(mode=0o755)
        (self.root / _OWNER).write_text(str(os.getpid()))
        if self._simulated_bytes is not None:
            gpu = simulated.make(self.root / "gpu", size_bytes=self._simulated_bytes)
            self._environment = simulated.environment([gpu], self._environment)
        self.state.root.mkdir(mode=0o755, exist_ok=True)
        self.configure(self._sections)

    # -- workloads -----------------------------------------------------------------------------------------------

    def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        backend: Backend = Backend.BROKER,
    ) -> Output:
        """Start any command as a workload; returns its output."""
        self.client.run(
            api.RunRequest(
                name=name,
                argv=list(argv),
                directory="/",
                backend=backend,
                environment={**plain_environment(), **(environment or {})},
            )
        )
        return self.output(name)

    def output(self, name: str) -> Output:
        path = self.state.run_directory(WorkloadName(name)) / "output.log"
        return Output(path, alive=lambda: self.running(name))

    def running(self, name: str) -> bool:
        """Whether its process still exists, as far as can be told; an agent that is away ends nothing."""
        try:
            return self.client.workload(name).state not in ("exited", "lost")
        except AgentAway:
            return True
        except KybernateError:
            return False

    def tree(self, name: str) -> Tree:
        """Its processes, for who asks a port of it. Raises NotFound."""
        return attach(self.state.run_directory(WorkloadName(name)))

    def commanded(self, name: str, size_bytes: int, *, seed: int = 1, timeout_s: float = 120.0) -> Conversation:
        """Start a workload.py that takes orders, and wait until its memory is filled."""
        commands = self.state.run_directory(WorkloadName(name)) / "commands"
        output = self.run(name, workload_command(size_bytes, "--commands", str(commands), seed=seed))
        output.wait("ready ", timeout_s=timeout_s)
        return Conversation(commands=commands, output=output)

    def exact_end(self, name: str, *, grace_s: float = 60.0) -> str:
        """SIGTERM, then what it said last.

        Raises:
            WorkloadLost: it didn't end by itself with everything exact.
        """
        output = self.output(name)
        stopped = self.client.stop(name, grace_s=grace_s)
        last = output.last("exact ")
        wrong = output.last("MISMATCH")
        if stopped.exit_status != 0 or last is None or wrong is not None:
            raise WorkloadLost(f"{name} ended with status {stopped.exit_status}: {wrong or output.tail()}")
        return last

    def wait_free(self, size_bytes: int) -> None:
        """Until that much VRAM is free: what a process held is given back a moment after it was seen to end."""
        until(
            lambda: self.client.node().gpus[0].free_bytes >= size_bytes or None,
            timeout_s=30.0,
            what=f"{size_bytes} bytes of free VRAM",
        )

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the workloads and the agent, and leave nothing behind. Never raises."""
        with contextlib.suppress(Exception):
            for workload in self.client.workloads():
                with contextlib.suppress(KybernateError):
                    self.client.stop(workload.name, grace_s=0, remove=True)
        self.end()
        if self._log_copy is not None:
            with contextlib.suppress(OSError):
                shutil.copyfile(self.log, self._log_copy)
        clear_away(self.root)


def clear_away(root: Path) -> None:
    """What is left of an agent whose process has ended, whoever started it: workloads, mounts, files. Never raises."""
    for directory in StateDirectory(root / "state").workloads.glob("*"):
        # What the agent wasn't asked to end, because it had died, or was just starting it.
        with contextlib.suppress(KybernateError, OSError):
            try:
                attach(directory).remove()
            except NotFound:
                sweep(directory)
    with contextlib.suppress(OSError):
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(f"{root}/")), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
    shutil.rmtree(root, ignore_errors=True)


def left_by(pid: int) -> list[Path]:
    """Roots of the agents that the process `pid`, which was killed, has not cleared away."""
    found = []
    for owner in _parent().glob(f"{_PREFIX}*/{_OWNER}"):
        with contextlib.suppress(OSError):
            if owner.read_text() == str(pid):
                found.append(owner.parent)
    return found


def _parent() -> Path:
    return Path("/run") if os.geteuid() == 0 else Path(tempfile.gettempdir())


def _listening(path: Path) -> bool:
    """Asked before the client is: its library leaves the socket open when nobody listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _leave(number: int, frame: object) -> None:
    # Once: `timeout` sends it twice, and the second one must not break off the cleaning up.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def plain_environment() -> dict[str, str]:
    """Our own environment as a workload may have it: what is preloaded stays (a sanitizer's run-time), but for our library."""
    dropped = (STATE_VARIABLE, "KYBERNATE_FAULT", "LD_PRELOAD")
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    preloaded = [
        part for part in os.environ.get("LD_PRELOAD", "").split(":") if part and not part.endswith(PRELOAD_NAME)
    ]
    return {**environment, "LD_PRELOAD": ":".join(preloaded)} if preloaded else environment
