"""What kybernate.yaml says of models and jobs, as plain values that the controller works with. Pure."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from kybernate.model.messages import Endpoint, Limits
from kybernate.model.types import TierName, WorkloadName
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

    def fingerprint(self, image: str | None) -> str:
        """Equal for equal programs, whatever agent asks."""
        said = [
            self.argv,
            self.directory,
            sorted(self.environment.items()),
            self.layers,
            self.network,
            self.user,
            image,
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


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


def _model(name: WorkloadName, said: ModelSettings) -> Served:
    program = _program(said)
    image = None if said.image is None else Image(said.image.name, said.image.take)
    limits = Limits(
        concurrency=said.limits.concurrency,
        queue=said.limits.queue,
        hold_s=said.limits.max_wait,
        stream_idle_s=said.limits.stream_idle,
        first_byte_s=said.limits.first_byte,
    )
    return Served(
        name=name,
        kind=Kind.MODEL,
        klass=said.klass,
        priority=said.priority,
        program=program,
        vram=said.vram or (),
        lowest_tier=said.lowest_tier,
        demote_after_s=said.demote_after,
        cold_start=said.cold_start,
        fingerprint=program.fingerprint(None if image is None else image.name),
        endpoint=Endpoint(
            model=name,
            port=said.port,
            names=tuple(dict.fromkeys((*said.names, *said.hidden_names))),
            hidden=said.hidden_names,
            hosts=said.hosts,
            paths=said.paths,
            health=said.health,
            limits=limits,
            rewrite_model=_told_name(name, said),
        ),
        probe=Probe(
            port=said.port,
            path=said.ready if isinstance(said.ready, str) else None,
            command=said.ready if isinstance(said.ready, tuple) else (),
            timeout_s=said.ready_timeout,
        ),
        eager=said.start is Start.EAGER,
        idle_s=said.idle,
        image=image,
    )


def _told_name(name: WorkloadName, said: ModelSettings) -> str | None:
    """What its server hears as its name. None: what the client said."""
    if said.rewrite_model is False:
        return None
    return said.rewrite_model or name


def _job(name: WorkloadName, said: JobSettings, zone: str | None) -> Served:
    program = _program(said)
    return Served(
        name=name,
        kind=Kind.JOB,
        klass=said.klass,
        priority=said.priority,
        program=program,
        vram=said.vram or (),
        lowest_tier=said.lowest_tier,
        demote_after_s=said.demote_after,
        cold_start=said.cold_start,
        fingerprint=program.fingerprint(None),
        schedule=parse_schedule(said.schedule, zone=zone),
        restart=said.restart,
    )


def _program(said: ModelSettings | JobSettings) -> Program:
    return Program(
        argv=said.command,
        directory=str(said.directory),
        environment=dict(said.environment),
        layers=tuple(str(layer) for layer in said.layers),
        network=said.network,
        user=said.user,
    )
