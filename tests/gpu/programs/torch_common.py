"""The load of the torch programs: arrays stepped in place, compared bit by bit with a freshly computed formula.

`KYB_PROGRAM_DEVICE=cpu` runs the same logic without a GPU, `KYB_PROGRAM_MIB` sets the working set; both for the tests of
the tests.
"""

from __future__ import annotations

import os
import random

from program import INCREMENT, MULTIPLIER, Loop, Sequence, cannot_run, mismatch, signed

DEVICE = os.environ.get("KYB_PROGRAM_DEVICE", "cuda")
MIB = 1 << 20


def working_set_mib(default: int) -> int:
    return int(os.environ.get("KYB_PROGRAM_MIB", default))


def allocator(options: str) -> None:
    """Choose torch's allocator. To be called before torch is imported; both names, since torch renamed the variable."""
    os.environ["PYTORCH_ALLOC_CONF"] = options
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = options


def require_cuda() -> None:
    import torch

    if DEVICE == "cuda" and not torch.cuda.is_available():
        cannot_run("torch sees no CUDA device")


def synchronize() -> None:
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()


class Arrays:
    """Some int32 arrays on the device, each with its own sequence."""

    def __init__(self, *, count: int, words: int, seed: int = 0) -> None:
        import torch

        self.words = words
        self.sequences = [Sequence.begin(seed + k) for k in range(count)]
        self.tensors = [self._formula(sequence) for sequence in self.sequences]
        self._torch = torch

    def _formula(self, sequence: Sequence):  # type: ignore[no-untyped-def]
        import torch

        fresh = torch.arange(self.words, dtype=torch.int32, device=DEVICE)
        return fresh.mul_(signed(sequence.slope)).add_(signed(sequence.intercept))

    def advance(self, which: int) -> None:
        self.tensors[which].mul_(MULTIPLIER).add_(INCREMENT)
        self.sequences[which].advance()

    def check(self, which: int, where: str) -> None:
        tensor, sequence = self.tensors[which], self.sequences[which]
        got = int(tensor.sum(dtype=self._torch.int64).item()) & 0xFFFFFFFF
        if got != sequence.total(self.words):
            mismatch(f"{where}: sum of array {which} is {got:#x}, expected {sequence.total(self.words):#x}")
        if not self._torch.equal(tensor, self._formula(sequence)):
            mismatch(f"{where}: array {which} has the right sum but wrong words")


def run(loop: Loop, *, mib: int) -> None:
    """The common load: step and check arrays, exact small matrix products, and an allocator kept busy."""
    import torch

    require_cuda()
    torch.backends.cuda.matmul.allow_tf32 = False
    count = 8
    arrays = Arrays(count=count, words=max(1024, working_set_mib(mib) * MIB // 4 // count))
    generator = torch.Generator().manual_seed(7)
    left = torch.randint(0, 8, (512, 512), generator=generator, dtype=torch.int64)
    right = torch.randint(0, 8, (512, 512), generator=generator, dtype=torch.int64)
    # Whole numbers far below 2**24: exact in float32 in whatever order the products are added.
    product = (left @ right).to(torch.float32).to(DEVICE)
    left_device, right_device = left.to(torch.float32).to(DEVICE), right.to(torch.float32).to(DEVICE)
    sizes = random.Random(11)
    kept: list[tuple[torch.Tensor, int]] = []
    for step in loop:
        which = step % count
        arrays.advance(which)
        arrays.check(which, f"step {step}")
        arrays.check((step * 5 + 3) % count, f"step {step}, untouched array")
        if not torch.equal(left_device @ right_device, product):
            mismatch(f"step {step}: matrix product differs")
        kept.append((torch.full((sizes.randrange(1, 24) * MIB // 4,), step, dtype=torch.int32, device=DEVICE), step))
        if len(kept) > 6:
            tensor, value = kept.pop(sizes.randrange(len(kept)))
            if not bool((tensor == value).all().item()):
                mismatch(f"step {step}: temporary of step {value} differs")
            del tensor
        if step % 200 == 199 and DEVICE == "cuda":
            torch.cuda.empty_cache()
    for which in range(count):
        arrays.check(which, "at the end")
