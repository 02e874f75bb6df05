"""torch with the cudaMallocAsync backend: memory from the driver's own stream-ordered pool, which stays native."""

from program import Loop, cannot_run
from torch_common import DEVICE, allocator, run

allocator("backend:cudaMallocAsync")
loop = Loop()

import torch  # noqa: E402 - the allocator is chosen when torch is imported

if DEVICE == "cuda" and torch.cuda.get_allocator_backend() != "cudaMallocAsync":
    cannot_run(f"torch uses the allocator {torch.cuda.get_allocator_backend()}")
run(loop, mib=512)
loop.finish()
