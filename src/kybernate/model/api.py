"""What crosses the REST API: request bodies and answers, shared by the agent and the client.

Pydantic because this is an edge. Requests forbid unknown fields, so that a typing error is answered and not ignored;
answers ignore unknown fields, so that an older client reads a newer agent. All sizes in bytes, all times in
seconds; points in time are seconds since the epoch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kybernate.model.errors import BadInput
from kybernate.model.types import NAME_HINT, WORKLOAD_NAME, Backend, Depth, EndedBy, TierName, WorkloadState

TIMEOUT_S_DEFAULT = 30.0
"""How long a pause waits for the GPU work in flight before it answers busy."""
READY_S_DEFAULT = 600.0
"""A large model server takes minutes to load."""
GRACE_S_DEFAULT = 10.0
"""Between SIGTERM and SIGKILL, as other process managers do."""

Name = Annotated[str, Field(pattern=WORKLOAD_NAME, description="a DNS label")]
ImageName = Annotated[str, Field(pattern=WORKLOAD_NAME, description="an image's name: like a workload's")]
Directory = Annotated[str, Field(pattern=r"^/[^\x00]*$", description="an absolute path")]
Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False, strict=True)]
"""Of a request, as all that follow: `false` is no number, and 1 is no flag."""
Flag = Annotated[bool, Field(strict=True)]
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
            first = e.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]).removesuffix("_s")
            if first.get("ctx", {}).get("pattern") == WORKLOAD_NAME:
                what = "workload" if where == "name" else where
                raise BadInput(f"bad {what} name {str(first.get('input'))[:80]!r}", hint=NAME_HINT) from e
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
    isolated: Flag | None = None
    """Namespaces of its own. None: where the agent may (it runs as root)."""
    layers: Annotated[list[Directory], Field(max_length=64)] = []
    """Directories whose files it sees, but writes into a layer of its own that snapshots take along."""
    io_uring: Annotated[Flag, Field(description="let it use io_uring; while it does, it can't leave RAM")] = False
    cold_start: Flag = False
    """Start it anew when it is resumed and no copy of its state can be used any more."""


class PauseRequest(Request):
    depth: Depth = Depth.ZERO
    timeout_s: Seconds = TIMEOUT_S_DEFAULT
    tier: TierName = TierName.RAM
    """Where its state shall lie. Below RAM its processes end, and come back from the store."""
    connections: Annotated[str, Field(pattern="^(refuse|close)$")] | None = None
    """What to do about TCP connections that lead out of it, below RAM. None: as the settings say."""
    allow_changes: Flag | None = None
    """Below RAM: also where something that it may notice would be another when it is back. None: as the settings say."""


class SnapshotRequest(Request):
    """Take an image of a workload, which runs on afterwards if it ran before."""

    image: ImageName
    tier: TierName = TierName.NVME
    ready: Text | None = None
    """Wait until it is ready: `PORT/PATH` or `http://HOST:PORT/PATH` answers 2xx inside the workload's network."""
    ready_command: Annotated[list[Text], Field(max_length=4096)] = []
    """The same: a command, run among its processes as its user, ends with status 0."""
    ready_timeout_s: Seconds = READY_S_DEFAULT
    connections: Annotated[str, Field(pattern="^(refuse|close)$")] | None = None
    allow_changes: Flag | None = None


class CloneRequest(Request):
    """Make workloads from an image: NAME, or NAME-1 to NAME-COUNT."""

    name: Name
    count: Annotated[int, Field(ge=1, le=1000, strict=True)] | None = None
    timeout_s: Seconds = TIMEOUT_S_DEFAULT
    """How long the first one waits for VRAM; others stay paused until there is room."""


class MoveRequest(Request):
    tier: TierName
    keep: Flag = False
    """Leave the copy where it lay, too. A resume takes the other one where the first can't be used."""
    connections: Annotated[str, Field(pattern="^(refuse|close)$")] | None = None
    allow_changes: Flag | None = None


class VerifyRequest(Request):
    names: list[Text] = []
    """Snapshots, or workloads that lie in the store; none stands for everything."""
    tier: TierName | None = None
    content: Flag = True
    """Read and hash everything; without, only look whether it is there."""


class CollectRequest(Request):
    tier: TierName | None = None
    dry_run: Flag = False
    accept_loss: Flag = False
    """Take a tier that has lost all its snapshots (emptied, another disk or bucket) as a new one."""


class ResumeRequest(Request):
    timeout_s: Seconds = TIMEOUT_S_DEFAULT
    """How long to wait for VRAM to become free."""
    take_over: Flag = False
    """Of one that lies in a bucket: also if another agent, which is gone for good, said that it resumes it."""


class StopRequest(Request):
    grace_s: Seconds = GRACE_S_DEFAULT
    remove: Flag = False


class SignalRequest(Request):
    signal: Literal["SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGCONT"]


class ShutdownRequest(Request):
    stop: Flag = False
    """End all workloads first; if one of them can't be ended, the agent stays."""
    grace_s: Seconds = GRACE_S_DEFAULT
    """For each of them."""


class ExternalPauseRequest(Request):
    """A process Kybernate did not start: moved by the driver's own checkpoint."""

    pid: Annotated[int, Field(gt=1, lt=1 << 22, strict=True)]
    timeout_s: Seconds = TIMEOUT_S_DEFAULT


class ExternalResumeRequest(Request):
    pid: Annotated[int, Field(gt=1, lt=1 << 22, strict=True)]


class ErrorView(Answer):
    """Every answer that is not 2xx."""

    code: str
    message: str
    hint: str | None = None
    exit_status: int | None = None
    """Of the command line that meets it."""


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
    tier: TierName | None = None
    """Of a pause: where it lies now; of a resume: where it came from."""
    bytes_stored: int = 0
    """Really written into the store."""
    notes: list[str] = []
    """Of a pause below RAM: what will not be as it was when it comes back."""


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


class JobView(OperationView):
    """A long step of the store under way."""

    subject: str
    """The workload, snapshot or tier it is about."""


class JobList(Answer):
    jobs: list[JobView]


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
    """In VRAM now: extents, and `unmanaged_bytes`."""
    unmanaged_bytes: int = 0
    """What its processes hold of VRAM, or held before its pause, without our library: only the driver's checkpoint moves that."""
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
    ended_by: EndedBy | None = None
    """Who ended it, or is ending it: a person's `order`, the `agent`, or `itself`."""
    operation: OperationView | None = None
    last_pause: SwitchView | None = None
    last_resume: SwitchView | None = None
    tier: str | None = None
    """`vram` while it runs, else where its state lies: `ram`, `nvme`, `object`; None once it has ended."""
    snapshot: str | None = None
    staged: bool = False
    """Its content is in the pool again, ahead of its resume."""
    image: str | None = None


class WorkloadList(Answer):
    workloads: list[WorkloadView]


class GoneView(Answer):
    """In the stream: the agent knows that workload no more."""

    workload: str


class GpuView(Answer):
    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    limit_bytes: int
    """What the agent hands out at most."""
    resident_bytes: int
    """Of all workloads."""
    simulated: bool


class PoolView(Answer):
    """The pinned host memory. Filled in the background after start-up."""

    size_bytes: int
    ready_bytes: int
    free_bytes: int


class TierView(Answer):
    """A tier below RAM as the agent has it."""

    tier: TierName
    where: str
    """Directory or URL."""
    state: str
    """`ready`, `unused` (made at the first order that needs it), `opening` or `away`."""
    problem: str | None = None
    """Why it can't be used."""
    used_bytes: int = 0
    budget_bytes: int | None = None
    free_bytes: int | None = None
    snapshots: int = 0
    encrypted: bool = False


class SnapshotView(Answer):
    """A stored state: a workload's own (`parked`) or an image."""

    name: str
    kind: str
    workload: str
    """Which it is, or was taken of."""
    tiers: list[TierName]
    uid: int
    created: float
    size_bytes: int
    """Content of memory and files, zeros and what is shared with others included."""


class SnapshotList(Answer):
    snapshots: list[SnapshotView]
    problems: list[str] = []
    """Tiers that could not be asked, and snapshots that can't be read, in a line each."""


class StoredView(Answer):
    """What a snapshot, a move, a prefetch or a removal did."""

    subject: str
    operation: str
    tier: TierName | None = None
    snapshot: str | None = None
    seconds: float = 0.0
    bytes_total: int = 0
    bytes_stored: int = 0
    """Really written: without zeros and what was there already."""
    already: bool = False
    note: str | None = None
    notes: list[str] = []
    """What will not be as it was in a workload that comes out of it."""


class CloneView(Answer):
    workload: str
    state: WorkloadState
    seconds: float
    """From the order until it computed or, where it stays paused, was ready to."""
    note: str | None = None


class CloneList(Answer):
    image: str
    seconds: float
    clones: list[CloneView]


class ProblemView(Answer):
    text: str
    snapshots: list[str]
    """That can't be restored because of it."""


class VerifiedView(Answer):
    tier: TierName
    snapshots: int
    packs: int
    chunks: int
    bytes_read: int
    problems: list[ProblemView]


class VerifiedList(Answer):
    tiers: list[VerifiedView]


class CollectedView(Answer):
    tier: TierName
    packs: int
    removed: int
    compacted: int
    bytes_freed: int
    left: list[str]


class CollectedList(Answer):
    tiers: list[CollectedView]
    dry_run: bool


class TaskView(Answer):
    """A background task of the agent that has failed since its start."""

    task: str
    up: bool
    """It runs again, or had to run once only; false: it waits for its next start."""
    failures: int
    problem: str
    """The last one."""
    failed: float
    """When that was, in seconds since the epoch."""


class StateView(Answer):
    """The file system of the agent's directory. Where it is full nothing can be started, remembered or logged."""

    total_bytes: int
    free_bytes: int
    problem: str | None = None


class NodeView(Answer):
    version: str
    ready: bool = True
    """Every address answers: the socket, TCP where wanted, and the models' where there are any."""
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
    tiers: list[TierView] = []
    """Below RAM."""
    url: str | None = None
    """Where API and dashboard answer over TCP; None: nowhere."""
    token_file: str | None = None
    """The file, on the agent's machine, with the token that is needed there."""
    state: StateView | None = None
    tasks: list[TaskView] = []
    """Those that have failed since the agent's start."""
    workers_missing: list[int] = []
    """Numbers of the activator's processes to which clients should be able to connect, and can't."""
    without_library: list[str] = []
    """Workloads with processes that use a GPU without our library, and not by choice."""


class EventView(Answer):
    id: int
    time: float
    workload: str | None
    kind: str
    text: str
    data: dict[str, Any] = {}

    @property
    def said(self) -> str:
        """Kind and text; many texts begin with the kind's own word."""
        return self.text if self.text.startswith(f"{self.kind} ") else f"{self.kind}: {self.text}"


class EventList(Answer):
    events: list[EventView]


class ExplainView(Answer):
    """Why a workload is in its state, and what can be done next."""

    workload: str
    state: WorkloadState | None
    """None: a model or job that has not been started yet."""
    text: str
    next_step: str
    events: list[EventView]


class StoppedView(Answer):
    """Answer of stop and remove."""

    workload: str
    exit_status: int | None
    removed: bool
    stays: TierName | None = None
    """It lay there, without a process to end, and lies there still."""
    note: str | None = None
    """What there is to say of its end."""
