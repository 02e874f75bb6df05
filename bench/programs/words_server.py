"""The inference server of bench/tiers.py for the simulated driver: see serving.py. No PyTorch.

Its weights are random bytes in a file; an answer is made of words of them, read from VRAM.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from serving import main

from kybernate.benchmarks.driver import Driver

PIECE_BYTES = 2 << 20


def make(directory: Path, size: int) -> int:
    directory.mkdir(exist_ok=True)
    with (directory / "weights").open("wb") as file:
        for start in range(0, size, PIECE_BYTES):
            file.write(os.urandom(min(PIECE_BYTES, size - start)))
    return size


class Model:
    def __init__(self, directory: Path) -> None:
        self._driver = Driver()
        content = (directory / "weights").read_bytes()
        self._size = len(content)
        self._weights = self._driver.allocate(self._size)
        self._driver.call("cuMemcpyHtoD_v2", self._weights, content, self._size)

    def answer(self, prompt: int, tokens: int) -> list[int]:
        word = ctypes.c_uint32(prompt)
        made = []
        for _ in range(tokens):
            at = word.value * 4 % (self._size - 4) // 4 * 4
            self._driver.call("cuMemcpyDtoH_v2", ctypes.byref(word), self._weights + at, 4)
            made.append(word.value)
        return made


if __name__ == "__main__":
    main(make, Model)
