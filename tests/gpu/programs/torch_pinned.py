"""Pinned host memory and copies in both directions in flight all the time, checked on the GPU and on the CPU."""

import torch
from program import Loop, Sequence, mismatch, signed
from torch_common import DEVICE, MIB, Arrays, require_cuda, synchronize, working_set_mib

loop = Loop()
require_cuda()
words = max(1024, working_set_mib(768) * MIB // 4 // 6)
host_words = words // 4
pin = DEVICE == "cuda"
resident = Arrays(count=4, words=words)
host_in = [torch.empty(host_words, dtype=torch.int32, pin_memory=pin) for _ in range(2)]
host_out = [torch.empty(host_words, dtype=torch.int32, pin_memory=pin) for _ in range(2)]
device_in = [torch.empty(host_words, dtype=torch.int32, device=DEVICE) for _ in range(2)]
index = torch.arange(host_words, dtype=torch.int32)
streams = [torch.cuda.Stream() for _ in range(2)] if DEVICE == "cuda" else []


def formula(seed: int, device: str) -> torch.Tensor:
    sequence = Sequence.begin(seed)
    base = index if device == "cpu" else torch.arange(host_words, dtype=torch.int32, device=device)
    return base.mul(signed(sequence.slope)).add_(signed(sequence.intercept))


for step in loop:
    slot = step % 2
    host_in[slot].copy_(formula(step, "cpu"))
    if streams:
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(streams[0]):
            device_in[slot].copy_(host_in[slot], non_blocking=True)
            # Twenty more of the same, so that some copy is always on the way when a pause comes.
            for _ in range(20):
                device_in[slot].copy_(host_in[slot], non_blocking=True)
        with torch.cuda.stream(streams[1]):
            host_out[slot].copy_(resident.tensors[step % 4][:host_words], non_blocking=True)
    else:
        device_in[slot].copy_(host_in[slot])
        host_out[slot].copy_(resident.tensors[step % 4][:host_words])
    synchronize()
    if not torch.equal(device_in[slot], formula(step, DEVICE)):
        mismatch(f"step {step}: what was copied to the GPU differs")
    sequence = resident.sequences[step % 4]
    if not torch.equal(host_out[slot], index.mul(signed(sequence.slope)).add_(signed(sequence.intercept))):
        mismatch(f"step {step}: what was copied from the GPU differs")
    resident.advance(step % 4)
    resident.check((step + 1) % 4, f"step {step}")
for which in range(4):
    resident.check(which, "at the end")
loop.finish()
