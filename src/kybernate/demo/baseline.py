"""The same programs without Kybernate: plain processes, one at a time. What they answer there is what they must answer here.

On the simulated driver each has a simulated GPU of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kybernate.benchmarks.agent import plain_environment
from kybernate.cuda import simulated
from kybernate.demo.fleet import Fleet
from kybernate.demo.load import Ask, Told, in_turn
from kybernate.model.errors import KybernateError
from kybernate.model.types import MIB

ENDED_S = 20.0
ROOM_BYTES = 16 * MIB
"""Of a simulated GPU beside what the program says it takes."""


class Plain:
    """A process and what it says. Use it as a context manager: it ends with the block."""

    def __init__(self, command: Sequence[str], *, environment: dict[str, str]) -> None:
        self._command = list(command)
        self._environment = environment
        self._lines: list[str] = []
        self._said = threading.Condition()
        self._over = False

    def __enter__(self) -> Self:
        self.began = time.perf_counter()
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self._environment,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="plain-output", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(ENDED_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(ENDED_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with self._said:
                    self._lines.append(line.rstrip("\n"))
                    self._said.notify_all()
        with self._said:
            self._over = True
            self._said.notify_all()

    def wait(self, prefix: str, *, timeout_s: float) -> str:
        """The first line that begins so.

        Raises:
            KybernateError: it ended or took too long before it said that; the message has its last words.
        """

        def found() -> str | None:
            return next((line for line in self._lines if line.startswith(prefix)), None)

        with self._said:
            self._said.wait_for(lambda: self._over or found() is not None, timeout_s)
            line = found()
            if line is None:
                how = "ended before" if self._over else f"took more than {timeout_s:g} s to"
                last = " | ".join(self._lines[-4:])[-400:]
                raise KybernateError(f"{' '.join(self._command[1:4])} {how} it said {prefix!r}: {last}")
            return line


@contextlib.contextmanager
def surroundings(*, simulated_bytes: int | None) -> Iterator[dict[str, str]]:
    """For a `Plain`: with a simulated GPU of that size, which is gone afterwards; None for the real one."""
    base = plain_environment()
    if simulated_bytes is None:
        yield base
        return
    with tempfile.TemporaryDirectory(prefix="kyb-") as directory:
        gpu = simulated.make(Path(directory) / "gpu", size_bytes=max(64 * MIB, simulated_bytes))
        try:
            yield simulated.environment([gpu], base)
        finally:
            simulated.remove(gpu.path)


@dataclass(frozen=True, slots=True)
class Alone:
    """A server that ran alone. Seconds."""

    ready_s: float
    """From the start of its process until it listened, its weights in VRAM."""
    told: tuple[Told, ...]
    """What it was asked first, then all of it again `repeat` times."""
    answers: Mapping[str, str]
    """By prompt."""
    unstable: int
    """Answers that were others the next time: then there is nothing to compare with."""


def ask_alone(fleet: Fleet, model: str, asks: Sequence[Ask], *, start_s: float, repeat: int = 1) -> Alone:
    """Start the server, ask it one thing after the other, end it.

    Raises:
        KybernateError: it doesn't start, or leaves a request unanswered.
    """
    with (
        surroundings(simulated_bytes=fleet.model_bytes + ROOM_BYTES if fleet.simulated else None) as environment,
        Plain(fleet.server(model, port=0), environment=environment) as server,
    ):
        port = port_of(server.wait("ready ", timeout_s=start_s))
        ready_s = time.perf_counter() - server.began
        told = asyncio.run(in_turn(f"http://127.0.0.1:{port}", list(asks) * (1 + repeat)))
    if failed := next((each for each in told if not each.complete), None):
        raise KybernateError(f"{model} alone left a request unanswered: {failed.status} {failed.error}")
    answers = {each.ask.prompt: each.text for each in told[: len(asks)]}
    unstable = sum(answers[each.ask.prompt] != each.text for each in told)
    return Alone(ready_s=ready_s, told=tuple(told), answers=answers, unstable=unstable)


def train_alone(fleet: Fleet, *, timeout_s: float) -> tuple[str, float]:
    """The training job's result without interruption, and the seconds it took, its start included. Raises KybernateError."""
    with (
        surroundings(simulated_bytes=fleet.training_bytes + ROOM_BYTES if fleet.simulated else None) as environment,
        Plain(fleet.training(paced=False), environment=environment) as training,
    ):
        result = training.wait("result ", timeout_s=timeout_s)
        return result, time.perf_counter() - training.began


def port_of(ready: str) -> int:
    """Of a server's `ready port=N ...`."""
    return int(ready.split()[1].partition("=")[2])
