"""What kybernate.yaml says that a program will need, laid on the GPUs that it will see. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kybernate.model.types import GpuUuid
from kybernate.settings.specs import Served

VISIBLE = "CUDA_VISIBLE_DEVICES"


def hinted(served: Served, gpus: Sequence[GpuUuid], visible: str | None) -> dict[GpuUuid, int]:
    """Bytes by GPU; the first size is of the first GPU that the program sees. Empty: nothing was said, or nobody has a GPU.

    A size for which it sees no GPU is laid on one that isn't there, so that it fits nowhere.

    Args:
        gpus: the agent's, in its order.
        visible: the agent's own CUDA_VISIBLE_DEVICES.
    """
    if not gpus:
        return {}
    seen = _seen(gpus, served.program.environment.get(VISIBLE), visible)
    targets = [*seen, *(GpuUuid(f"no GPU {i}") for i in range(len(seen), len(served.vram)))]
    return {uuid: size for uuid, size in zip(targets, served.vram, strict=False) if size}


def least_gpus(served: Sequence[Served]) -> int:
    """How many GPUs a machine has at least, by what its configuration says."""
    named = [_words(each.program.environment.get(VISIBLE, "")) for each in served]
    highest = max((int(word) for words in named for word in words if word.isdecimal()), default=0)
    return max(1 + highest, *(len(each.vram) for each in served), 1)


def _seen(gpus: Sequence[GpuUuid], own: str | None, visible: str | None) -> list[GpuUuid]:
    """As the driver reads the variable: what comes after a word that names none isn't seen either."""
    if own is None:
        return list(gpus)
    numbers = [str(i) for i in range(len(gpus))] if visible is None else _words(visible)
    found: list[GpuUuid] = []
    for word in _words(own):
        indices = [i for i, uuid in enumerate(gpus) if (i < len(numbers) and numbers[i] == word) or _is(uuid, word)]
        if len(indices) != 1:
            break
        found.append(gpus[indices[0]])
    return found


def _words(variable: str) -> list[str]:
    return [word.strip() for word in variable.split(",") if word.strip()]


def _is(uuid: GpuUuid, word: str) -> bool:
    return word.startswith("GPU-") and uuid.startswith(word)
