"""kybernate.yaml: what it may say, and errors that point at the line.

Pydantic at the edge; everything behind it gets plain frozen values. Nothing here looks at the machine: a size
left out is None and the agent chooses when it knows the GPUs and the RAM.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kybernate.model.errors import BadInput
from kybernate.model.quantities import parse_size
from kybernate.model.types import CHUNK_BYTES, GIB, MIB, Depth, LogFormat
from kybernate.process.preflight import Connections
from kybernate.store.tenants import tenant_name


def _size(value: Any) -> int:
    try:
        return parse_size(value)
    except BadInput as e:
        raise ValueError(str(e)) from None


def _whole_chunks(given: Any) -> int:
    value = _size(given)
    if value % CHUNK_BYTES:
        raise ValueError(f"must be a multiple of {CHUNK_BYTES // MIB} MiB")
    return value


def _or_off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return None if value is False or value == "off" else value


def _tenant(value: str) -> str:
    try:
        return tenant_name(value)
    except BadInput as e:
        raise ValueError(str(e)) from None


def _tier_url(value: str) -> str:
    if not re.match(r"(s3|gs|az|azure)://[^/?#@]+|file:///[^?#]+", value):
        raise ValueError(
            "use s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX or file:///DIRECTORY"
        )
    return value


def _server_url(value: str) -> str:
    if not re.match(r"https?://[^/]", value):
        raise ValueError("use http://HOST:PORT or https://HOST:PORT")
    return value


def _host_and_port(value: str) -> str:
    host, colon, port = value.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host) or not port.isascii() or not port.isdigit():
        raise ValueError("use HOST:PORT, such as 127.0.0.1:7070 or [::1]:7070")
    if int(port) > 65535:
        raise ValueError("a port is at most 65535")
    return value


def _absolute(value: Path) -> Path:
    if not value.is_absolute() or ".." in value.parts:
        raise ValueError("use an absolute path without '..'")
    return value


Size = Annotated[int, BeforeValidator(_size)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PoolSettings(_Section):
    size: Annotated[Size, Field(ge=64 * MIB, le=1 << 46)] | None = None
    """Pinned host memory for paused workloads. Left out: half of the RAM, at most four times the VRAM, since more
    than that is never evicted at once on one node."""


class VramSettings(_Section):
    limit: Annotated[Size, Field(ge=64 * MIB)] | None = None
    """What the agent hands out on each GPU at most. Left out: all but the reserve."""
    reserve: Size | None = None
    """Kept free on each GPU for what allocates natively: contexts, modules, small allocations. Left out: 2 % of the
    VRAM, at most 1 GiB, since a context takes 0.5 to 1 GB."""


class ArbiterSettings(_Section):
    depth: Depth = Depth.ZERO
    """How deep the arbiter pauses. Zero, since a context that stays costs up to 1 GB each."""
    quantum: Annotated[float, Field(ge=0, le=86400)] = 5.0
    """Seconds a workload runs at least before an allocation of another one may pause it, so that two that don't fit
    together compute most of the time instead of switching: five times the slowest swap of 40 GiB."""
    wait_limit: Annotated[float, Field(gt=0, le=86400)] = 600.0
    """Seconds an allocation waits for room at most before it fails with out of memory."""
    drain: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Seconds a workload's GPU work in flight may take when the arbiter pauses it; after that it is busy and another one
    is chosen. Longer than any sensible kernel, shorter than people's patience."""
    auto_resume: bool = True
    """Resume what the arbiter paused once it fits again without pausing anything."""
    settle: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """Seconds the VRAM must have been free before an automatic resume: an allocator that gives back and takes again
    must not cause a switch."""


class TlsSettings(_Section):
    certificate: AbsolutePath | None = None
    """PEM file with the certificate and those between it and its authority."""
    key: AbsolutePath | None = None
    """PEM file with its private key."""
    client_ca: AbsolutePath | None = None
    """PEM file with authorities: who shows a certificate of theirs needs no token."""

    @model_validator(mode="after")
    def _both(self) -> TlsSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give certificate and key, both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key")
        return self


class ApiSettings(_Section):
    group: str | None = None
    """Unix group whose members may use the socket (mode 0660). Left out: only the agent's own user and group."""
    listen: Annotated[str, AfterValidator(_host_and_port)] | None = None
    """`HOST:PORT` where API and dashboard answer over TCP, too; port 0 takes a free one. Whoever has the token may do there
    what the agent's user may. Left out: nowhere, only on the socket."""
    token_file: AbsolutePath | None = None
    """File with the token that requests over TCP carry; nobody but the agent's user may read it. Made with a random one where it
    is missing; a changed one holds at once. Left out: `api.token` in the state directory."""
    hosts: tuple[str, ...] = ()
    """Names by which browsers may address it, besides localhost, the machine's own name and every IP address: any other is
    refused, so that no foreign page reaches it by a name of its own (DNS rebinding)."""
    plaintext: bool = False
    """Listen on other addresses than the loopback even without TLS. Token and answers can be read on the way then."""
    tls: TlsSettings = TlsSettings()


class EventSettings(_Section):
    keep: Annotated[int, Field(ge=100, le=10_000_000)] = 20_000
    """Events kept; the oldest go first. 20,000 are some 10 MB."""


class LogSettings(_Section):
    format: LogFormat = LogFormat.TEXT
    """Of what the agent writes to standard error or agent.log: `text` for people, `json` for one JSON object a line."""


class ObjectSettings(_Section):
    url: Annotated[str, AfterValidator(_tier_url)] | None = None
    """`s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://ACCOUNT/CONTAINER/PREFIX` or `file:///DIRECTORY`. Left out: there is
    no object tier. Several agents may use one place."""
    endpoint: Annotated[str, AfterValidator(_server_url)] | None = None
    """URL of the server, where it isn't the cloud's own."""
    region: str | None = None
    """Left out: the environment's ($AWS_REGION and the like)."""
    credentials_file: AbsolutePath | None = None
    """A YAML mapping of the provider's options, such as `access_key_id` and `secret_access_key`; nobody but the agent's user
    may read it. Left out: the environment's ($AWS_ACCESS_KEY_ID and the like) or the machine's role."""
    budget: Size | None = None
    """Most that the agent's snapshots may take there. Left out: no limit."""
    patience: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """Seconds the place may not answer before an order that needs it fails; nothing is lost then."""

    def options(self) -> dict[str, str]:
        """For `ObjectMedium`, without the credentials."""
        named = {"endpoint": self.endpoint, "region": self.region}
        return {key: value for key, value in named.items() if value is not None}


class EncryptionSettings(_Section):
    key_file: AbsolutePath | None = None
    """File with the key, 32 bytes or 64 hexadecimal digits (`openssl rand -hex 32`). Snapshots in both tiers are encrypted
    with it (AES-256-GCM); who loses it loses them."""
    key_command: tuple[str, ...] = ()
    """Command and its arguments that print the key instead; no shell."""

    @model_validator(mode="after")
    def _one(self) -> EncryptionSettings:
        if self.key_file is not None and self.key_command:
            raise ValueError("give key_file or key_command, not both")
        return self


class DemoteSettings(_Section):
    idle: Annotated[Annotated[float, Field(ge=1, le=10 * 365 * 86400)] | None, BeforeValidator(_or_off)] = None
    """Seconds after which what is paused in host memory goes to the disk by itself. `off`: never, since coming back from
    there takes longer."""
    pressure: bool = True
    """Whether a pause that finds the pool full moves the workload used least recently to the disk, if there is a store yet,
    instead of being refused."""


class StoreSettings(_Section):
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
    tenant: Annotated[str, AfterValidator(_tenant)] = "default"
    """Whose part of the tiers this agent uses: snapshots are found, and content is shared, within one tenant only."""


class AgentSettings(_Section):
    state_dir: Path | None = None
    """Left out: $KYBERNATE_STATE_DIR, /run/kybernate for root, $XDG_RUNTIME_DIR/kybernate for others."""
    pool: PoolSettings = PoolSettings()
    vram: VramSettings = VramSettings()
    extent_size: Annotated[int, Field(ge=64 * MIB, le=GIB), BeforeValidator(_whole_chunks)] = GIB
    """Largest piece of VRAM handed to a workload at once. Every piece costs some calls of the driver at each pause and resume;
    small ones let another workload come in sooner."""
    arbiter: ArbiterSettings = ArbiterSettings()
    api: ApiSettings = ApiSettings()
    events: EventSettings = EventSettings()
    log: LogSettings = LogSettings()
    store: StoreSettings = StoreSettings()


class Settings(_Section):
    agent: AgentSettings = AgentSettings()


def load(path: Path) -> Settings:
    """Read and check a file.

    Raises:
        BadInput: unreadable, no YAML, or senseless; one line with file and line number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8 text"
        raise BadInput(
            f"can't read {path}: {reason}", hint="give an existing file with -f FILE, or none for the defaults"
        ) from e
    return parse(text, origin=str(path))


def parse(text: str, *, origin: str) -> Settings:
    """Check the text of a file; `origin` names it in errors.

    Raises:
        BadInput: as load().
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return Settings()
        _refuse_duplicates(root, origin)
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        problem = getattr(e, "problem", None) or "not readable"
        raise BadInput(
            f"{origin}:{line}: no valid YAML: {problem}", hint="check the indentation and quotes of this line"
        ) from e
    if not isinstance(data, dict):
        raise BadInput(f"{origin}:1: the file must be a mapping", hint="begin it with `agent:`")
    try:
        return Settings.model_validate(data)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{origin}:{_line(root, first['loc'])}: {where}: {_words(first)}") from e


def _words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "no such setting (docs/configuration.md lists them)"
    message: str = error["msg"].removeprefix("Value error, ")
    given = repr(error.get("input"))
    return message if given in message else f"{message}, got {given[:60]}"


def _line(node: yaml.Node, location: Sequence[str | int]) -> int:
    """Line (from 1) of the deepest part of `location` that the file has."""
    line: int = node.start_mark.line + 1
    for part in location:
        if not isinstance(node, yaml.MappingNode):
            break
        for key, value in node.value:
            if key.value == part:
                line, node = key.start_mark.line + 1, value
                break
        else:
            break
    return line


def _refuse_duplicates(node: yaml.Node, origin: str) -> None:
    """YAML takes the last of two equal keys silently; a person meant one of them."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, origin)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            raise BadInput(f"{origin}:{key.start_mark.line + 1}: {key.value!r} is set twice", hint="remove one of them")
        seen.add(str(key.value))
        _refuse_duplicates(value, origin)
