"""What kybernate.yaml says of models and jobs, as plain values that the controller works with. Pure."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from kybernate.model.messages import Endpoint, Limits
from kybernate.model.types import TierName, WorkloadName, with_private_tmp
from kybernate.policy.node_state import Class
from kybernate.policy.schedule import Schedule, parse_schedule
from kybernate.settings import JobSettings, ModelSettings, Restart, Settings, Start


class Kind(enum.StrEnum):
    MODEL = "model"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class Program:
    """How it is run. What differs here takes a new start."""

    argv: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]
    layers: tuple[str, ...]
    network: str
    user: str | None
    io_uring: bool = False

    def fingerprint(self, image: str | None) -> str:
        """Equal for equal programs, whatever agent asks."""
        parts = [
            self.argv,
            self.directory,
            sorted(self.environment.items()),
            self.layers,
            self.network,
            self.user,
            image,
            *(["io_uring"] if self.io_uring else []),  # appended, so that nobody else's changes
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Probe:
    """When a started model may be asked."""

    port: int
    path: str | None
    command: tuple[str, ...]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Image:
    name: str
    take: bool


@dataclass(frozen=True, slots=True)
class Served:
    """A model or a job. Sizes in bytes, times in seconds."""

    name: WorkloadName
    kind: Kind
    klass: Class
    priority: int
    program: Program
    vram: tuple[int, ...]
    """What it needs on each GPU that it sees, from the first on, where nobody has seen it run yet. Empty: unknown."""
    lowest_tier: TierName
    demote_after_s: float | None
    cold_start: bool
    fingerprint: str
    # of models
    endpoint: Endpoint | None = None
    probe: Probe | None = None
    eager: bool = False
    idle_s: float | None = None
    image: Image | None = None
    # of jobs
    schedule: Schedule = field(default_factory=Schedule)
    restart: Restart = Restart.NEVER


def served_of(settings: Settings) -> dict[WorkloadName, Served]:
    """Everything that the file names, models first."""
    found: dict[WorkloadName, Served] = {}
    for name, model in settings.models.items():
        found[WorkloadName(name)] = _model(WorkloadName(name), model)
    for name, job in settings.jobs.items():
        found[WorkloadName(name)] = _job(WorkloadName(name), job, settings.serving.time_zone)
    return found


def _model(name: WorkloadName, model: ModelSettings) -> Served:
    image = None if model.image is None else Image(model.image.name, model.image.take)
    return dataclasses.replace(
        _base(name, Kind.MODEL, model, image=None if image is None else image.name),
        endpoint=_endpoint(name, model),
        probe=Probe(
            port=model.port,
            path=model.ready if isinstance(model.ready, str) else None,
            command=model.ready if isinstance(model.ready, tuple) else (),
            timeout_s=model.ready_timeout,
        ),
        eager=model.start is Start.EAGER,
        idle_s=model.idle,
        image=image,
    )


def _endpoint(name: WorkloadName, model: ModelSettings) -> Endpoint:
    return Endpoint(
        model=name,
        port=model.port,
        names=tuple(dict.fromkeys((*model.names, *model.hidden_names))),
        hidden=model.hidden_names,
        hosts=model.hosts,
        paths=model.paths,
        health=model.health,
        limits=Limits(
            concurrency=model.limits.concurrency,
            queue=model.limits.queue,
            hold_s=model.limits.max_wait,
            stream_idle_s=model.limits.stream_idle,
            first_byte_s=model.limits.first_byte,
        ),
        rewrite_model=_told_name(name, model),
    )


def _told_name(name: WorkloadName, model: ModelSettings) -> str | None:
    """What its server hears as its name. None: what the client said."""
    if model.rewrite_model is False:
        return None
    return model.rewrite_model or name


def _job(name: WorkloadName, job: JobSettings, zone: str | None) -> Served:
    return dataclasses.replace(
        _base(name, Kind.JOB, job, image=None),
        schedule=parse_schedule(job.schedule, zone=zone),
        restart=job.restart,
    )


def _base(name: WorkloadName, kind: Kind, settings: ModelSettings | JobSettings, *, image: str | None) -> Served:
    """What models and jobs have in common."""
    program = Program(
        argv=settings.command,
        directory=str(settings.directory),
        environment=dict(settings.environment),
        layers=with_private_tmp((str(layer) for layer in settings.layers), wanted=settings.private_tmp),
        network=settings.network,
        user=settings.user,
        io_uring=settings.io_uring,
    )
    return Served(
        name=name,
        kind=kind,
        klass=settings.klass,
        priority=settings.priority,
        program=program,
        vram=settings.vram or (),
        lowest_tier=settings.lowest_tier,
        demote_after_s=settings.demote_after,
        cold_start=settings.cold_start,
        fingerprint=program.fingerprint(image),
    )
