"""An engine on the simulated driver, with real workloads, a real CRIU and a store in a directory: for scenarios that run in
a process of their own (stored_scenarios.py)."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from kybernate.agent.workloads.environment import SIMULATED_VARIABLE, Simulation, workload_environment
from kybernate.agent.workloads.targets import cuda_processes
from kybernate.benchmarks.agent import workload_command
from kybernate.cuda.broker import Broker, Verdict
from kybernate.cuda.copying import CopyEngine
from kybernate.cuda.driver import Gpu, open_gpus
from kybernate.cuda.hashing import Hasher, load_key
from kybernate.cuda.kernels import Kernels
from kybernate.cuda.pool import PinnedPool
from kybernate.engine.engine import Engine, Target
from kybernate.engine.faults import Faults, InjectedFault
from kybernate.model.native import preload_library, simulated_driver
from kybernate.model.types import MIB, Backend, Depth, HostPid, WorkloadName, WorkloadState
from kybernate.process.launching import launch
from kybernate.process.specs import LaunchSpec
from kybernate.process.tree import OUTPUT, Tree, attach
from kybernate.store import DEFAULT_TENANT, Catalog, LocalMedium, Space, Tier, keys_of

T = TypeVar("T")

SIZE = 32 * MIB
DEADLINE_S = 60.0 * (4 if os.environ.get("KYBERNATE_SANITIZER") else 1)


def eventually(look: Callable[[], T], what: str, timeout_s: float = DEADLINE_S) -> T:
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.005)
    return found


class Open:
    """An admission that grants everything."""

    def hello(self, *, workload: WorkloadName, pid: HostPid, pid_inside: int) -> None:
        """Nothing is noted."""

    def may_allocate(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> Verdict:
        return Verdict.GRANT

    def make_room(self, *, workload: WorkloadName, gpu: Gpu, size: int) -> bool:
        return False


class Armed(Faults):
    """Fails once at a step, when it is told to; besides what the environment asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.step: str | None = None
        self.then: Callable[[], None] | None = None

    def at(self, step: str) -> None:
        if step == self.step:
            self.step = None
            if self.then is not None:
                self.then()
                return
            raise InjectedFault(f"injected fault at {step}")
        super().at(step)


class Node:
    """One agent's engine. `root` is on a disk, `memory` on a tmpfs; both outlive it."""

    def __init__(self, root: Path, memory: Path, *, agent: str = "a", pool: int = 160 * MIB) -> None:
        """`agent` tells apart agents with state of their own that share a store's directory (and take turns)."""
        self.state = root / agent
        self.state.mkdir(exist_ok=True)
        (memory / agent).mkdir(exist_ok=True)
        self.faults = Armed()
        self.gpus = open_gpus()
        self.broker = Broker(gpus=self.gpus, admission=Open(), extent_bytes=64 * MIB)
        self.pool = PinnedPool(
            path=memory / agent / "pool", size_bytes=pool, gpus=self.gpus, segment_bytes=16 * MIB, spare_bytes=0
        )
        key = load_key(self.state / "hash.key")
        self.copiers = {}
        for gpu in self.gpus:
            hasher = Hasher(gpu, key=key, kernels=Kernels(gpu, cache=self.state))
            self.copiers[gpu.uuid] = CopyEngine(gpu, pool=self.pool, hasher=hasher)
        self.engine = Engine(
            broker=self.broker,
            pool=self.pool,
            copiers=self.copiers,
            directory=memory / agent / "copies",
            faults=self.faults,
            scratch=root / f"scratch-{agent}",
        )
        self.pool.start()
        self.pool.wait_ready(30)
        self.catalog = Catalog(self.state / "catalog.db")
        self.tier = Tier(LocalMedium(root / "tier", pack_bytes=8 * MIB, threads=4), self.catalog)
        self.tier.open()
        self.space: Space = self.tier.space(keys_of(DEFAULT_TENANT))
        self.trees: dict[str, Tree] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for name in list(self.trees):
                print(f"--- {name}: {self.output(name)[-600:]}", file=sys.stderr)
        for tree in self.trees.values():
            tree.remove()
        self.broker.close()
        self.engine.close()
        self.pool.close()
        self.tier.close()
        self.catalog.close()

    # -- workloads ---------------------------------------------------------------------------------------------------

    def run_directory(self, name: str) -> Path:
        return self.state / "workloads" / name

    def start(self, name: str, argv: list[str] | None = None, *, backend: Backend = Backend.BROKER) -> Tree:
        """A program that fills its memory, changes a part of it step by step and compares all of it each time."""
        run = self.run_directory(name)
        run.mkdir(parents=True)
        self.broker.listen(WorkloadName(name), run / "agent.sock", uid=0, gid=0)
        environment = workload_environment(
            {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            name=WorkloadName(name),
            run_directory=run,
            preload=preload_library() if backend is Backend.BROKER else None,
            simulation=Simulation(simulated_driver().parent, os.environ[SIMULATED_VARIABLE]),
        )
        command = argv or workload_command(SIZE, "--loop", "0.1", "--pace", "0.01")
        tree = launch(LaunchSpec(name=WorkloadName(name), argv=command, run_directory=run, environment=environment))
        self.trees[name] = tree
        if argv is None:
            self.wait_steps(name, 2)
        eventually(lambda: "ready" in self.output(name) or tree.exit() is not None, f"start of {name}")
        return tree

    def take_over(self, name: str) -> Tree:
        """A workload that an earlier agent had paused, or was just parking."""
        tree = self.trees[name] = attach(self.run_directory(name))
        self.broker.listen(WorkloadName(name), self.run_directory(name) / "agent.sock", uid=0, gid=0)
        assert list((self.state.parent / f"scratch-{self.state.name}").iterdir()) == []
        assert self.engine.recover(self.target(name)) is WorkloadState.PAUSED
        return tree

    def target(self, name: str, backend: Backend = Backend.BROKER) -> Target:
        tree = self.trees[name]
        processes = cuda_processes(tree) if backend is Backend.BROKER else []
        return Target(name=WorkloadName(name), tree=tree, processes=processes, backend=backend)

    def pause(self, name: str, backend: Backend = Backend.BROKER) -> None:
        self.engine.pause(self.target(name, backend), depth=Depth.ZERO, timeout_s=10)

    def resume(self, name: str, backend: Backend = Backend.BROKER) -> None:
        self.engine.resume(self.target(name, backend))

    def park(self, name: str, backend: Backend = Backend.BROKER) -> None:
        """As an agent does it: written, then ended, then forgotten here."""
        self.engine.snapshot(self.target(name, backend), self.space, name)
        self.end(name)
        self.engine.forget(WorkloadName(name))

    def end(self, name: str) -> None:
        self.trees.pop(name).remove()
        self.broker.stop_listening(WorkloadName(name))
        shutil.rmtree(self.run_directory(name))

    def revive(self, snapshot: str, name: str, *, keep_staged: bool = False) -> Tree:
        tree = self.trees[name] = self.engine.revive(
            self.space, snapshot, WorkloadName(name), run_directory=self.run_directory(name), keep_staged=keep_staged
        )
        return tree

    # -- what they say -----------------------------------------------------------------------------------------------

    def output(self, name: str) -> str:
        path = self.run_directory(name) / OUTPUT
        return path.read_text() if path.exists() else ""

    def steps(self, name: str) -> int:
        lines = [line for line in self.output(name).splitlines() if line.startswith("step ")]
        return int(lines[-1].split()[1]) if lines else -1

    def wait_steps(self, name: str, least: int) -> None:
        tree = self.trees[name]
        eventually(lambda: self.steps(name) >= least or tree.exit() is not None, f"step {least} of {name}")
        assert tree.exit() is None, self.output(name)[-1000:]

    def goes_on(self, name: str) -> None:
        """All of its memory is compared in each of two more steps."""
        self.wait_steps(name, self.steps(name) + 2)

    def order(self, name: str, command: str) -> None:
        """`NUMBER VERB ...`, for a workload that was started with `--commands`; done when this returns."""
        with (self.run_directory(name) / "commands").open("a") as file:
            file.write(f"{command}\n")
        tree, done = self.trees[name], f"done {command.split()[0]} "
        eventually(lambda: done in self.output(name) or tree.exit() is not None, f"{command} of {name}")
        assert tree.exit() is None, self.output(name)[-1000:]

    def exact_end(self, name: str) -> None:
        """It ends by itself, everything compared once more."""
        tree = self.trees.pop(name)
        os.kill(tree.main_pid() or 0, 15)
        assert tree.wait(DEADLINE_S) == 0, self.output(name)[-1000:]
        assert self.output(name).splitlines()[-1].startswith("exact "), self.output(name)[-1000:]
        assert "MISMATCH" not in self.output(name)
        tree.remove()
        self.engine.forget(WorkloadName(name))
        self.broker.stop_listening(WorkloadName(name))

    def assert_idle(self) -> None:
        """Nothing of any workload is left: pool, VRAM, scratch."""
        for view in self.engine.staged():
            self.engine.drop_staged(view.uid)
        assert self.pool.free_slots * 2 * MIB == self.pool.size_bytes
        assert self.broker.resident_bytes() == 0
        assert list((self.state.parent / f"scratch-{self.state.name}").iterdir()) == []
