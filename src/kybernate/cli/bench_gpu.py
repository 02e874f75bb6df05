"""A helper process of the benchmarks: `python -m kybernate.cli.bench_gpu link BYTES` or `... stock PID`.

A process of its own, because what it uses of the GPU must be gone when it ends, and because on the simulated driver it
needs that driver's directory in its library path from its start.

- `link`: copies between VRAM and pinned host memory with nothing else going on; prints a JSON with GiB/s.
- `stock`: the driver's own checkpoint of another process, with nothing of ours; takes `pause` and `resume` on stdin and
  answers each with the seconds it took.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p

from kybernate.cli.bench_driver import Driver, DriverError

GIB = 1 << 30


class LockArguments(ctypes.Structure):
    """CUcheckpointLockArgs."""

    _fields_ = [("timeout_ms", c_uint), ("reserved0", c_uint), ("reserved1", c_uint64 * 7)]


def link(size_bytes: int, *, repeat: int = 5) -> dict[str, float]:
    """Rates of single copies in GiB/s, medians: `out` (VRAM to host) and `in`."""
    driver = Driver()
    cuda = driver.library
    device = driver.allocate(size_bytes)
    host = c_void_p()
    cuda.cuMemHostAlloc.argtypes, cuda.cuMemHostAlloc.restype = [c_void_p, c_size_t, c_uint], c_int
    driver.call("cuMemHostAlloc", byref(host), size_bytes, 0)
    rates: dict[str, list[float]] = {"out": [], "in": []}
    for turn in range(repeat + 1):
        for direction in ("out", "in"):
            started = time.perf_counter()
            if direction == "out":
                driver.call("cuMemcpyDtoH_v2", host, device, size_bytes)
            else:
                driver.call("cuMemcpyHtoD_v2", device, host, size_bytes)
            driver.call("cuCtxSynchronize")
            if turn:  # The first one of each is not counted: it touches the memory.
                rates[direction].append(size_bytes / GIB / (time.perf_counter() - started))
    return {direction: statistics.median(values) for direction, values in rates.items()}


def stock(pid: int) -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    for name in ("Lock", "Checkpoint", "Restore", "Unlock"):
        function = getattr(cuda, f"cuCheckpointProcess{name}")
        function.argtypes, function.restype = [c_int, c_void_p], c_int

    def call(name: str, arguments: object = None) -> None:
        status = getattr(cuda, f"cuCheckpointProcess{name}")(pid, arguments)
        if status:
            raise DriverError(f"cuCheckpointProcess{name}: error {status}")

    if status := cuda.cuInit(0):
        raise DriverError(f"cuInit: error {status}")
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        if line.strip() == "pause":
            call("Lock", byref(LockArguments(timeout_ms=30_000)))
            call("Checkpoint")
        elif line.strip() == "resume":
            call("Restore")
            call("Unlock")
        print(f"{time.perf_counter() - started:.6f}", flush=True)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["link", size]:
            print(json.dumps(link(int(size))))
        case ["stock", pid]:
            stock(int(pid))
        case _:
            print("usage: bench_gpu link BYTES | stock PID", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
