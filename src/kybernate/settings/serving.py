"""The sections `models`, `jobs`, `activator` and `serving`: what is served, what computes in the gaps, and how they take turns."""

# ruff: noqa: RUF012 - pydantic copies defaults; ruff knows that only of direct subclasses

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kybernate.model.errors import BadInput
from kybernate.model.messages import Configure, Limits
from kybernate.model.types import TierName
from kybernate.policy.node_state import Class
from kybernate.policy.registry import DEFAULT, policy_named
from kybernate.policy.schedule import parse_schedule
from kybernate.policy.settings import PolicySettings
from kybernate.settings.values import (
    NO_FLAG,
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
    """Directories whose changes go into a private layer, which snapshots contain."""
    private_tmp: bool = False
    """Give it a `/tmp` of its own: it sees the host's, and what it writes there goes into a layer."""
    network: Literal["none", "host"] = "none"
    """`none`: a network of its own with loopback only; the activator reaches its port, and two programs may use the
    same port. `host`: the host's network."""
    io_uring: bool = False
    """Let it use io_uring. Without, its libraries take epoll; with it, it can't go below RAM while it uses it."""
    user: Annotated[str, Field(min_length=1)] | None = None
    """User that runs it; only an agent that runs as root may choose. Left out: the agent's user."""
    priority: Annotated[int, Field(ge=-1000, le=1000), NO_FLAG] = 0
    """Higher goes first, within its class."""
    vram: Sizes | None = None
    """VRAM it will need, for the dry run and for its first start: others make room before it asks. One size is for
    the first GPU that it sees (all of the agent's, or those of a CUDA_VISIBLE_DEVICES in its `environment`); a list
    has one for each of them. Left out: known after its first run."""
    lowest_tier: TierName = TierName.NVME
    """Deepest tier into which the agent may bring it by itself: `ram`, `nvme` or `object`."""
    demote_after: DurationOrOff = None
    """Seconds paused in RAM after which it goes to `lowest_tier` by itself. `off`: as `agent.store.demote` says."""
    cold_start: bool = True
    """Start it from the beginning if no copy of its state can be used. A model server has nothing to lose."""


class ImageSettings(Section):
    name: WorkloadKey
    """Gold image that it is started from, instead of `command`, as soon as there is one."""
    take: bool = False
    """Take that image when the model is ready for the first time."""


class ModelLimits(Section):
    concurrency: Annotated[int, Field(ge=0, le=1_000_000), NO_FLAG] = Limits().concurrency
    """Requests sent to it at once; more are held. 0: no limit, since most servers batch better than a proxy guesses."""
    queue: Annotated[int, Field(ge=0, le=1_000_000), NO_FLAG] = Limits().queue
    """Requests held for it at most, by all workers together; more are answered 429."""
    max_wait: Annotated[Seconds, Field(gt=0, le=86400)] = Limits().hold_s
    """Longest time in seconds that a request is held, then 503. The default is longer than the slowest cold start."""
    stream_idle: DurationOrOff = Limits().stream_idle_s
    """Seconds after which a stream or websocket that is only open no longer counts as a request in flight, and is cut off when its
    model shall leave: nothing came in either direction but a websocket's pings, or the client took less than 16 KiB/s of what waits
    for it. `off`: it keeps its model. Longer than a model is silent between two words; counts from the first byte of the answer's
    body, since a long prompt takes longer than any word."""
    first_byte: DurationOrOff = Limits().first_byte_s
    """Seconds that a model may work until the first byte of the answer's body, on a long prompt or an answer that is
    not streamed. After that its request no longer keeps it in VRAM. `off`: no limit."""


class ModelSettings(ProgramSettings):
    """A server that is woken by its requests."""

    port: Annotated[int, Field(ge=1, le=65535), NO_FLAG]
    """Where it listens, on its 127.0.0.1."""
    ready: UrlPath | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """When it may be asked after a start: a path that answers 2xx, or a command (a list) that ends with status 0 among its
    processes. Left out: once something listens on `port`. A resumed one is ready at once."""
    ready_timeout: Annotated[Seconds, Field(gt=0, le=86400)] = 600.0
    """Seconds after which a start has failed: a large model takes minutes to load."""
    klass: Annotated[Class, Field(alias="class")] = Class.INTERACTIVE
    """`interactive`: people wait for its answers. `batch`: its requests may wait until no other model needs the GPU."""
    names: tuple[ModelAlias, ...] = ()
    """Further names for the `model` field of requests."""
    hidden_names: tuple[ModelAlias, ...] = ()
    """Names that requests may use and `/v1/models` doesn't list; its own may be one of them."""
    hosts: tuple[HostName, ...] = ()
    """HTTP hosts that lead to it, whatever the path."""
    paths: tuple[PathPrefix, ...] = ()
    """Path prefixes that lead to it; they are not cut off."""
    health: UrlPath | None = None
    """Path of its health check, for probes that reach it by `hosts` or `paths`. The activator answers it while the
    model is paused, so that probes do not resume it."""
    rewrite_model: Annotated[
        ModelAlias | Literal[False] | None, BeforeValidator(_off, json_schema_input_type=str | Literal[False])
    ] = None
    """The name its own server is told in the `model` field, also in forms and queries. Left out: its name in this
    file. `off`: the name the client sent."""
    start: Start = Start.ON_DEMAND
    """`eager`: started with the agent, then parked. `on-demand`: started at its first request."""
    idle: DurationOrOff = None
    """Seconds without a request after which it gives its VRAM back, even if no other workload needs it. `off`: it
    stays, because coming back costs something and staying costs nothing."""
    image: Annotated[ImageSettings | None, BeforeValidator(_image, json_schema_input_type=str | ImageSettings)] = None
    """Start it from a gold image: its name, or `{name: NAME, take: true}` to have it taken at the first start."""
    limits: ModelLimits = ModelLimits()


class JobSettings(ProgramSettings):
    """A program that computes when no model needs the GPU, or in its hours."""

    klass: Annotated[Class, Field(alias="class")] = Class.BATCH
    """`batch` workloads are paused for interactive ones, never killed."""
    vram: Sizes | None = None
    """VRAM it will need. It comes only if so much is free or can be made free, and keeps that much while it runs,
    even before it asks for all of it. One size is for the first GPU that it sees (all of the agent's, or those of a
    CUDA_VISIBLE_DEVICES in its `environment`); a list has one for each of them. Left out: known after its first run,
    and not kept for it."""
    schedule: Annotated[
        tuple[str, ...], BeforeValidator(_one_text, json_schema_input_type=str | list[str]), AfterValidator(_schedule)
    ] = ()
    """Windows in which it may run, each `[DAYS] HH:MM-HH:MM`; outside of them it is paused. Left out: always."""
    restart: Restart = Restart.NEVER
    """Whether it is started again when it ended: `never`, `on-failure` (status other than 0) or `always`."""
    cold_start: bool = False
    """Start it from the beginning, or from its own last checkpoint, if no copy of its state can be used."""


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
    held: Annotated[int, Field(ge=1, le=10_000_000), NO_FLAG] = Configure().held_max
    """Requests that one worker holds at most, all models together."""
    held_bytes: Size = Configure().held_bytes_max
    """What bodies may take in one worker's memory: of requests held, and of those in flight until their answer begins."""
    idle: Annotated[Seconds, Field(gt=0, le=86400)] = Configure().idle_s
    """Seconds after which a client's connection without a request is closed."""


class ActivatorSettings(Section):
    listen: ListenAddress = "127.0.0.1:8080"
    """`HOST:PORT` for requests. The default is reachable from this machine only. Without `keys_file` every client
    that reaches it may send requests."""
    hosts: tuple[HostName, ...] | Literal["any"] | None = None
    """Host names that requests may use, besides localhost, the machine's own name, every IP address and the `hosts`
    of models. Others are answered 421, so that no foreign page reaches the models through a name of its own (DNS
    rebinding). `any`: every name. Left out: only these if it listens on the loopback without keys and TLS, else any."""
    origins: tuple[Origin, ...] | Literal["any"] = ()
    """Web pages that may ask from a browser (CORS), by their origins, as https://chat.example.org. They need a key like anybody
    else, but for the question whether they may ask. `any`: all, which takes `keys_file`. Left out: none."""
    upstream: bool = True
    """Whether paths outside of `/v1` reach models, too: `/upstream/NAME/...` everything on a model's server, also its
    administration; other paths a model named in a JSON body, a form or as `?model=`. Keys are checked there, too."""
    heartbeat: DurationOrOff = Configure().heartbeat_s
    """Seconds between comments to a client that waits for a stream of events (`"stream": true`), so that no proxy on
    the way takes the silence for the end: 15 suits most. After the first comment an error arrives as an event, not as
    a status, so clients do not try again by themselves. `off`: no comments."""
    workers: Annotated[int, Field(ge=1, le=64), NO_FLAG] = 1
    """Processes that share the port; one handles some thousand requests per second."""
    tls: ActivatorTls = ActivatorTls()
    keys_file: AbsolutePath | None = None
    """YAML file of clients: `NAME: KEY`, or `NAME: {key: KEY, models: [MODEL]}`, or `sha256:` in place of `key:`. A
    key has at least 16 characters, and only the agent's user may read the file. Left out: no client needs a key."""
    limits: ActivatorLimits = ActivatorLimits()
    traces: Annotated[str, AfterValidator(server_url)] | None = None
    """OTLP/HTTP collector of traces, as in http://127.0.0.1:4318: each request with its holding, its swap and its answer.
    What it must be told besides goes into the agent's environment, as $OTEL_EXPORTER_OTLP_HEADERS."""
    record: AbsolutePath | None = None
    """File for `kybernate simulate --trace`: one line for each request that a model answered, with time, model and
    working time, and no content. It grows until you move it away. Left out: nothing is recorded."""
    grace: Duration = 30.0
    """Seconds that running answers get to finish when a worker is replaced, or when `kybernate down` ends it."""


class StagingSettings(Section):
    budget: Annotated[Size, BeforeValidator(_or_nothing, json_schema_input_type=int | str | Literal[False])] | None = (
        None
    )
    """Part of the host pool for content that is read ahead. `off`: nothing is read ahead. Left out: a quarter of the
    pool."""
    min: Annotated[float, Field(ge=0, le=1), NO_FLAG] = _NUMBERS.prefetch_min
    """Smallest probability of being the next one that is worth reading a workload ahead: it costs no GPU time."""
    horizon: Annotated[Seconds, Field(gt=0, le=86400)] = _NUMBERS.prefetch_horizon
    """Seconds staging looks ahead: host memory should not wait longer for a guess to come true."""


class ServingSettings(Section):
    policy: Annotated[str, AfterValidator(_policy)] = DEFAULT
    """Scheduling policy: it decides which workload is paused for which. `kybernate simulate` compares them."""
    min_run: Annotated[Seconds, Field(ge=0, le=86400)] = _NUMBERS.min_run
    """Shortest time in seconds that a workload stays after it came, before an allocation, or work without waiting
    requests, may pause it. Two workloads that do not fit together then compute most of the time."""
    stay: Annotated[float, Field(ge=0, le=1000), NO_FLAG] = _NUMBERS.stay
    """How long a model that came for requests stays open for new ones, in multiples of the duration of one request,
    while it gets more requests than wait elsewhere. It must stay until the first ones end anyway."""
    due_after: Annotated[Seconds, Field(gt=0, le=86400)] = _NUMBERS.due_after
    """Seconds of waiting after which a queue is served first, whatever other work would be worth: as long as people
    wait for a first word."""
    hysteresis: Annotated[Seconds, Field(ge=0, le=86400)] = _NUMBERS.hysteresis
    """Seconds without a request after which a model counts as idle: a client that asks again at once must find it there."""
    batch_idle: Annotated[Seconds, Field(ge=0, le=86400)] = _NUMBERS.batch_idle
    """Seconds that interactive models must have been idle before a batch workload may take their place: training comes into gaps,
    not into the pauses between two requests."""
    batch_evicts_idle: bool = _NUMBERS.batch_evicts_idle
    """Whether batch workloads may pause idle interactive models at all, or take only room that is free."""
    batch_quantum: Annotated[Seconds, Field(ge=0, le=7 * 86400)] = _NUMBERS.batch_quantum
    """Length of a turn in seconds when equal batch workloads do not fit together; one swap per turn costs them half a
    percent."""
    preempt: frozenset[Class] = _NUMBERS.preempt
    """Classes that are cut off from requests in flight when an interactive model needs their room. Others are drained first."""
    return_home: bool = _NUMBERS.return_home
    """Whether a model that is expected soon may replace one that is not, before a request comes."""
    drain: Annotated[Seconds, Field(gt=0, le=86400)] = 300.0
    """Seconds that requests in flight may take when their model must leave for another one. After that the model
    stays, and is asked again later. Longer than any usual answer, because cutting one off loses it."""
    time_zone: Annotated[str | None, AfterValidator(_zone)] = None
    """Of the schedules, as in `Europe/Berlin`. Left out: the machine's."""
    staging: StagingSettings = StagingSettings()

    def numbers(self) -> PolicySettings:
        """What the policy is told."""
        return PolicySettings(
            min_run=self.min_run,
            stay=self.stay,
            batch_quantum=self.batch_quantum,
            due_after=self.due_after,
            hysteresis=self.hysteresis,
            batch_idle=self.batch_idle,
            batch_evicts_idle=self.batch_evicts_idle,
            preempt=self.preempt,
            return_home=self.return_home,
            prefetch_min=self.staging.min,
            prefetch_horizon=self.staging.horizon,
        )
