"""Measures the link between host and GPU: the limit that a pause or resume can reach at best.

Limits: uses memory of its own, so it needs `size_bytes` of VRAM and twice that of pinned host memory for the moment.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from kybernate.cuda.driver import Gpu, call
from kybernate.model.types import GIB


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """GiB/s, medians. `both` is the sum of both directions at once."""

    to_gpu: float
    to_host: float
    both: float
    size_bytes: int
    repeats: int


def measure(gpu: Gpu, *, size_bytes: int = GIB, repeats: int = 7) -> LinkLimits:
    """Copies between pinned host memory and VRAM, in one piece, `repeats` times each way.

    Raises:
        CudaError: the memory can't be had or the GPU failed.
    """
    with gpu.current():
        streams = [call("cuStreamCreate", 1) for _ in range(2)]
        device: list[int] = []
        host: list[int] = []
        try:
            for _ in range(2):
                device.append(int(call("cuMemAlloc", size_bytes)))
                host.append(int(call("cuMemHostAlloc", size_bytes, 0)))

            def to_gpu() -> None:
                call("cuMemcpyHtoDAsync", device[0], host[0], size_bytes, streams[0])

            def to_host() -> None:
                call("cuMemcpyDtoHAsync", host[1], device[1], size_bytes, streams[1])

            def rate(*copies: Callable[[], None]) -> float:
                seconds = []
                for _ in range(repeats + 1):
                    began = time.perf_counter()
                    for copy in copies:
                        copy()
                    for stream in streams:
                        call("cuStreamSynchronize", stream)
                    seconds.append(time.perf_counter() - began)
                return len(copies) * size_bytes / GIB / statistics.median(seconds[1:])  # the first one warms up

            return LinkLimits(
                to_gpu=rate(to_gpu),
                to_host=rate(to_host),
                both=rate(to_gpu, to_host),
                size_bytes=size_bytes,
                repeats=repeats,
            )
        finally:
            for address in device:
                call("cuMemFree", address)
            for address in host:
                call("cuMemFreeHost", address)
            for stream in streams:
                call("cuStreamDestroy", stream)
