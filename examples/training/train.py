"""A training loop like any other: it knows nothing of being paused."""

from __future__ import annotations

import torch

STEPS = 100_000


def main() -> None:
    torch.manual_seed(1)
    layers = [layer for _ in range(48) for layer in (torch.nn.Linear(8192, 8192), torch.nn.GELU())]
    network = torch.nn.Sequential(*layers).cuda()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    for step in range(STEPS):
        inputs = torch.randn(512, 8192, device="cuda")
        loss = torch.nn.functional.mse_loss(network(inputs), inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.6f}", flush=True)


if __name__ == "__main__":
    main()
