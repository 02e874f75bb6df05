"""A training job that takes its memory piece by piece while it computes: `growing.py --bytes N --piece P --steps K --seconds S`.

All of its state lies in VRAM. After each piece it trains on what it has, K steps that depend on every one before, and goes on S
seconds later. So its last line, `result sum=...`, is the same whether it was interrupted or not.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import time

from kybernate.benchmarks.driver import Driver
from kybernate.benchmarks.workload import BLOCK_BYTES, say
from kybernate.demo.training import SUM_BYTES, Training


class Growing(Training):
    def __init__(self) -> None:
        self._driver = Driver()
        self._blocks: list[int] = []
        self._buffer = ctypes.create_string_buffer(BLOCK_BYTES)
        self._sum = self._driver.allocate(BLOCK_BYTES)
        self._put(self._sum, hashlib.blake2b(b"growing", digest_size=SUM_BYTES).digest())

    def grow(self, size: int) -> None:
        """A workload that can't have it dies here, as those that people write do."""
        pointer = self._driver.allocate(size)
        self._driver.call("cuMemsetD32_v2", pointer, len(self._blocks) + 1, size // 4)
        self._blocks += [pointer + at for at in range(0, size - BLOCK_BYTES + 1, BLOCK_BYTES)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--piece", type=int, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.0)
    options = parser.parse_args()
    training, number = Growing(), 0
    for size in range(options.piece, options.bytes + 1, options.piece):
        training.grow(options.piece)
        say(f"holds {size}")
        for _ in range(options.steps):
            number += 1
            training.step(number)
        time.sleep(options.seconds)
    say(f"result sum={training.result()}")


if __name__ == "__main__":
    main()
