"""The load of `bench/overhead.py`: does what the lines of a commands file say and answers with the seconds it took.

`ID ops`: 200,000 x a.add_(1) on 64x64; `ID training`: 300 steps of a small network with Adam; `ID alloc`: 10,000
cuMemAlloc/cuMemFree pairs of 4 MiB; `ID alloc-large`: 1,000 of 64 MiB, which the library keeps none of. It runs under the
interpreter that has PyTorch, so of ours it imports only what needs nothing but Python.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from kybernate.benchmarks.commands import obey

OPS = 200_000
TRAINING_STEPS = 300
PAIRS = 10_000
PAIR_BYTES = 4 << 20
LARGE_PAIRS = 1_000
LARGE_PAIR_BYTES = 64 << 20


class Load:
    """Everything is made on first use, so that `alloc` alone needs no PyTorch."""

    def __init__(self, *, scale: float) -> None:
        self._scale = scale
        self._training = None

    def ops(self) -> float:
        import torch

        count = max(1, int(OPS * self._scale))
        a = torch.zeros(64, 64, device="cuda")
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(count):
            a.add_(1)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        if not bool((a == count).all().item()):
            raise SystemExit("MISMATCH the small operators' result is wrong")
        return seconds

    def training(self) -> float:
        import torch

        if self._training is None:
            torch.manual_seed(1)
            model = torch.nn.Sequential(
                torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 1024), torch.nn.LayerNorm(1024)
            ).cuda()
            self._training = (
                model,
                torch.optim.Adam(model.parameters(), lr=1e-4),
                torch.randn(256, 1024, device="cuda"),
                torch.randn(256, 1024, device="cuda"),
            )
        model, optimizer, inputs, targets = self._training
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(max(1, int(TRAINING_STEPS * self._scale))):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    def alloc(self, pairs: int = PAIRS, size: int = PAIR_BYTES) -> float:
        cuda = ctypes.CDLL("libcuda.so.1")
        cuda.cuMemAlloc_v2.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        cuda.cuMemFree_v2.argtypes = [ctypes.c_uint64]
        context, device, pointer = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_uint64()
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
            raise SystemExit("setup: no CUDA device")
        cuda.cuDevicePrimaryCtxRetain.argtypes = [ctypes.c_void_p, ctypes.c_int]
        cuda.cuCtxSetCurrent.argtypes = [ctypes.c_void_p]
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        cuda.cuCtxSetCurrent(context)
        place, failures = ctypes.byref(pointer), 0
        allocate, free = cuda.cuMemAlloc_v2, cuda.cuMemFree_v2
        started = time.perf_counter()
        for _ in range(max(1, int(pairs * self._scale))):
            failures += allocate(place, size)
            failures += free(pointer.value)
        seconds = time.perf_counter() - started
        if failures:
            raise SystemExit("MISMATCH an allocation failed")
        return seconds


def main(commands: Path, scale: float) -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    load = Load(scale=scale)
    work = {
        "ops": load.ops,
        "training": load.training,
        "alloc": load.alloc,
        "alloc-large": lambda: load.alloc(LARGE_PAIRS, LARGE_PAIR_BYTES),
    }
    print("ready", flush=True)
    done = obey(commands, lambda identity, kind, words: work[kind](), stopped=lambda: bool(stopped))
    print(f"exact steps={done}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
