"""What crosses the REST API about serving: models and jobs, their queues, what switches cost, who had the GPU.

As in api.py: sizes in bytes, times in seconds, points in time in seconds since the epoch.
"""

# ruff: noqa: RUF012 - pydantic copies defaults; ruff knows that only of direct subclasses

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kybernate.model.api import Answer, Name, Request
from kybernate.model.types import Class, Phase, ServedKind, WorkloadState


class CostView(Answer):
    """Seconds that a switch takes, by what was measured lately."""

    leave_s: float
    come_s: float
    """From where it lies now; a cold start, or a clone, where it doesn't run."""
    come_staged_s: float
    """From RAM, after it was staged."""


class UsageView(Answer):
    """Who had the GPU for how long. Survives restarts of the agent."""

    resident_s: float = 0.0
    """Held VRAM and could compute."""
    busy_s: float = 0.0
    """Of that, worked on requests; of a job, all of it."""
    byte_s: float = 0.0
    """VRAM times seconds: what shares are made of."""


class ServedView(Answer):
    """A model or a job of kybernate.yaml, or another workload that competes for VRAM."""

    name: str
    kind: ServedKind
    """`model`, `job`, or `other`: a workload that somebody started by `run` or `clone`."""
    klass: Class
    """`interactive` or `batch`."""
    priority: int
    state: WorkloadState | Literal["stopped"]
    """As in `ps`, or `stopped` where a model or job doesn't run."""
    phase: Phase
    """To the policy: `resident`, `away`, `absent`, `coming` or `leaving`."""
    tier: str | None = None
    """`vram` while it runs, else where it lies; None while it doesn't run."""
    open: bool = False
    """Requests are forwarded to it now."""
    waiting: int = 0
    """Requests held for it."""
    oldest_wait_s: float | None = None
    in_flight: int = 0
    begun: int = 0
    """Requests that came for it since the activator started."""
    ended: int = 0
    """Answered in whole, of those."""
    service_s: float | None = None
    """How long it works on one, moving average."""
    bytes: int = 0
    """VRAM that it holds or needs back, on all GPUs; 0 where that isn't known."""
    cost: CostView
    staged: bool = False
    wanted: bool = False
    """Shall run without being asked."""
    pinned: bool = False
    """Stays as it is until a person says otherwise, or a failure is over."""
    reason: str = ""
    """Why it waits or can't be had, in words of the policy; empty when there is nothing to say."""
    failing: bool = False
    """It isn't there because it could not come, or ended, the last time; `reason` says why."""
    again_at: float | None = None
    """When one that failed may start again, seconds since 1970. None: now, or it isn't to."""
    last_use: float = 0.0
    usage: UsageView = UsageView()
    names: list[str] = []
    """What requests may call it in their `model` field."""
    hosts: list[str] = []
    paths: list[str] = []
    port: int | None = None


class ClassView(Answer):
    """All workloads of a class together."""

    klass: str
    usage: UsageView
    share: float
    """Of the VRAM times seconds that was handed out since the agent keeps account, 0 to 1."""


class WorkerView(Answer):
    """A process of the activator."""

    worker: int
    pid: int
    connected: bool
    """It talks to the agent, and clients can connect to it."""


class StagingView(Answer):
    budget_bytes: int
    used_bytes: int
    """By what was staged ahead and waits for its resume."""
    hits: int
    """Resumed after it was staged."""
    misses: int
    """Staged, and given up again."""


class ServingView(Answer):
    """Everything at one moment."""

    time: float
    listen: str | None
    """Where the activator answers; None: there is none."""
    policy: str
    served: list[ServedView]
    classes: list[ClassView]
    workers: list[WorkerView]
    staging: StagingView
    notes: list[str] = []
    """What isn't as the configuration wants it, and why."""
    advice: list[str] = []
    """What in the configuration is most likely not meant so, each with the setting's name first."""


class PlanRequest(Request):
    """What would be done now if there were requests for these models?"""

    models: Annotated[list[Name], Field(max_length=1000)] = []


class ActionView(Answer):
    """One thing that would be done."""

    action: str
    """`bring`, `leave`, `stage` or `unstage`."""
    workload: str
    victims: list[str] = []
    """Paused for it."""
    preempt: bool = False
    """Victims are cut off from requests in flight."""
    why: str = ""
    expected_s: float | None = None
    """Until it would be there, its victims' leaving included."""


class PlanView(Answer):
    policy: str
    actions: list[ActionView]
    reasons: dict[str, str]
    """Of those who would want to come and may not yet."""
    asked: list[str] = []
    """For these a request was imagined."""
    answered: list[str] = []
    """Of those, who would answer at once."""
    refused: dict[str, str] = {}
    """Of those, whose request would be answered with an error, and with which."""


class ReloadView(Answer):
    """What a new reading of the configuration changed."""

    added: list[str] = []
    removed: list[str] = []
    changed: list[str] = []
    restarting: list[str] = []
    """Started anew once nobody needs them: how they are run has changed."""
    settings: list[str] = []
    """Of `activator` and `serving`, by their names in the file; they hold from now on."""
    notes: list[str] = []
    """What changed in the file and takes more than a reload."""
    advice: list[str] = []
    """What in the file is most likely not meant so."""
