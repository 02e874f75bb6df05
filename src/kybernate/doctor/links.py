"""What the link to each GPU can do at best, so that a switch's rate means something.

Measured once, after the pool is made, with 128 MiB of VRAM for a moment; a full GPU is not measured. A simulated GPU proves no
speed: its link has the limit that was set for it, or none.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence

from kybernate.cuda.driver import Gpu
from kybernate.cuda.link import measure
from kybernate.cuda.simulated import LINK_VARIABLE
from kybernate.model.api_history import LinkView
from kybernate.model.errors import KybernateError
from kybernate.model.types import GIB, MIB

log = logging.getLogger(__name__)

_SIZE_BYTES = 64 * MIB
_REPEATS = 5


def look(gpus: Sequence[Gpu]) -> list[LinkView]:
    """Blocks for some tens of milliseconds a GPU."""
    return [_look(gpu) for gpu in gpus]


def _look(gpu: Gpu) -> LinkView:
    if gpu.simulated:
        rate = _number(os.environ.get(LINK_VARIABLE, ""))
        return LinkView(gpu=gpu.uuid, to_gpu=rate, to_host=rate, source="unknown" if rate is None else "simulated")
    try:
        limits = measure(gpu, size_bytes=_SIZE_BYTES, repeats=_REPEATS)
    except KybernateError as e:
        log.info("the link to GPU %s could not be measured: %s", gpu.index, e.message)
        return LinkView(gpu=gpu.uuid, source="unknown")
    return LinkView(gpu=gpu.uuid, to_gpu=limits.to_gpu * GIB, to_host=limits.to_host * GIB, source="measured")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value * GIB if 0 < value < math.inf else None
