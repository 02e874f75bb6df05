"""A DataLoader with four worker processes and pinned batches: a tree in which only one process uses the GPU."""

import gc
import signal

import torch
from program import Loop, Sequence, mismatch, signed
from torch.utils.data import DataLoader, Dataset
from torch_common import DEVICE, MIB, Arrays, require_cuda, working_set_mib

WORDS = 256 * 1024
ITEMS = 64


class Numbers(Dataset):  # type: ignore[type-arg]
    """Item k is a block of the sequence with seed k, so that the receiver can tell what it should have got."""

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, item: int) -> tuple[int, torch.Tensor]:
        return item, formula(item, "cpu")


def formula(seed: int, device: str) -> torch.Tensor:
    sequence = Sequence.begin(seed)
    fresh = torch.arange(WORDS, dtype=torch.int32, device=device)
    return fresh.mul_(signed(sequence.slope)).add_(signed(sequence.intercept))


def leave_stopping_to_parent(worker: int) -> None:
    """SIGTERM may come to the whole tree at once; a worker that ends by it would be an error for its loader."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def batches(loader: DataLoader):  # type: ignore[no-untyped-def, type-arg]
    while True:
        yield from loader


if __name__ == "__main__":
    loop = Loop()
    require_cuda()
    count = 4
    resident = Arrays(count=count, words=max(1024, working_set_mib(512) * MIB // 4 // count))
    loader = DataLoader(
        Numbers(),
        batch_size=4,
        shuffle=True,
        num_workers=4,
        pin_memory=DEVICE == "cuda",
        persistent_workers=True,
        worker_init_fn=leave_stopping_to_parent,
    )
    stream = batches(loader)
    for step in loop:
        items, blocks = next(stream)
        on_device = blocks.to(DEVICE, non_blocking=True)
        for row, item in enumerate(items.tolist()):
            if not torch.equal(on_device[row], formula(item, DEVICE)):
                mismatch(f"step {step}: batch item {item} differs")
        resident.advance(step % count)
        resident.check(step % count, f"step {step}")
        resident.check((step + 1) % count, f"step {step}, untouched array")
    for which in range(count):
        resident.check(which, "at the end")
    # Before the interpreter's own end, which would send the workers the signal they ignore and wait for them.
    stream.close()
    del stream, loader
    gc.collect()
    loop.finish()
