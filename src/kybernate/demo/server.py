"""A model server without a framework: `python -m kybernate.demo.server --port P --bytes N --name M`.

It holds N bytes of "weights" in VRAM through the driver API, so it runs on the simulated driver, too. A token is a hash over what
it reads there: over one answer, some bytes of every 2 MiB of the weights, and the state of this generation, which lies
in VRAM as well and is read back for each token. So an answer is the same every time, and a different one if anything in VRAM
isn't what it was. With a GPU and torch, `torch_server.py` is a real transformer behind the same front.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import queue
import sys
import threading
import time
from collections.abc import Iterator

from kybernate.benchmarks.driver import Driver, DriverError
from kybernate.benchmarks.workload import BLOCK_BYTES, Memory, Words, WordsByKernel, WordsByMemset
from kybernate.demo import openai

SAMPLE_BYTES = 64
DIGEST_BYTES = 16
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


class Weights:
    """The model: weights, and room for the state of `slots` generations at once."""

    def __init__(self, *, name: str, size: int, seed: int, slots: int, seconds_per_token: float) -> None:
        self.name = name
        self._driver = Driver()
        self._thread = threading.local()
        self._seconds_per_token = seconds_per_token
        words: Words
        try:
            words = WordsByKernel(self._driver)
        except (DriverError, OSError, AttributeError):
            words = WordsByMemset(self._driver)
        state_bytes = max(BLOCK_BYTES, slots * SAMPLE_BYTES)
        memory = Memory(driver=self._driver, words=words, size=size - state_bytes, seed=seed)
        self._blocks = [piece.pointer + at for piece in memory.pieces for at in range(0, piece.size, BLOCK_BYTES)]
        state = self._driver.allocate(state_bytes)
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for k in range(slots):
            self._slots.put(state + k * SAMPLE_BYTES)

    def generate(self, prompt: str, count: int) -> Iterator[str]:
        slot = self._slots.get()
        try:
            self._enter()
            self._write(slot, hashlib.blake2b(prompt.encode(), digest_size=DIGEST_BYTES).digest())
            due = time.monotonic()
            for k in range(count):
                yield _word(self._token(slot, self._blocks[k::count] or self._blocks[:1]))
                due += self._seconds_per_token
                if (left := due - time.monotonic()) > 0:
                    time.sleep(left)
        finally:
            self._slots.put(slot)

    def embed(self, text: str) -> list[float]:
        slot = self._slots.get()
        try:
            self._enter()
            self._write(slot, hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest())
            return [byte / 127.5 - 1 for byte in self._token(slot, self._blocks)]
        finally:
            self._slots.put(slot)

    def _enter(self) -> None:
        if not getattr(self._thread, "entered", False):
            self._driver.enter_thread()
            self._thread.entered = True

    def _token(self, slot: int, blocks: list[int]) -> bytes:
        before = self._read(slot, DIGEST_BYTES)
        at = int.from_bytes(before, "little") % (BLOCK_BYTES // SAMPLE_BYTES) * SAMPLE_BYTES
        hashed = hashlib.blake2b(before, digest_size=DIGEST_BYTES)
        for block in blocks:
            hashed.update(self._read(block + at, SAMPLE_BYTES))
        after = hashed.digest()
        self._write(slot, after)
        return after

    def _read(self, pointer: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        self._driver.call("cuMemcpyDtoH_v2", buffer, pointer, size)
        return buffer.raw

    def _write(self, pointer: int, content: bytes) -> None:
        self._driver.call("cuMemcpyHtoD_v2", pointer, content, len(content))


def _word(digest: bytes) -> str:
    """Something to say for a number."""
    syllables = [
        _CONSONANTS[byte % len(_CONSONANTS)] + _VOWELS[byte // len(_CONSONANTS) % len(_VOWELS)] for byte in digest[:3]
    ]
    return "".join(syllables) + " "


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo_server", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True, help="0: a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--bytes", type=int, required=True, help="VRAM it takes, at least 4 MiB")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--seed", type=int, default=1, help="other weights, other answers")
    parser.add_argument("--slots", type=int, default=8, help="requests it works on at once; more wait")
    parser.add_argument("--seconds-per-token", type=float, default=0.0)
    options = parser.parse_args(arguments)
    size = options.bytes // BLOCK_BYTES * BLOCK_BYTES
    if size < 2 * BLOCK_BYTES:
        parser.error("--bytes: at least 4 MiB")
    model = Weights(
        name=options.name,
        size=size,
        seed=options.seed,
        slots=options.slots,
        seconds_per_token=options.seconds_per_token,
    )
    openai.serve(model, host=options.host, port=options.port, ready=f"bytes={size} name={options.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
