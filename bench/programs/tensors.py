"""The process of bench/tiers.py: `tensors.py BYTES COMMANDS`: random int32 in VRAM that it can tell from any other.

Nothing of it shrinks and no two chunks are alike. Each tensor's content comes from a seed, so that all of it is made again and
compared bit by bit: `ID dirty FRACTION` gives a part new content, `ID verify` compares everything; each is answered by a line
`done ID ...`. It runs under the interpreter that has PyTorch, so of ours it imports only
what needs nothing but Python.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from kybernate.benchmarks.commands import obey

PIECE_BYTES = 1 << 30
SLICE_BYTES = 64 << 20
DEVICE = os.environ.get("KYB_PROGRAM_DEVICE", "cuda")
"""`cpu` for the tests of the tests."""


class Tensors:
    def __init__(self, size: int) -> None:
        sizes = [min(PIECE_BYTES, size - start) for start in range(0, size, PIECE_BYTES)]
        self._generator = torch.Generator(device=DEVICE)
        self._generations = [0] * len(sizes)
        self._pieces = [torch.empty(each // 4, dtype=torch.int32, device=DEVICE) for each in sizes]
        self._compared = torch.empty(min(SLICE_BYTES, size) // 4, dtype=torch.int32, device=DEVICE)
        self._count = 0
        self.dirty(1.0)

    def _slices(self, number: int) -> Iterator[torch.Tensor]:
        """Parts of one tensor; the generator stands where the part's content comes from."""
        for k, part in enumerate(self._pieces[number].split(SLICE_BYTES // 4)):
            self._generator.manual_seed((self._generations[number] * 100_003 + number) * 1_009 + k)
            yield part

    def _fill(self, into: torch.Tensor) -> torch.Tensor:
        return into.random_(-(2**31), 2**31 - 1, generator=self._generator)

    def dirty(self, fraction: float) -> None:
        self._count += 1
        for number in range(max(1, round(fraction * len(self._pieces)))):
            self._generations[number] = self._count
            for part in self._slices(number):
                self._fill(part)
        self._wait()

    def verify(self) -> None:
        """A slice at a time, so that it takes no memory worth mentioning."""
        for number in range(len(self._pieces)):
            for part in self._slices(number):
                fresh = self._fill(self._compared[: len(part)])
                if not torch.equal(part, fresh):
                    print(f"MISMATCH tensor {number}: {int((part != fresh).sum())} words differ", flush=True)
                    os._exit(1)

    @staticmethod
    def _wait() -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()


def main(size: int, commands: Path) -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    tensors = Tensors(size)
    print(f"ready bytes={size}", flush=True)

    def carry_out(identity: str, verb: str, words: Sequence[str]) -> None:
        if verb == "dirty":
            tensors.dirty(float(words[0]))
        elif verb == "verify":
            tensors.verify()
        else:
            raise SystemExit(f"unknown command {verb!r}")

    done = obey(commands, carry_out, stopped=lambda: bool(stopping))
    tensors.verify()
    print(f"exact steps={done}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
