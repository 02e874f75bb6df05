"""The sections `models`, `jobs`, `activator` and `serving`: what is served, what computes in the gaps, and how they take turns."""

# ruff: noqa: RUF012 - pydantic copies defaults; ruff knows that only of direct subclasses

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kybernate.model.errors import BadInput
from kybernate.model.serving import Configure, Limits
from kybernate.model.types import TierName
from kybernate.node.policy.picture import Class
from kybernate.node.policy.registry import DEFAULT, policy_named
from kybernate.node.policy.schedule import parse_schedule
from kybernate.node.policy.settings import PolicySettings
from kybernate.node.settings.values import (
    AbsolutePath,
    Command,
    Duration,
    DurationOrOff,
    Environment,
    HostName,
    ListenAddress,
    ModelAlias,
    Origin,
    PathPrefix,
    Seconds,
    Section,
    Size,
    Sizes,
    UrlPath,
    WorkloadKey,
    server_url,
)

_NUMBERS = PolicySettings()


def _schedule(value: tuple[str, ...]) -> tuple[str, ...]:
    try:
        parse_schedule(value)
    except BadInput as e:
        raise ValueError(str(e)) from None
    return value


def _policy(value: str) -> str:
    try:
        policy_named(value)
    except BadInput as e:
        raise ValueError(str(e)) from None
    return value


def _zone(value: str | None) -> str | None:
    try:
        parse_schedule((), zone=value)
    except BadInput as e:
        raise ValueError(str(e)) from None
    return value


def _one_text(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _or_nothing(value: Any) -> Any:
    return 0 if value is False or value == "off" else value


def _off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return False if value == "off" else value


def _image(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Start(enum.StrEnum):
    EAGER = "eager"
    """With the agent; then it gives its place to others like any other."""
    ON_DEMAND = "on-demand"
    """At its first request."""


class Restart(enum.StrEnum):
    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class ProgramSettings(Section):
    """What models and jobs have in common: how they are run, and where they may go."""

    command: Command
    """Program and arguments, as a list or as one text that is split like a shell does; no shell is asked."""
    directory: AbsolutePath = Path("/")
    """Working directory."""
    environment: Environment = {}
    """Variables besides PATH, HOME, USER, the language, LD_LIBRARY_PATH and those of CUDA, which are the agent's."""
    layers: tuple[AbsolutePath, ...] = ()
    """Directories of which it sees the files, but writes into a layer of its own that snapshots take along."""
    network: Literal["none", "host"] = "none"
    """`none` is a network of its own with loopback only: the activator reaches its port all the same, and two may use one
    number. `host` is the host's."""
    user: Annotated[str, Field(min_length=1)] | None = None
    """Who runs it; only an agent that runs as root may choose. Left out: the agent's user."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Higher goes first, within its class."""
    vram: Sizes | None = None
    """What it will need, for the dry run and for its first start: others make room before it asks. One size is for the first GPU
    that it sees (all of the agent's, or those of a CUDA_VISIBLE_DEVICES in its `environment`); a list has one for each of them.
    Left out: known once it ran."""
    lowest: TierName = TierName.NVME
    """Deepest tier into which the agent may bring it by itself: `ram`, `nvme` or `object`."""
    sink: DurationOrOff = None
    """Seconds paused in RAM after which it goes to `lowest` by itself. `off`: as `agent.store.demote` says."""
    cold_start: bool = True
    """Start it anew should no copy of its state be usable. A model server has nothing to lose; a job may say no."""


class ImageSettings(Section):
    name: WorkloadKey
    """Gold image that it is started from, instead of `command`, as soon as there is one."""
    take: bool = False
    """Take that image when the model is ready for the first time."""


class ModelLimits(Section):
    concurrency: Annotated[int, Field(ge=0, le=1_000_000)] = Limits().concurrency
    """Requests sent to it at once; more are held. 0: no limit, since most servers batch better than a proxy guesses."""
    queue: Annotated[int, Field(ge=0, le=1_000_000)] = Limits().queue
    """Requests held for it at most, by all workers together; more are answered 429."""
    hold: Annotated[Seconds, Field(gt=0, le=86400)] = Limits().hold_s
    """Seconds one is held at most, then 503: longer than the slowest cold start."""
    stream_idle: DurationOrOff = Limits().stream_idle_s
    """Seconds after which a stream or websocket that is only open no longer counts as a request in flight, and is cut off when its
    model shall leave: nothing came in either direction but a websocket's pings, or the client took less than 16 KiB/s of what waits
    for it. `off`: it keeps its model. Longer than a model is silent between two words; counts from the first byte of the answer's
    body, since a long prompt takes longer than any word."""
    first_byte: DurationOrOff = Limits().first_byte_s
    """The same until the first byte of the answer's body: seconds a model may work on a prompt, or on an answer that isn't
    streamed, before its request no longer keeps it. `off`: however long."""


class ModelSettings(ProgramSettings):
    """A server that is woken by its requests."""

    port: Annotated[int, Field(ge=1, le=65535)]
    """Where it listens, on its 127.0.0.1."""
    ready: UrlPath | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """When it may be asked after a start: a path that answers 2xx, or a command (a list) that ends with status 0 among its
    processes. Left out: once something listens on `port`. A resumed one is ready at once."""
    ready_timeout: Annotated[Seconds, Field(gt=0, le=86400)] = 600.0
    """Seconds after which a start has failed: a large model takes minutes to load."""
    klass: Annotated[Class, Field(alias="class")] = Class.INTERACTIVE
    """`interactive`: somebody waits for its answers. `batch`: its requests may wait until nobody else needs the GPU."""
    names: tuple[ModelAlias, ...] = ()
    """Further names for the `model` field of requests."""
    hidden_names: tuple[ModelAlias, ...] = ()
    """Names that requests may use and `/v1/models` doesn't list; its own may be one of them."""
    hosts: tuple[HostName, ...] = ()
    """HTTP hosts that lead to it, whatever the path."""
    paths: tuple[PathPrefix, ...] = ()
    """Path prefixes that lead to it; they are not cut off."""
    health: UrlPath | None = None
    """Path of its health check, for probes that reach it by `hosts` or `paths`: answered for it while it is parked, so that they
    wake nobody."""
    rewrite_model: Annotated[
        ModelAlias | Literal[False] | None, BeforeValidator(_off, json_schema_input_type=str | Literal[False])
    ] = None
    """What its own server is told in the `model` field, in forms and queries, too: the name that it knows. Left out: its name here,
    by whichever of its names it was asked for. `off`: what the client said."""
    start: Start = Start.ON_DEMAND
    """`eager`: with the agent, so that the first request finds it parked at worst. `on-demand`: at its first request."""
    idle: DurationOrOff = None
    """Seconds without a request after which it gives its VRAM back even if nobody needs it. `off`: it stays, since coming back
    costs something and staying costs nothing."""
    image: Annotated[ImageSettings | None, BeforeValidator(_image, json_schema_input_type=str | ImageSettings)] = None
    """Start it from a gold image: its name, or `{name: NAME, take: true}` to have it taken at the first start."""
    limits: ModelLimits = ModelLimits()


class JobSettings(ProgramSettings):
    """A program that computes whenever nobody else needs the GPU, or in its hours."""

    klass: Annotated[Class, Field(alias="class")] = Class.BATCH
    """`batch` is paused for interactive ones, never killed."""
    vram: Sizes | None = None
    """What it will need. It comes only where so much is free or made free, and has it for itself while it runs, also what it has
    yet to ask for. One size is for the first GPU that it sees (all of the agent's, or those of a CUDA_VISIBLE_DEVICES in its
    `environment`); a list has one for each of them. Left out: known once it ran, and not kept for it."""
    schedule: Annotated[
        tuple[str, ...], BeforeValidator(_one_text, json_schema_input_type=str | list[str]), AfterValidator(_schedule)
    ] = ()
    """Windows in which it may run, each `[DAYS] HH:MM-HH:MM`; outside of them it is paused. Left out: always."""
    restart: Restart = Restart.NEVER
    """Whether it is started again when it ended: `never`, `on-failure` (status other than 0) or `always`."""
    cold_start: bool = False
    """Start it anew should no copy of its state be usable: from its own last checkpoint, if it writes any."""


class ActivatorTls(Section):
    certificate: AbsolutePath | None = None
    """PEM file with the certificate and those it was issued by. With it the activator speaks HTTPS only."""
    key: AbsolutePath | None = None
    """PEM file with its private key."""

    @model_validator(mode="after")
    def _both(self) -> ActivatorTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give certificate and key, or neither")
        return self


class ActivatorLimits(Section):
    body: Size = Configure().body_max
    """Largest body of a request, 413 above it; of one that came compressed and must name its model, decoded, too."""
    held: Annotated[int, Field(ge=1, le=10_000_000)] = Configure().held_max
    """Requests that one worker holds at most, all models together."""
    held_bytes: Size = Configure().held_bytes_max
    """What bodies may take in one worker's memory: of requests held, and of those in flight until their answer begins."""
    idle: Annotated[Seconds, Field(gt=0, le=86400)] = Configure().idle_s
    """Seconds after which a client's connection without a request is closed."""


class ActivatorSettings(Section):
    listen: ListenAddress = "127.0.0.1:8080"
    """Where requests come in: HOST:PORT. Only this machine, unless you say so: without `keys_file` whoever gets there may ask."""
    hosts: tuple[HostName, ...] | Literal["any"] | None = None
    """Names by which requests may come, besides localhost, the machine's own name, every IP address and the `hosts` of models:
    others are answered 421, so that no foreign page reaches the models by a name of its own (DNS rebinding). `any`: by whatever
    name. Left out: none besides these while it listens on the loopback without keys and TLS, else any."""
    origins: tuple[Origin, ...] | Literal["any"] = ()
    """Web pages that may ask from a browser (CORS), by their origins, as https://chat.example.org. They need a key like anybody
    else, but for the question whether they may ask. `any`: all, which takes `keys_file`. Left out: none."""
    upstream: bool = True
    """Whether paths outside of `/v1` lead to models, too: `/upstream/NAME/...` to all of a model's server, its administration
    included, and any path that names a model in a JSON body, a form or as `?model=`. Keys hold there as everywhere."""
    heartbeat: DurationOrOff = Configure().heartbeat_s
    """Seconds between the comments that a client is sent which waits for a stream of events (`"stream": true`), so that nothing on
    the way takes its silence for the end: 15 suits most. Whatever goes wrong behind the first comment comes as an event, not as
    a status, so clients don't try again by themselves. `off`: it is sent nothing until its model answers."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that share the port: one does some thousand requests a second."""
    tls: ActivatorTls = ActivatorTls()
    keys_file: AbsolutePath | None = None
    """YAML file of clients: `NAME: KEY`, or `NAME: {key: KEY, models: [MODEL]}`, or `sha256:` in place of `key:`. A key has 16
    characters at least, and nobody but the agent's user may read the file. Left out: nobody needs a key."""
    limits: ActivatorLimits = ActivatorLimits()
    traces: Annotated[str, AfterValidator(server_url)] | None = None
    """OTLP/HTTP collector of traces, as in http://127.0.0.1:4318: each request with its holding, its swap and its answer.
    What it must be told besides goes into the agent's environment, as $OTEL_EXPORTER_OTLP_HEADERS."""
    record: AbsolutePath | None = None
    """File to which each request that a model answered is appended, for `kybernate simulate --trace`: when it came, for whom, and
    how long the model worked on it; nothing of what was said. It grows until it is moved away. Left out: nothing is recorded."""
    grace: Duration = 30.0
    """Seconds that answers under way get to end when a worker is replaced or `kybernate down` ends it."""


class StagingSettings(Section):
    budget: Annotated[Size, BeforeValidator(_or_nothing, json_schema_input_type=int | str | Literal[False])] | None = (
        None
    )
    """Host pool that content may take which was read ahead of need. `off`: nothing is. Left out: a quarter of the pool."""
    min: Annotated[float, Field(ge=0, le=1)] = _NUMBERS.staging_min
    """Least probability of being the next to come that is worth a reading: it costs no GPU time."""
    horizon: Annotated[Seconds, Field(gt=0, le=86400)] = _NUMBERS.staging_horizon
    """Seconds staging looks ahead: host memory should not wait longer for a guess to come true."""


class ServingSettings(Section):
    policy: Annotated[str, AfterValidator(_policy)] = DEFAULT
    """Who decides who is paused for whom."""
    quantum: Annotated[Seconds, Field(ge=0, le=86400)] = _NUMBERS.quantum
    """Seconds that whoever came stays at least before an allocation, or work that nobody waits for, may pause it: two that don't
    fit together then compute most of the time."""
    stay: Annotated[float, Field(ge=0, le=1000)] = _NUMBERS.stay
    """Times the duration of one of its requests that whoever came for them stays open, as long as more of them come than wait
    elsewhere: until the first ones end it has to stay anyway."""
    max_wait: Annotated[Seconds, Field(gt=0, le=86400)] = _NUMBERS.max_wait
    """Seconds after which a queue goes before everything that is only worth more: what people wait for a first word."""
    hysteresis: Annotated[Seconds, Field(ge=0, le=86400)] = _NUMBERS.hysteresis
    """Seconds without a request after which a model counts as idle: a client that asks again at once must find it there."""
    batch_idle: Annotated[Seconds, Field(ge=0, le=86400)] = _NUMBERS.batch_idle
    """Seconds that interactive models must have been idle before a batch workload may take their place: training comes into gaps,
    not into the pauses between two requests."""
    batch_evicts_idle: bool = _NUMBERS.batch_evicts_idle
    """Whether batch workloads may pause idle interactive models at all, or take only room that is free."""
    batch_quantum: Annotated[Seconds, Field(ge=0, le=7 * 86400)] = _NUMBERS.batch_quantum
    """Seconds of a turn where equal batch workloads don't fit together: a swap a turn costs them half a percent."""
    preempt: frozenset[Class] = _NUMBERS.preempt
    """Classes that are cut off from requests in flight when an interactive model needs their room. Others are drained first."""
    return_home: bool = _NUMBERS.return_home
    """Whether a model that is expected soon may take the place of one that isn't before anybody asks."""
    drain: Annotated[Seconds, Field(gt=0, le=86400)] = 300.0
    """Seconds that requests in flight may take when their model shall leave for another; after that it stays, and is asked
    again. Longer than any usual answer, since cutting one off loses it."""
    time_zone: Annotated[str | None, AfterValidator(_zone)] = None
    """Of the schedules, as in `Europe/Berlin`. Left out: the machine's."""
    staging: StagingSettings = StagingSettings()

    def numbers(self) -> PolicySettings:
        """What the policy is told."""
        return PolicySettings(
            quantum=self.quantum,
            stay=self.stay,
            batch_quantum=self.batch_quantum,
            max_wait=self.max_wait,
            hysteresis=self.hysteresis,
            batch_idle=self.batch_idle,
            batch_evicts_idle=self.batch_evicts_idle,
            preempt=self.preempt,
            return_home=self.return_home,
            staging_min=self.staging.min,
            staging_horizon=self.staging.horizon,
        )
