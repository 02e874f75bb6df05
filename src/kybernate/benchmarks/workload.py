"""The workload of benchmark, demo and fault tests: `python -m kybernate.benchmarks.workload --bytes N`.

It allocates N bytes of VRAM, fills every word with a formula of its place and generation, and then
- with --loop FRACTION: rewrites that part of its memory and compares all of it, step by step, until SIGTERM;
- with --commands FILE: does what lines of that file say, one after the other: `ID dirty FRACTION`, `ID verify`,
  `ID nothing`; each is answered by a line `done ID ...` on stdout.

Words on stdout: `ready bytes=N kernels=yes|no`, `step N`, `done ID ...`, `MISMATCH ...` (status 1), `exact steps=N`
(status 0). Nothing in it knows of pausing.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from kybernate.benchmarks.commands import obey
from kybernate.benchmarks.driver import Driver, DriverError, Kernels

MASK = (1 << 32) - 1
PIECE_BYTES = 1 << 30
"""One allocation; models are made of many, none larger than some GiB."""
BLOCK_BYTES = 2 << 20
"""Unit of dirtying, and of memset where there are no kernels."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def mismatch(text: str) -> NoReturn:
    say(f"MISMATCH {text}")
    os._exit(1)


@dataclass(slots=True)
class Piece:
    """One stretch of memory whose content is one formula."""

    pointer: int
    size: int
    seed: int
    generation: int = 0

    @property
    def formula(self) -> tuple[int, int]:
        """Slope (odd, so that every word differs from its neighbours) and intercept."""
        return (
            (2654435761 + 2 * self.seed + 40503 * 2 * self.generation) & MASK | 1,
            (self.seed * 2246822519 + self.generation * 3266489917 + 1) & MASK,
        )


class Words(Protocol):
    """How content is written and compared."""

    kernels: bool

    def write(self, piece: Piece) -> None: ...

    def wrong(self, pieces: list[Piece]) -> int: ...


class WordsByKernel:
    kernels = True

    def __init__(self, driver: Driver) -> None:
        self._kernels = Kernels(driver)

    def write(self, piece: Piece) -> None:
        self._kernels.fill(piece.pointer, piece.size // 4, *piece.formula)

    def wrong(self, pieces: list[Piece]) -> int:
        return self._kernels.wrong([(piece.pointer, piece.size // 4, *piece.formula) for piece in pieces])


class WordsByMemset:
    """Every block one value; compared on the CPU. Slow, and for small memories only."""

    kernels = False

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._buffer = ctypes.create_string_buffer(BLOCK_BYTES)

    @staticmethod
    def _blocks(piece: Piece) -> list[tuple[int, int, int]]:
        slope, intercept = piece.formula
        starts = range(0, piece.size, BLOCK_BYTES)
        return [
            (piece.pointer + start, min(BLOCK_BYTES, piece.size - start), (k * slope + intercept) & MASK or 1)
            for k, start in enumerate(starts)
        ]

    def write(self, piece: Piece) -> None:
        for pointer, size, value in self._blocks(piece):
            self._fill(pointer, size, value)

    def _fill(self, pointer: int, size: int, value: int) -> None:
        self._driver.call("cuMemsetD32_v2", pointer, value, size // 4)

    @staticmethod
    def _expected(size: int, value: int) -> bytes:
        return value.to_bytes(4, "little") * (size // 4)

    def wrong(self, pieces: list[Piece]) -> int:
        wrong = 0
        for piece in pieces:
            for pointer, size, value in self._blocks(piece):
                self._driver.call("cuMemcpyDtoH_v2", self._buffer, pointer, size)
                expected = self._expected(size, value)
                got = ctypes.string_at(self._buffer, size)
                if got != expected:
                    wrong += sum(got[i : i + 4] != expected[i : i + 4] for i in range(0, size, 4))
        return wrong


class NoiseByCopy(WordsByMemset):
    """The same with blocks that don't compress, as weights don't."""

    def _fill(self, pointer: int, size: int, value: int) -> None:
        self._driver.call("cuMemcpyHtoD_v2", pointer, self._expected(size, value), size)

    @staticmethod
    def _expected(size: int, value: int) -> bytes:
        return random.Random(value).randbytes(size)


class Memory:
    """All of the workload's memory."""

    def __init__(self, *, driver: Driver, words: Words, size: int, seed: int) -> None:
        self._driver = driver
        self._words = words
        self.pieces: list[Piece] = []
        self.generation = 0
        piece_bytes = min(PIECE_BYTES, max(BLOCK_BYTES, size // 8 // BLOCK_BYTES * BLOCK_BYTES))
        left = size
        while left > 0:
            this = min(piece_bytes, left)
            pointer = driver.allocate(this)
            self.pieces.append(Piece(pointer=pointer, size=this, seed=seed * 1009 + len(self.pieces)))
            left -= this
        for piece in self.pieces:
            words.write(piece)
        self.finish()

    def finish(self) -> None:
        self._driver.call("cuCtxSynchronize")

    def dirty(self, fraction: float, *, turn: int = 0) -> int:
        """Give `fraction` of the pieces (at least one, begun at piece `turn`) new content; returns their bytes."""
        self.generation += 1
        count = max(1, round(len(self.pieces) * fraction)) if fraction > 0 else 0
        changed = 0
        for k in range(count):
            piece = self.pieces[(turn + k) % len(self.pieces)]
            piece.generation = self.generation
            self._words.write(piece)
            changed += piece.size
        self.finish()
        return changed

    def verify(self, where: str) -> int:
        """Compare everything. Ends the program on a mismatch; returns the bytes compared."""
        if wrong := self._words.wrong(self.pieces):
            mismatch(f"{where}: {wrong} words differ")
        return sum(piece.size for piece in self.pieces)


class Stop:
    """Set by SIGTERM."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, signum: int, frame: object) -> None:
        self.asked = True


def loop(memory: Memory, stop: Stop, *, fraction: float, pace_s: float) -> int:
    steps = 0
    printed = 0.0
    while not stop.asked:
        memory.dirty(fraction, turn=steps)
        memory.verify(f"step {steps}")
        steps += 1
        if time.monotonic() - printed >= 0.02:
            printed = time.monotonic()
            say(f"step {steps}")
        if pace_s:
            time.sleep(pace_s)
    return steps


def follow(memory: Memory, stop: Stop, *, commands: Path) -> int:
    """Do what the commands file says, until SIGTERM."""

    def carry_out(identity: str, verb: str, words: Sequence[str]) -> None:
        if verb == "dirty":
            memory.dirty(float(words[0]))
        elif verb == "verify":
            memory.verify(f"command {identity}")
        elif verb != "nothing":
            mismatch(f"unknown command {verb!r}")

    return obey(commands, carry_out, stopped=lambda: stop.asked)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_workload", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--loop", type=float, metavar="FRACTION")
    mode.add_argument("--commands", type=Path, metavar="FILE")
    parser.add_argument("--noise", action="store_true", help="content that doesn't compress; without kernels")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds to rest between steps")
    options = parser.parse_args(arguments)
    stop = Stop()
    driver = Driver()
    words: Words
    try:
        words = NoiseByCopy(driver) if options.noise else WordsByKernel(driver)
    except (DriverError, OSError, AttributeError):
        words = WordsByMemset(driver)
    memory = Memory(driver=driver, words=words, size=options.bytes, seed=options.seed)
    say(f"ready bytes={options.bytes} kernels={'yes' if words.kernels else 'no'} gpu={driver.name.replace(' ', '-')}")
    if options.loop is not None:
        steps = loop(memory, stop, fraction=options.loop, pace_s=options.pace)
    else:
        steps = follow(memory, stop, commands=options.commands)
    memory.verify("at the end")
    say(f"exact steps={steps}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
