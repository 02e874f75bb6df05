"""The `agent` section: one node's agent, its pool, its VRAM, its tiers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kybernate.model.types import GIB, MIB, Depth, LogFormat
from kybernate.process.preflight import Connections
from kybernate.settings.values import (
    NO_FLAG,
    AbsolutePath,
    Seconds,
    Section,
    Size,
    listen_address,
    or_off,
    server_url,
    tenant_text,
    tier_url,
    whole_chunks,
)


class PoolSettings(Section):
    size: Annotated[Size, Field(ge=64 * MIB, le=1 << 46)] | None = None
    """Pinned host memory for paused workloads. Left out: half of the RAM, at most four times the VRAM, since more
    than that is never evicted at once on one node."""


class VramSettings(Section):
    limit: Annotated[Size, Field(ge=64 * MIB)] | None = None
    """What the agent hands out on each GPU at most. Left out: all but the reserve."""
    reserve: Size | None = None
    """Kept free on each GPU for what allocates natively: contexts, modules, small allocations. Left out: 2 % of the
    VRAM, at most 1 GiB, since a context takes 0.5 to 1 GB."""


class ArbiterSettings(Section):
    depth: Depth = Depth.ZERO
    """How deep the arbiter pauses. Zero, since a context that stays costs up to 1 GB each."""
    min_run: Annotated[Seconds, Field(ge=0, le=86400)] = 5.0
    """Shortest time in seconds that a workload runs before an allocation of another one may pause it. Two workloads
    that do not fit together then compute most of the time instead of switching: five times the slowest swap of 40
    GiB."""
    wait_limit: Annotated[Seconds, Field(gt=0, le=86400)] = 600.0
    """Longest time in seconds that an allocation waits for room; then it fails with out of memory. It fails earlier
    only if no workload can give way any more. Time in which its own workload is paused does not count."""
    drain: Annotated[Seconds, Field(gt=0, le=3600)] = 10.0
    """Longest time in seconds that GPU work in flight may take when the arbiter pauses a workload; after that the
    workload is busy, and another one is chosen. Longer than any sensible kernel, shorter than people's patience."""
    auto_resume: bool = True
    """Resume the workloads that the arbiter paused, as soon as they fit without pausing others."""
    settle: Annotated[Seconds, Field(ge=0, le=3600)] = 1.0
    """Seconds the VRAM must have been free before an automatic resume: an allocator that gives back and takes again
    must not cause a switch."""


class TlsSettings(Section):
    certificate: AbsolutePath | None = None
    """PEM file with the certificate and those between it and its authority."""
    key: AbsolutePath | None = None
    """PEM file with its private key."""
    client_ca: AbsolutePath | None = None
    """PEM file with authorities. A client with a certificate of one of them needs no token."""

    @model_validator(mode="after")
    def _both(self) -> TlsSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give certificate and key, both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        return self


class ApiSettings(Section):
    group: str | None = None
    """Unix group whose members may use the socket (mode 0660). Left out: only the agent's own user and group."""
    listen: Annotated[str, AfterValidator(listen_address)] | None = None
    """`HOST:PORT` where API and dashboard also answer over TCP; port 0 takes a free one. With the token a client may
    do everything the agent's user may. Left out: socket only."""
    token_file: AbsolutePath | None = None
    """File with the token of requests over TCP; only the agent's user may read it. If it is missing, one with a
    random token is made; a changed token is valid at once. Left out: `api.token` in the state directory."""
    hosts: tuple[str, ...] = ()
    """Host names that browsers may use, besides localhost, the machine's own name and every IP address. Others are
    refused, so that no foreign page reaches the API through a name of its own (DNS rebinding)."""
    connections: Annotated[int, Field(ge=8, le=65536), NO_FLAG] = 256
    """Connections over TCP at the same time; more are answered 503. A page of the dashboard takes one or two. A
    connection without an admitted request is closed after 30 s."""
    plaintext: bool = False
    """Listen on addresses other than the loopback even without TLS. Others on the way can then read token and
    answers."""
    tls: TlsSettings = TlsSettings()


class EventSettings(Section):
    keep: Annotated[int, Field(ge=100, le=10_000_000), NO_FLAG] = 20_000
    """Events kept; the oldest go first. 20,000 are some 10 MB."""


class HistorySettings(Section):
    keep: Annotated[Seconds, Field(ge=60, le=7 * 86400)] = 6 * 3600.0
    """Seconds of history: which workload held VRAM when, and the cost of each switch; at most 50,000 entries of each.
    The default covers a night."""


class LogSettings(Section):
    format: LogFormat = LogFormat.TEXT
    """Format of the agent's log: `text` for people, `json` for one JSON object per line."""
    output: Annotated[Size, Field(ge=64 * 1024, le=1 << 40)] = 16 * MIB
    """Bytes kept of each workload's output, the newest; older output is given back while the workload runs. It lies
    in the state directory, which is in RAM by default. Valid for workloads started or restored from then on."""
    size: Annotated[Size, Field(ge=64 * 1024, le=1 << 40)] = 16 * MIB
    """Size limit of `agent.log` of a detached agent, and of the activator's log. At half of it agent.log continues in
    a new file, and the old one is kept as agent.log.1."""


class ObjectSettings(Section):
    url: Annotated[str, AfterValidator(tier_url)] | None = None
    """`s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://ACCOUNT/CONTAINER/PREFIX` or `file:///DIRECTORY`. Left out: there is
    no object tier. Several agents may use one place."""
    endpoint: Annotated[str, AfterValidator(server_url)] | None = None
    """URL of the server, if it is not the cloud's own."""
    region: str | None = None
    """Left out: the environment's ($AWS_REGION and the like)."""
    credentials_file: AbsolutePath | None = None
    """YAML mapping of the provider's options, such as `access_key_id` and `secret_access_key`; only the agent's user
    may read it. It is read again when it changes. Left out: the environment's ($AWS_ACCESS_KEY_ID and the like) or
    the machine's role."""
    budget: Size | None = None
    """Largest total size of the agent's snapshots there. Left out: no limit."""
    patience: Annotated[Seconds, Field(ge=1, le=3600)] = 60.0
    """Seconds without an answer from the bucket after which an order that needs it fails; nothing is lost then."""

    def options(self) -> dict[str, str]:
        """For `ObjectMedium`, without the credentials."""
        named = {"endpoint": self.endpoint, "region": self.region}
        return {key: value for key, value in named.items() if value is not None}


class EncryptionSettings(Section):
    key_file: AbsolutePath | None = None
    """File with the key, 32 bytes or 64 hexadecimal digits (`openssl rand -hex 32`). Snapshots in both tiers are
    encrypted with it (AES-256-GCM). Without the key they cannot be read: keep a copy. Nobody but the agent's user may
    read the file."""
    key_command: tuple[str, ...] = ()
    """Command and its arguments that print the key instead; no shell."""

    @model_validator(mode="after")
    def _one(self) -> EncryptionSettings:
        if self.key_file is not None and self.key_command:
            raise ValueError("give key_file or key_command, not both")
        return self


class DemoteSettings(Section):
    idle: Annotated[
        Annotated[Seconds, Field(ge=1, le=10 * 365 * 86400)] | None,
        BeforeValidator(or_off, json_schema_input_type=float | str | Literal[False]),
    ] = None
    """Seconds after which what is paused in host memory goes to the disk by itself. `off`: never, since coming back from
    there takes longer."""
    pressure: bool = True
    """Whether a pause that finds the pool full moves the workload used least recently to the disk, if there is a store yet,
    instead of being refused."""


class StoreSettings(Section):
    directory: AbsolutePath | None = None
    """Where snapshots lie on the local disk (the tier `nvme`), one agent a directory. Left out: /var/lib/kybernate/store for
    root, $XDG_STATE_HOME/kybernate/store for others, and STATE-store beside a state directory of your own choice; made at
    the first order that needs it."""
    budget: Size | None = None
    """Most that the snapshots there may take. Left out: what the disk has."""
    object: ObjectSettings = ObjectSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    demote: DemoteSettings = DemoteSettings()
    connections: Connections = Connections.REFUSE
    """What is done about TCP connections that lead out of a workload that is to leave host memory: `refuse` to move it, or
    `close` them. An order may say otherwise."""
    allow_changes: bool = False
    """Let a workload leave host memory also where something that its program may notice would be another when it is back, such
    as a NUMA policy; docs/snapshots.md lists them. An order may say otherwise."""
    tenant: Annotated[str, AfterValidator(tenant_text)] = "default"
    """Whose part of the tiers this agent uses: snapshots are found, and content is shared, within one tenant only."""


class AgentSettings(Section):
    state_dir: Path | None = None
    """Left out: $KYBERNATE_STATE_DIR, /run/kybernate for root, $XDG_RUNTIME_DIR/kybernate for others."""
    pool: PoolSettings = PoolSettings()
    vram: VramSettings = VramSettings()
    extent_size: Annotated[int, Field(ge=64 * MIB, le=GIB), BeforeValidator(whole_chunks), NO_FLAG] = GIB
    """Largest piece of VRAM handed to a workload at once. Every piece costs some calls of the driver at each pause and resume;
    small ones let another workload come in sooner."""
    arbiter: ArbiterSettings = ArbiterSettings()
    api: ApiSettings = ApiSettings()
    events: EventSettings = EventSettings()
    history: HistorySettings = HistorySettings()
    log: LogSettings = LogSettings()
    store: StoreSettings = StoreSettings()
