"""torch with expandable_segments: the process maps physical memory itself (cuMemCreate, cuMemMap)."""

from program import Loop, cannot_run
from torch_common import DEVICE, allocator, run

allocator("expandable_segments:True")
loop = Loop()

import torch  # noqa: E402 - the allocator is chosen when torch is imported

if DEVICE == "cuda":
    torch.empty(32 << 20, device="cuda")
    if not any(segment.get("is_expandable") for segment in torch.cuda.memory_snapshot()):
        cannot_run("torch made no expandable segment although asked to")
run(loop, mib=1024)
loop.finish()
