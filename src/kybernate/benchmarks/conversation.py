"""What a benchmark's workload says, and what it is told: its output as it grows, and the file of commands that it reads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from kybernate.model.errors import KybernateError, WorkloadLost

POLL_S: Final = 0.005
ALIVE_S: Final = 0.25

T = TypeVar("T")


def until(look: Callable[[], T | None], *, timeout_s: float, what: str, every_s: float = POLL_S) -> T:
    """Poll `look` until it gives something true; seldom, where each look costs the agent something.

    Raises:
        KybernateError: it didn't within `timeout_s`; names `what`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if found := look():
            return found
        if time.monotonic() > deadline:
            raise KybernateError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(every_s)


class Output:
    """The words of a workload: its log, read as it grows. For one thread."""

    def __init__(self, path: Path, *, alive: Callable[[], bool] = lambda: True) -> None:
        self.path = path
        self._alive = alive
        self._read = 0
        self._partial = ""
        self._lines: list[str] = []

    def lines(self) -> list[str]:
        """All whole lines so far."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read)
            fresh = file.read()
            self._read += len(fresh)
            *whole, self._partial = (self._partial + fresh.decode(errors="replace")).split("\n")
            self._lines += whole
        return self._lines

    def last(self, prefix: str) -> str | None:
        return next((line for line in reversed(self.lines()) if line.startswith(prefix)), None)

    def wait(self, prefix: str, *, timeout_s: float) -> str:
        """The first line that begins with `prefix`. Raises as `wait_for`."""
        at = 0

        def look() -> str | None:
            nonlocal at
            lines = self.lines()
            start, at = at, len(lines)
            return next((line for line in lines[start:] if line.startswith(prefix)), None)

        return self.wait_for(look, timeout_s=timeout_s, what=repr(prefix))

    def wait_for(self, look: Callable[[], T | None], *, timeout_s: float, what: str) -> T:
        """What `look` gives, once it is true.

        Raises:
            WorkloadLost: the workload reported a mismatch or ended before.
            KybernateError: it wasn't so in time.
        """
        who = self.path.parent.name
        deadline = time.monotonic() + timeout_s
        next_look_alive = 0.0
        while True:
            # Asked before the lines are read: what it said before it ended must not be missed.
            ended = False
            if time.monotonic() >= next_look_alive:
                ended = not self._alive()
                next_look_alive = time.monotonic() + ALIVE_S
            if found := look():
                return found
            if (wrong := self.last_of("MISMATCH", "setup:")) is not None:
                raise WorkloadLost(f"{who}: {wrong}")
            if ended:
                raise WorkloadLost(f"{who} ended before {what}: {self.tail()}")
            if time.monotonic() > deadline:
                raise KybernateError(f"{who}: no {what} within {timeout_s:g} s", hint=f"last lines: {self.tail()}")
            time.sleep(POLL_S)

    def last_of(self, *prefixes: str) -> str | None:
        """The last line, if it begins with one of these: such words are the last a workload says."""
        lines = self._lines[-20:]
        return next((line for line in lines if line.startswith(prefixes)), None)

    def steps(self) -> int:
        """The number in its last `step N`; -1 before the first."""
        line = self.last("step ")
        return int(line.split()[1]) if line is not None else -1

    def wait_steps(self, at_least: int, *, timeout_s: float) -> int:
        """Until its steps have come to `at_least`. Raises as `wait_for`."""

        def look() -> int | None:
            steps = self.steps()
            return steps if steps >= at_least else None

        return self.wait_for(look, timeout_s=timeout_s, what=f"step {at_least}")

    def tail(self, count: int = 5) -> str:
        return " | ".join(self.lines()[-count:])[-600:]


class Conversation:
    """A `workload.py --commands FILE`: orders and their answers."""

    def __init__(self, *, commands: Path, output: Output) -> None:
        self._commands = commands
        self._count = 0
        self.output = output

    def order(self, *words: str | float, timeout_s: float = 120.0) -> str:
        """Append a command and wait until it is done.

        Raises:
            WorkloadLost, KybernateError: as Output.wait.
        """
        self._count += 1
        with self._commands.open("a") as file:
            file.write(f"{self._count} {' '.join(str(word) for word in words)}\n")
        return self.output.wait(f"done {self._count} ", timeout_s=timeout_s)
