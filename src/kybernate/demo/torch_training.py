"""A real training job, of PyTorch alone: `python -m kybernate.demo.torch_training --bytes N --steps K`.

A deep network with Adam on data that come from the seed; weights, gradients and both moments lie in VRAM. Its last line,
`result steps=K loss=... sum=...`, has the loss and a sum over the bits of every weight, so it is the same only if every step was
exact. Words as of `training.py`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from typing import Any

BATCH = 256
COPIES = 4
"""Weight, gradient and two moments, of 4 bytes each."""
ACTIVATIONS = 4
"""Of a layer, kept for its gradient and made on the way."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo_torch_training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bytes", type=int, required=True, help="VRAM it takes")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds a step takes at least")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    # Without it cuBLAS may choose another way, and other roundings, from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch: Any = importlib.import_module("torch")
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    width = 4096 if options.bytes >= 1 << 30 else 256
    depth = max(1, options.bytes // (COPIES * 4 * width * width + ACTIVATIONS * 4 * BATCH * width))
    layers = [torch.nn.Linear(width, width, bias=False, device=options.device) for _ in range(depth)]
    network = torch.nn.Sequential(*[part for layer in layers for part in (layer, torch.nn.Tanh())])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)  # in place: no copies beside
    random = torch.Generator(device=options.device).manual_seed(options.seed)
    say(f"ready bytes={depth * width * width * 4 * COPIES}")
    said, loss = 0.0, torch.zeros(())
    for number in range(1, options.steps + 1):
        began = time.monotonic()
        inputs = torch.randn(BATCH, width, device=options.device, generator=random)
        optimizer.zero_grad(set_to_none=False)
        loss = torch.nn.functional.mse_loss(network(inputs), inputs.roll(1, dims=1))
        loss.backward()
        optimizer.step()
        if time.monotonic() - said >= 0.05 or number == options.steps:
            loss.item()
            said = time.monotonic()
            say(f"step {number}")
        if options.pace:
            time.sleep(max(0.0, began + options.pace - time.monotonic()))
    total = sum(int(weight.detach().view(torch.int32).sum(dtype=torch.int64)) for weight in network.parameters())
    say(f"result steps={options.steps} loss={float(loss.detach())!r} sum={total & (1 << 64) - 1:x}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
