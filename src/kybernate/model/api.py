"""What crosses the REST API: request bodies and answers, shared by the agent and the client.

Pydantic because this is an edge. Requests forbid unknown fields, so that a typing error is answered and not ignored;
answers ignore unknown fields, so that an older client reads a newer agent. All sizes in bytes, all times in
seconds; points in time are seconds since the epoch.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kybernate.model.errors import BadInput
from kybernate.model.types import Backend, Depth, WorkloadState

TIMEOUT_S_DEFAULT = 30.0
"""How long a pause waits for the GPU work in flight before it answers busy."""
GRACE_S_DEFAULT = 10.0
"""Between SIGTERM and SIGKILL, as other process managers do."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="a DNS label")]
Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make one from what a person gave.

        Raises:
            BadInput: it makes no sense; one line that names the value.
        """
        try:
            return cls(**values)
        except ValidationError as e:
            first = e.errors(include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"]).removesuffix("_s")
            problem = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
            raise BadInput(f"{where}: {str(first.get('input'))[:40]!r} {problem}") from e


class Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class RunRequest(Request):
    """Start a workload. It runs as the user on the other end of the socket."""

    name: Name
    argv: Annotated[list[Text], Field(min_length=1, max_length=4096)]
    directory: Annotated[Text, Field(pattern=r"^/", description="absolute working directory")]
    environment: dict[Text, Text] = {}
    backend: Backend = Backend.BROKER
    network: Annotated[str, Field(pattern="^(none|host)$")] = "none"
    """`none`: a network namespace of its own with loopback only; `host`: the host's."""
    isolated: bool | None = None
    """Namespaces of its own. None: where the agent may (it runs as root)."""


class PauseRequest(Request):
    depth: Depth = Depth.ZERO
    timeout_s: Seconds = TIMEOUT_S_DEFAULT


class ResumeRequest(Request):
    timeout_s: Seconds = TIMEOUT_S_DEFAULT
    """How long to wait for VRAM to become free."""


class StopRequest(Request):
    grace_s: Seconds = GRACE_S_DEFAULT
    remove: bool = False


class ExternalPauseRequest(Request):
    """A process Kybernate did not start: moved by the driver's own checkpoint."""

    pid: Annotated[int, Field(gt=1, lt=1 << 22)]
    timeout_s: Seconds = TIMEOUT_S_DEFAULT


class ExternalResumeRequest(Request):
    pid: Annotated[int, Field(gt=1, lt=1 << 22)]


class ErrorView(Answer):
    """Every answer that is not 2xx."""

    code: str
    message: str
    hint: str | None = None


class StepView(Answer):
    step: str
    seconds: float


class SwitchView(Answer):
    """What a pause or resume did."""

    workload: str
    operation: str
    depth: Depth
    backend: Backend
    seconds: float
    bytes_total: int = 0
    bytes_copied: int = 0
    bytes_clean: int = 0
    bytes_zero: int = 0
    steps: list[StepView] = []
    already: bool = False
    """Nothing was done: the workload was in that state before."""
    note: str | None = None
    """What else had to happen, for example which workloads made room."""


class OperationView(Answer):
    """What is being done to a workload just now."""

    kind: str
    seconds: float
    """Since it began."""
    expected_seconds: float | None = None
    """As long as it took the last time."""
    step: str | None = None
    bytes_done: int | None = None
    """Of a pause: given up; of a resume: back in VRAM. None where nothing is counted (the driver backend)."""
    bytes_total: int | None = None
    bytes_per_s: float | None = None
    seconds_left: float | None = None
    """At that rate; None before the first byte."""


class WorkloadView(Answer):
    name: str
    state: WorkloadState
    reason: str
    """Why it is in this state, in a few words."""
    since: float
    backend: Backend
    depth: Depth | None = None
    """Of the pause; None while it isn't paused."""
    external: bool = False
    """Not started by us: `pause --pid`."""
    argv: list[str] = []
    directory: str = ""
    uid: int = 0
    pids: list[int] = []
    resident_bytes: int = 0
    """Extents in VRAM now."""
    held_bytes: int = 0
    """Of a paused one: VRAM it gave up that isn't free, because a process keeps it."""
    host_copy_bytes: int = 0
    """Content held in the host pool at the last pause, zero chunks not counted."""
    dirty_bytes: int = 0
    """What the last pause had to copy."""
    last_use: float
    paused_by: str | None = None
    exit_status: int | None = None
    """As a shell shows it: 128 + N for signal N."""
    operation: OperationView | None = None
    last_pause: SwitchView | None = None
    last_resume: SwitchView | None = None


class WorkloadList(Answer):
    workloads: list[WorkloadView]


class GpuView(Answer):
    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    limit_bytes: int
    """What the agent hands out at most."""
    resident_bytes: int
    """Extents of all workloads."""
    simulated: bool


class PoolView(Answer):
    """The pinned host memory. Filled in the background after start-up."""

    size_bytes: int
    ready_bytes: int
    free_bytes: int


class NodeView(Answer):
    version: str
    pid: int
    started: float
    state_directory: str
    simulated: bool
    driver_version: str | None
    gpus: list[GpuView]
    pool: PoolView | None
    notes: list[str]
    """What this agent can't do here and how to mend it."""
    workloads: dict[str, int]
    """Number of workloads by state."""


class EventView(Answer):
    id: int
    time: float
    workload: str | None
    kind: str
    text: str
    data: dict[str, Any] = {}


class EventList(Answer):
    events: list[EventView]


class ExplainView(Answer):
    """Why a workload is in its state, and what can be done next."""

    workload: str
    state: WorkloadState
    text: str
    next_step: str
    events: list[EventView]


class StoppedView(Answer):
    """Answer of stop and remove."""

    workload: str
    exit_status: int | None
    removed: bool
