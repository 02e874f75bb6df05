"""The first half of making a process tree quiet: nobody launches any more, and the GPU has finished what it was given.

Kernels of a communication library wait for kernels of other processes. Launches stop everywhere at once, but not everywhere
at the same place of the program: one process may have launched a collective operation that another had yet to launch, and
its kernel then waits for a launch that is held. So a process that is idle while others are not may make single launches
until the others are done: it catches up with them. What that doesn't resolve (the host side of one may wait for that of
another) a short run with all gates open may. `Rounds` is the whole policy, pure; nobody's memory calls are held up here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

from kybernate.cuda.control import Control, HoldStatus
from kybernate.engine.context import every
from kybernate.model.errors import Busy
from kybernate.model.types import HostPid

FIRST_S = 0.05
"""For the work in flight to end by itself, before anybody is let go on."""
ROUND_S = 0.002
"""Of a single launch and what it sets free."""
LOOK_S = 0.05
"""Of a round in which nobody may launch: answers come when something changes, or then."""
RUN_S = 0.02
"""How long all may run between two attempts."""
BURST = 16
"""Single launches of all where all of them wait: the GPUs of one process may wait for each other."""
LEAST_S = 0.5
"""For the second half, at least."""


@dataclass(slots=True)
class Rounds:
    """Who may launch next, from who is idle. Times are seconds since the beginning."""

    timeout_s: float
    reopenings: list[float] = field(init=False)
    bursts: list[float] = field(init=False)
    burst_left: int = 0
    held_back_since: float | None = None
    """Since when some have been idle and others not."""

    def __post_init__(self) -> None:
        self.reopenings = [self.timeout_s / 2, self.timeout_s * 3 / 4]
        self.bursts = [self.timeout_s / 4, self.timeout_s / 2, self.timeout_s * 3 / 4]

    def next(self, idle: Mapping[HostPid, bool], now: float) -> Round:
        """What to do after a round in which not all were idle."""
        if not any(idle.values()):
            self.held_back_since = None
            if self.bursts and now >= self.bursts[0]:
                self.bursts.pop(0)
                self.burst_left = BURST
            if self.burst_left:
                self.burst_left -= 1
                return Round(frozenset(idle), ROUND_S)
            return Round(frozenset(), LOOK_S)
        self.burst_left = 0
        if self.held_back_since is None:
            self.held_back_since = now
        if self.reopenings and now >= self.reopenings[0]:
            self.reopenings.pop(0)
            if now - self.held_back_since > self.timeout_s / 8:
                self.held_back_since = None
                return Round(frozenset(), FIRST_S, reopen=True)
        return Round(frozenset(pid for pid, is_idle in idle.items() if is_idle), ROUND_S)


@dataclass(frozen=True, slots=True)
class Round:
    """One question to all processes."""

    step: frozenset[HostPid]
    """Those that may launch once."""
    timeout_s: float
    reopen: bool = False
    """Let all run for a moment before."""


def hold_all(
    controls: Mapping[HostPid, Control],
    *,
    executor: Executor,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Hold the launches of all processes with the GPU idle. Returns what is left of the time, in seconds.

    Raises:
        Busy: not in that time; the gates are as they were left, for the caller's undo.
        Unsupported: one of them can't be paused.
    """
    begun = clock()
    pids = list(controls)
    rounds = Rounds(timeout_s)
    now = Round(frozenset(), min(FIRST_S, timeout_s))
    while True:
        if now.reopen:
            every(executor, Control.open, list(controls.values()))
            sleep(RUN_S)
        current = now

        def ask(pid: HostPid, current: Round = current) -> HoldStatus:
            return controls[pid].hold(current.timeout_s, step=pid in current.step)

        answers = dict(zip(pids, every(executor, ask, pids), strict=True))
        passed = clock() - begun
        if all(held.idle for held in answers.values()):
            if not current.step:
                return max(timeout_s - passed, LEAST_S)
            now = Round(frozenset(), FIRST_S)  # one of them may have launched after another was seen idle
        elif passed >= timeout_s:
            pid, held = next((pid, held) for pid, held in answers.items() if not held.idle)
            raise Busy(
                f"process {pid}: {held.reason}", hint="it runs on; try again later, or give it a longer --timeout"
            )
        else:
            now = rounds.next({pid: held.idle for pid, held in answers.items()}, passed)
