"""What every test program shares: the endless loop, its words on stdout, and a sequence with a closed formula.

A program prints `step N` while it works, `MISMATCH ...` (status 1) when the GPU holds anything but what the closed
formula says, `setup: ...` (status 3) when this machine can't run it at all, and `exact steps=N` (status 0) when it was
told to end by SIGTERM and everything was right up to then. Standard library only: it is imported by programs of every
framework, and by children of them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

MASK = (1 << 32) - 1
MULTIPLIER = 1664525
INCREMENT = 1013904223
"""The step of a well-known linear congruential generator: every bit of every word changes, and a step lost shows."""
PRINT_EVERY_S = 0.02

os.environ["PYTHONUNBUFFERED"] = "1"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def mismatch(text: str) -> NoReturn:
    """End at once and without clean-up: what is left in memory is what a person will want to see."""
    say(f"MISMATCH {text}")
    os._exit(1)


def cannot_run(why: str) -> NoReturn:
    say(f"setup: {why}")
    os._exit(3)


def signed(value: int) -> int:
    """The same 32 bits as a signed number, for frameworks that have no unsigned type."""
    value &= MASK
    return value - (1 << 32) if value >> 31 else value


@dataclass(slots=True)
class Sequence:
    """Word i of an array after some steps of w = w * MULTIPLIER + INCREMENT, begun at w = i * slope + intercept.

    It stays linear in i (mod 2**32), so that two numbers on the CPU describe the whole array at any time.
    """

    slope: int
    intercept: int

    @classmethod
    def begin(cls, seed: int) -> Sequence:
        return cls(slope=(2654435761 + 2 * seed) & MASK | 1, intercept=(seed * 40503 + 12345) & MASK)

    def advance(self) -> None:
        self.slope = self.slope * MULTIPLIER & MASK
        self.intercept = (self.intercept * MULTIPLIER + INCREMENT) & MASK

    def word(self, index: int) -> int:
        return (index * self.slope + self.intercept) & MASK

    def total(self, count: int) -> int:
        """Sum of the first `count` words, mod 2**32."""
        return (count * (count - 1) // 2 * self.slope + count * self.intercept) & MASK


class Loop:
    """Steps until SIGTERM. Use: `for step in loop: ...`, then `loop.finish()`."""

    def __init__(self) -> None:
        self.steps = 0
        self.stopped = False
        self._printed = 0.0
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, signum: int, frame: object) -> None:
        self.stopped = True

    def __iter__(self) -> Iterator[int]:
        while not self.stopped:
            yield self.steps
            self.steps += 1
            self.report()

    def report(self, steps: int | None = None) -> None:
        now = time.monotonic()
        if now - self._printed >= PRINT_EVERY_S:
            self._printed = now
            say(f"step {self.steps if steps is None else steps}")

    def finish(self, *, note: str = "") -> None:
        say(f"exact steps={self.steps}{' ' + note if note else ''}")
