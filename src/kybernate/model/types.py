"""The words, as types. See the glossary in ARCHITECTURE.md."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NewType

from kybernate.model.errors import BadInput

WorkloadName = NewType("WorkloadName", str)
HostPid = NewType("HostPid", int)
"""A process id as the agent's own pid namespace sees it."""
ExtentId = NewType("ExtentId", int)
GpuUuid = NewType("GpuUuid", str)
"""`GPU-xxxxxxxx-xxxx-...`, as nvidia-smi prints it."""

MIB = 1 << 20
GIB = 1 << 30
CHUNK_BYTES = 2 * MIB
"""Unit of hashing, of dedup and of pool slots; also the driver's allocation granularity."""

WORKLOAD_NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""Of a name, for descriptions of the API."""
_NAME = re.compile(WORKLOAD_NAME)
NAME_HINT = "use 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit"


class Depth(enum.StrEnum):
    """How much a pause gives back."""

    WARM = "warm"
    """Extents out, CUDA context stays (about 0.5 to 1 GB)."""
    ZERO = "zero"
    """Nothing left in VRAM."""


class Backend(enum.StrEnum):
    """How a workload's GPU state is moved."""

    BROKER = "broker"
    """Extents of the agent, copied by the agent; residual by the driver's checkpoint."""
    DRIVER = "driver"
    """The driver's own checkpoint alone: works on any process that already runs, slowly."""


class TierName(enum.StrEnum):
    """Where a paused workload, or a snapshot, lies."""

    RAM = "ram"
    """Processes frozen, content in the host pool: back in about a second."""
    NVME = "nvme"
    """In the store on the local disk; nothing of it runs."""
    OBJECT = "object"
    """In the store in a bucket; nothing of it runs."""


class LogFormat(enum.StrEnum):
    """What the agent's log looks like."""

    TEXT = "text"
    """Lines for people."""
    JSON = "json"
    """One JSON object a line, for machines."""


class WorkloadState(enum.StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    STOPPING = "stopping"
    EXITED = "exited"
    LOST = "lost"


class Class(enum.StrEnum):
    """What a workload is for."""

    INTERACTIVE = "interactive"
    """Somebody waits for its answers: comes before every batch workload."""
    BATCH = "batch"
    """Computes whenever nobody else needs the GPU: paused for an interactive one, never killed."""


class Phase(enum.StrEnum):
    """Where a workload is, as a policy sees it."""

    RESIDENT = "resident"
    """Runs, or could: it has its VRAM."""
    AWAY = "away"
    """Paused, in `tier`."""
    ABSENT = "absent"
    """Not started yet, or ended: coming is a cold start or a clone."""
    COMING = "coming"
    LEAVING = "leaving"


class ServedKind(enum.StrEnum):
    MODEL = "model"
    JOB = "job"
    OTHER = "other"
    """A workload that somebody started by `run` or `clone`."""


class EndedBy(enum.StrEnum):
    """Who ended a workload, or is ending it."""

    ORDER = "order"
    """A person's stop: it isn't started again by itself."""
    AGENT = "agent"
    """The agent's own stop: its program was changed in the file, it was not ready in time, or the file no longer names it."""
    ITSELF = "itself"
    """Its process ended, or somebody else killed it."""


def with_private_tmp(layers: Iterable[str], *, wanted: bool) -> tuple[str, ...]:
    """The layers, and one over /tmp where that is wanted: before the others, which may lie in it."""
    given = tuple(layers)
    return ("/tmp", *given) if wanted and "/tmp" not in given else given


def workload_name(text: str) -> WorkloadName:
    """Check a name: a DNS label, since it becomes a host name, a directory and a Kubernetes object.

    Raises:
        BadInput: the text is no DNS label.
    """
    if not _NAME.fullmatch(text):
        raise BadInput(
            f"bad workload name {text[:80]!r}",
            hint=NAME_HINT,
        )
    return WorkloadName(text)


@dataclass(frozen=True, slots=True)
class StepTiming:
    """One step of a pause or resume. `seconds` is wall time."""

    step: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SwitchReport:
    """What a pause or a resume did. All sizes in bytes, all times in seconds."""

    workload: str
    operation: str
    """`pause` or `resume`."""
    depth: Depth
    backend: Backend
    seconds: float
    bytes_total: int = 0
    """Content of all extents."""
    bytes_copied: int = 0
    """Really moved over the link."""
    bytes_clean: int = 0
    """Not copied: the host copy was already right."""
    bytes_zero: int = 0
    """Not copied: all zeros."""
    steps: tuple[StepTiming, ...] = field(default=())
