"""A training job without a framework: `python -m kybernate.demo.training --bytes N --steps K`.

Its state lies in VRAM alone: each step reads one block and the running sum from there, and what it writes back depends on every
step before. So its last line, `result steps=K sum=...`, is the same whether it was interrupted or not, and another one if a single
word had changed meanwhile. Words on stdout: `ready bytes=N`, `step K`, `result ...` (status 0). SIGTERM ends it without a
result (status 143). With a GPU and torch, `torch_training.py` trains a network.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import sys
import time

from kybernate.benchmarks.driver import Driver
from kybernate.benchmarks.workload import BLOCK_BYTES, Memory, WordsByMemset, say

SUM_BYTES = 32
SAY_S = 0.05
"""Seconds between two `step` lines at least."""


class Training:
    """State in blocks of 2 MiB; the running sum stands at the beginning of one more."""

    def __init__(self, *, size: int, seed: int) -> None:
        self._driver = Driver()
        memory = Memory(driver=self._driver, words=WordsByMemset(self._driver), size=size - BLOCK_BYTES, seed=seed)
        self._blocks = [piece.pointer + at for piece in memory.pieces for at in range(0, piece.size, BLOCK_BYTES)]
        self._sum = self._driver.allocate(BLOCK_BYTES)
        self._buffer = ctypes.create_string_buffer(BLOCK_BYTES)
        self._put(self._sum, hashlib.blake2b(str(seed).encode(), digest_size=SUM_BYTES).digest())

    def step(self, number: int) -> None:
        before = self._get(self._sum, SUM_BYTES)
        # The sum says which block is next, so a wrong one goes astray for good.
        block = self._blocks[(int.from_bytes(before[:8], "little") + number) % len(self._blocks)]
        hashed = hashlib.blake2b(before, digest_size=SUM_BYTES)
        hashed.update(self._get(block, BLOCK_BYTES))
        after = hashed.digest()
        self._driver.call("cuMemsetD32_v2", block, int.from_bytes(after[:4], "little"), BLOCK_BYTES // 4)
        self._put(block + int.from_bytes(after[4:6], "little") * SUM_BYTES, after)
        self._put(self._sum, after)

    def result(self) -> str:
        """Over everything."""
        hashed = hashlib.blake2b(self._get(self._sum, SUM_BYTES), digest_size=SUM_BYTES)
        for block in self._blocks:
            hashed.update(self._get(block, BLOCK_BYTES))
        return hashed.hexdigest()

    def _get(self, pointer: int, size: int) -> bytes:
        self._driver.call("cuMemcpyDtoH_v2", self._buffer, pointer, size)
        return ctypes.string_at(self._buffer, size)

    def _put(self, pointer: int, content: bytes) -> None:
        self._driver.call("cuMemcpyHtoD_v2", pointer, content, len(content))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo_training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bytes", type=int, required=True, help="VRAM it takes, at least 4 MiB")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds a step takes at least")
    options = parser.parse_args(arguments)
    size = options.bytes // BLOCK_BYTES * BLOCK_BYTES
    if size < 2 * BLOCK_BYTES:
        parser.error("--bytes: at least 4 MiB")
    training = Training(size=size, seed=options.seed)
    say(f"ready bytes={size}")
    said = 0.0
    for number in range(1, options.steps + 1):
        began = time.monotonic()
        training.step(number)
        if time.monotonic() - said >= SAY_S or number == options.steps:
            said = time.monotonic()
            say(f"step {number}")
        if (left := began + options.pace - time.monotonic()) > 0:
            time.sleep(left)
    say(f"result steps={options.steps} sum={training.result()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
