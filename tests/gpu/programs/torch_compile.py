"""torch.compile: kernels made by Triton, loaded at run time; results compared bit by bit with the uncompiled function."""

import os
import tempfile
from pathlib import Path

# The workload's user may have no home directory to write to.
cache = Path(tempfile.mkdtemp(prefix="kyb-compile-"))
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")
os.environ["TRITON_CACHE_DIR"] = str(cache / "triton")

import torch  # noqa: E402 - the caches are named before torch is imported
from program import Loop, mismatch  # noqa: E402
from torch_common import DEVICE, MIB, Arrays, require_cuda, working_set_mib  # noqa: E402

loop = Loop()
require_cuda()
count = 4
arrays = Arrays(count=count, words=max(1024, working_set_mib(512) * MIB // 4 // count))


def mix(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((x ^ (y >> 3)) * 5 + (y & 0xFFFF)) ^ (x << 2)


def folded(x: torch.Tensor) -> torch.Tensor:
    return (x & 0x7FFF).sum(dtype=torch.int64)


compiled_mix = torch.compile(mix, dynamic=False)
compiled_folded = torch.compile(folded, dynamic=False)
for step in loop:
    which, other = step % count, (step + 1) % count
    arrays.advance(which)
    arrays.check(which, f"step {step}")
    x, y = arrays.tensors[which], arrays.tensors[other]
    if not torch.equal(compiled_mix(x, y), mix(x, y)):
        mismatch(f"step {step}: compiled elementwise kernel differs")
    if int(compiled_folded(x).item()) != int(folded(x).item()):
        mismatch(f"step {step}: compiled reduction differs")
for which in range(count):
    arrays.check(which, "at the end")
loop.finish(note=f"device={DEVICE}")
