"""Kills the agent or the workload at every step of pause and resume, and looks at what is left.

One code for the simulated driver (tests/engine/test_faults.py) and for a real GPU (`python tests/gpu/faults.py`). The
place to die is named in a file, so that one agent can be used for many of them.

- The agent dies: a new agent finds the workload running or paused, never lost; it runs on or can be resumed, can be paused
  and resumed again, and every word of its memory is as it should be.
- The workload dies: the operation ends with an answer, and nothing is left of it: no VRAM, no pool memory, no process,
  no cgroup, no mount, no file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kybernate.benchmarks import results
from kybernate.benchmarks.agent import OwnAgent, workload_command
from kybernate.benchmarks.conversation import until
from kybernate.benchmarks.results import Case
from kybernate.engine.faults import PAUSE_STEPS, RESUME_STEPS, STEPS
from kybernate.model.errors import AgentAway, KybernateError
from kybernate.model.quantities import parse_size
from kybernate.model.types import GIB, MIB, HostPid, WorkloadName

SLOWER = 4 if os.environ.get("KYBERNATE_SANITIZER") else 1
START_S = 60.0 * SLOWER
STEP_S = 60.0 * SLOWER
SLACK_BYTES = 64 * MIB
"""A real driver gives back what a context took a little later, and its own books move by some MiB."""

_PREAMBLE = """
import os, pathlib, signal, threading
from kybernate.engine import faults
from kybernate.model import errors
_place = pathlib.Path({place!r})
def _at(self, step):
    try:
        wanted, _, way = _place.read_text().partition(":")
    except FileNotFoundError:
        return
    if wanted == step:
        _place.unlink()
        if way == "error":
            raise faults.InjectedFault(f"injected fault at {{step}}")
        if way == "busy":  # as a process that gives no answer in time
            raise errors.Busy(f"injected at {{step}}")
        # To this very thread: it would run on until the one that got the signal comes to stop all of them.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP if way == "stop" else signal.SIGKILL)
faults.Faults.at = _at
"""


class LeftOver(AssertionError):
    """Something of a workload outlived it."""


@dataclass(frozen=True, slots=True)
class Before:
    """What the node has while no workload is there. Bytes."""

    free_vram: int
    free_pool: int


class Rig:
    """An agent that can be made to stop or die at a step, and workloads that know their own memory."""

    def __init__(self, *, size: int, pool: int, simulated: int | None, directory: Path) -> None:
        self._place = directory / "fault"
        self._size = size
        self._simulated = simulated
        self.agent = OwnAgent(
            pool_bytes=pool,
            simulated_bytes=simulated,
            preamble=_PREAMBLE.format(place=str(self._place)),
            start_s=START_S,
        )

    def __enter__(self) -> Self:
        self.agent.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.agent.close()

    def start(self, name: str) -> None:
        pace = ["--pace", "0.02"] if self._simulated is not None else []
        output = self.agent.run(name, workload_command(self._size, "--loop", "0.25", *pace))
        output.wait_steps(2, timeout_s=START_S)

    def fault(self, step: str, way: str) -> None:
        # Whole or not at all: the agent may be reading.
        temporary = self._place.with_suffix(".writing")
        temporary.write_text(f"{step}:{way}")
        temporary.replace(self._place)

    def progress(self, name: str) -> None:
        output = self.agent.output(name)
        output.wait_steps(output.steps() + 2, timeout_s=STEP_S)

    def before(self) -> Before:
        node = self.agent.client.node()
        return Before(free_vram=node.gpus[0].free_bytes, free_pool=node.pool.free_bytes if node.pool else 0)

    # -- the agent dies ------------------------------------------------------------------------------------------

    def agent_dies(self, name: str, step: str) -> str:
        """Kill the agent at `step` and start another. `name` runs before and after. Returns how it was found.

        Raises:
            KybernateError: the workload didn't come through.
        """
        client = self.agent.client
        if step in RESUME_STEPS:
            client.pause(name)
        self.fault(step, "kill")
        with contextlib.suppress(AgentAway):
            client.pause(name) if step in PAUSE_STEPS else client.resume(name)
            raise KybernateError(f"the agent passed {step} alive")
        if self.agent.wait_death(timeout_s=STEP_S) != -signal.SIGKILL:
            raise KybernateError(f"the agent ended otherwise than by the kill at {step}: {self.agent.log_tail()}")
        self.agent.start()
        found = self._settled(name)
        if found == "paused":
            self.agent.client.resume(name)
        self.progress(name)
        self.agent.client.pause(name)
        self.agent.client.resume(name)
        self.progress(name)
        return found

    # -- a step fails --------------------------------------------------------------------------------------------

    def step_fails(self, name: str, step: str, way: str) -> str:
        """Let `step` fail while `name` runs. Returns how it is afterwards; it runs on then, or can be resumed.

        Raises:
            KybernateError: the workload didn't come through, or the agent thinks otherwise of it than is true.
        """
        client = self.agent.client
        if step in RESUME_STEPS:
            client.pause(name)
        self.fault(step, way)
        with contextlib.suppress(KybernateError):
            client.pause(name) if step in PAUSE_STEPS else client.resume(name)
        found = self._settled(name)
        view = client.workload(name)
        if (view.depth is None, view.paused_by is None) != (found == "running", found == "running"):
            raise KybernateError(f"{name} is {found}, depth {view.depth}, paused by {view.paused_by}")
        if found == "paused":
            client.resume(name)
        self.progress(name)
        client.pause(name)
        client.resume(name)
        self.progress(name)
        return found

    def _settled(self, name: str) -> str:
        def look() -> str | None:
            view = self.agent.client.workload(name)
            if view.state in ("exited", "lost"):
                raise KybernateError(f"the workload is {view.state}: {view.reason}; {self.agent.output(name).tail()}")
            return str(view.state) if view.state in ("running", "paused") else None

        return until(look, timeout_s=STEP_S, what=f"a settled state of {name}")

    # -- the workload dies ---------------------------------------------------------------------------------------

    def workload_dies(self, name: str, step: str) -> str:
        """Stop the agent at `step`, kill the workload, let the agent go on. Returns the operation's answer.

        Raises:
            LeftOver: something is left.
            KybernateError: the operation never ended.
        """
        before = self.before()
        self.start(name)
        client = self.agent.client
        pids = [HostPid(pid) for pid in client.workload(name).pids]
        if step in RESUME_STEPS:
            client.pause(name)
        self.fault(step, "stop")
        answer: list[str] = []
        order = client.pause if step in PAUSE_STEPS else client.resume
        asking = threading.Thread(target=lambda: answer.append(_answer(lambda: order(name))), name=f"order-{step}")
        asking.start()
        until(lambda: _state(self.agent.pid) in "Tt" or None, timeout_s=STEP_S, what=f"the agent's stop at {step}")
        try:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            until(lambda: all(_gone(pid) for pid in pids) or None, timeout_s=STEP_S, what="the workload's death")
        finally:
            os.kill(self.agent.pid, signal.SIGCONT)
        asking.join(STEP_S + 30)
        if asking.is_alive():
            raise KybernateError(f"the order never ended after the workload died at {step}")
        if not self.agent.alive:
            raise KybernateError(f"the agent died with the workload at {step}: {self.agent.log_tail()}")
        until(
            lambda: client.workload(name).state == "exited" or None,
            timeout_s=STEP_S,
            what=f"the agent's noticing that {name} died",
        )
        with contextlib.suppress(KybernateError):
            client.stop(name, grace_s=0)
        client.remove(name)
        self.assert_nothing_left(name, pids, before)
        return answer[0]

    def assert_nothing_left(self, name: str, pids: Sequence[HostPid], before: Before) -> None:
        """Raises LeftOver."""
        slack = 0 if self._simulated is not None else SLACK_BYTES

        def left() -> list[str]:
            found = [f"process {pid}" for pid in pids if not _gone(pid)]
            node = self.agent.client.node()
            if (missing := before.free_vram - node.gpus[0].free_bytes) > slack:
                found.append(f"{missing} bytes of VRAM")
            if node.gpus[0].resident_bytes:
                found.append(f"{node.gpus[0].resident_bytes} bytes of extents")
            if node.pool is not None and node.pool.free_bytes != before.free_pool:
                found.append(f"{before.free_pool - node.pool.free_bytes} bytes of the pool")
            if self.agent.state.run_directory(WorkloadName(name)).exists():
                found.append("its run directory")
            found += [str(path) for path in self.agent.state.root.rglob(f"{name}*")]
            found += [f"mount {line.split()[1]}" for line in _mounts() if name in line]
            found += [f"cgroup {path}" for path in _cgroups(name)]
            return found

        try:
            until(lambda: not left() or None, timeout_s=10.0, what="the end of everything")
        except KybernateError:
            raise LeftOver(f"{name} left behind: {', '.join(left())}; agent's log: {self.agent.log_tail(30)}") from None


def _answer(call: Callable[[], object]) -> str:
    try:
        call()
    except KybernateError as e:
        return f"{e.code}: {e.message}"
    return "done"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _gone(pid: int) -> bool:
    return _state(pid) in "XZ"


def _mounts() -> list[str]:
    return Path("/proc/self/mounts").read_text().splitlines()


def _cgroups(name: str) -> list[str]:
    return [str(Path(root) / name) for root, names, _ in os.walk("/sys/fs/cgroup") for each in names if name in each]


def run_all(rig: Rig, *, steps: Sequence[str], say: Callable[[str], None]) -> list[Case]:
    """Every step both ways; 1 for each that came out exact, 0 for one that failed, which starts over with a fresh workload."""
    cases: list[Case] = []

    def note(case: str, exact: bool, text: str) -> None:
        say(f"{'ok ' if exact else 'BAD'} {text}")
        cases.append(Case(case=case, unit="exact", samples=(float(exact),), notes={"what": text}))

    rig.start("survivor")
    for step in steps:
        try:
            found = rig.agent_dies("survivor", step)
            note(f"agent_killed.{step}", True, f"agent killed at {step}: found {found}, exact afterwards")
        except Exception as e:
            note(f"agent_killed.{step}", False, f"agent killed at {step}: {e}")
            with contextlib.suppress(Exception):
                rig.agent.start() if not rig.agent.alive else None
                rig.agent.client.stop("survivor", grace_s=0, remove=True)
                rig.start("survivor")
    try:
        note("survivor", True, rig.agent.exact_end("survivor"))
        rig.agent.client.remove("survivor")
    except Exception as e:
        note("survivor", False, f"the survivor's end: {e}")
    for number, step in enumerate(steps):
        name = f"victim-{number}-{os.getpid()}"
        try:
            found = rig.workload_dies(name, step)
            note(f"workload_killed.{step}", True, f"workload killed at {step}: {found}; nothing left")
        except Exception as e:
            note(f"workload_killed.{step}", False, f"workload killed at {step}: {e}")
            with contextlib.suppress(Exception):
                rig.agent.client.stop(name, grace_s=0, remove=True)
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="1GiB", help="VRAM of the workload")
    parser.add_argument("--pool", default="3GiB")
    parser.add_argument("--simulated", help="VRAM of a simulated GPU")
    parser.add_argument("--steps", help="separated by commas; all without")
    parser.add_argument("--output", type=Path, help="write the outcome there, as bench/results/*.json are")
    options = parser.parse_args()
    steps = options.steps.split(",") if options.steps else list(STEPS)
    if unknown := [step for step in steps if step not in STEPS]:
        parser.error(f"no step {unknown[0]}; there are: {', '.join(STEPS)}")
    simulated = parse_size(options.simulated) if options.simulated else None
    size = parse_size(options.size) if simulated is None else min(parse_size(options.size), simulated // 4)
    pool = parse_size(options.pool) if simulated is None else min(3 * GIB, 4 * size)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="kyb-faults-") as directory,
        Rig(size=size, pool=pool, simulated=simulated, directory=Path(directory)) as rig,
    ):
        cases = run_all(
            rig, steps=steps, say=lambda text: print(f"[{time.monotonic() - started:5.1f} s] {text}", flush=True)
        )
    if options.output:
        results.write(options.output, results.document("faults", cases, simulated=simulated is not None))
    failed = sum(not case.value for case in cases)
    print(f"{failed} failed" if failed else "all exact, nothing left over")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
