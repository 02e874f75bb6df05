"""A helper process of the benchmarks: `python -m kybernate.benchmarks.gpu link BYTES` or `... stock PID`.

A process of its own, because what it uses of the GPU must be gone when it ends, and because on the simulated driver it
needs that driver's directory in its library path from its start.

- `link`: what `kybernate.cuda.link` measures with nothing else going on; prints a JSON with GiB/s.
- `stock`: the driver's own checkpoint of another process, with nothing of ours; takes `pause` and `resume` on stdin and
  answers each with the seconds it took.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from ctypes import byref, c_int, c_uint, c_uint64, c_void_p

from kybernate.benchmarks.driver import DriverError


class LockArguments(ctypes.Structure):
    """CUcheckpointLockArgs."""

    _fields_ = [("timeout_ms", c_uint), ("reserved0", c_uint), ("reserved1", c_uint64 * 7)]


def link(size_bytes: int) -> dict[str, float]:
    """Rates in GiB/s: `out` (VRAM to host), `in`, and `both` at once together."""
    from kybernate.cuda.driver import open_gpus
    from kybernate.cuda.link import measure

    limits = measure(open_gpus()[0], size_bytes=size_bytes)
    return {"out": limits.to_host, "in": limits.to_gpu, "both": limits.both}


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
