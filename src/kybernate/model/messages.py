"""What the agent and the activator's workers tell each other: one JSON object a line, both ways, on the agent's own socket.

See proxy/design.md for who means what by it. Every message is a frozen dataclass; `encode` and `decode` are the wire. A worker
that is newer or older than the agent ignores kinds and fields it doesn't know. Times are seconds; points in time never
cross, since the two have different clocks: ages do.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

LINE_MAX = 4 << 20
"""Bytes of one message at most; a routing table of thousands of models is the largest."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of requests. Counts are of one model and all workers together unless said otherwise."""

    concurrency: int = 0
    """Requests sent to the model at once; more are held. 0: no limit."""
    queue: int = 1000
    """Requests held for it at most; more are answered 429."""
    hold_s: float = 600.0
    """How long one is held at most, then 503."""
    stream_idle_s: float | None = 120.0
    """An answer of which the first byte of its body is out, on which nothing moves for so long, ends when the model shall leave.
    None: it never does."""
    first_byte_s: float | None = None
    """The same for a request until that byte. None: it is in flight for as long as the model works on it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model as the activator routes to it."""

    model: str
    """The workload's name, and the first of the names that requests may use."""
    port: int
    names: tuple[str, ...] = ()
    """Further names in the `model` field of requests."""
    hidden: tuple[str, ...] = ()
    """Those of all its names that `/v1/models` doesn't list."""
    hosts: tuple[str, ...] = ()
    """HTTP hosts that lead to it, whatever the path."""
    paths: tuple[str, ...] = ()
    """Path prefixes that lead to it, without a trailing slash; the longest wins. The prefix is not cut off."""
    health: str | None = None
    """Path that probes ask for; answered by the activator itself while the model is parked, so that a probe wakes nobody."""
    limits: Limits = Limits()
    rewrite_model: str | None = None
    """What the model's own server is told in the `model` field, whatever name the client used. None: what the client said."""


@dataclass(frozen=True, slots=True)
class Key:
    """A client that may ask. The key itself never leaves its file: only its SHA-256."""

    name: str
    sha256: str
    models: tuple[str, ...] = ()
    """Which it may use. Empty: all."""


# -- from the agent ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Configure:
    """Everything that routes. First after a worker's hello, and again at each change: in whole, never a difference.

    Models that are gone are answered 404 from then on; held requests for them too.
    """

    kind: ClassVar[str] = "configure"
    endpoints: tuple[Endpoint, ...] = ()
    keys: tuple[Key, ...] = ()
    """Empty: nobody needs one."""
    hosts: tuple[str, ...] | None = None
    """Names by which requests may come, in lower case, besides `localhost` and addresses; 421 to others. None: any."""
    origins: tuple[str, ...] = ()
    """Web pages that may ask from a browser, as `https://chat.example.org`, in lower case; `*`: all. Without any no page may."""
    upstream: bool = True
    """Whether paths outside of `/v1` lead to models, too: those of `/upstream/NAME/`, and those that name a model."""
    heartbeat_s: float | None = None
    """A client that waits for a stream of events is sent a comment each so many seconds. None: it is sent nothing."""
    body_max: int = 64 << 20
    """Bytes of a request's body at most, 413 above it; decoded, too, where it came compressed and must name its model."""
    held_max: int = 20_000
    """Requests held by one worker at most, all models together."""
    held_bytes_max: int = 1 << 30
    """Bytes of bodies at most that one worker keeps: of those held, and of those in flight whose answer hasn't begun."""
    idle_s: float = 75.0
    """A client's connection is closed after so long without a request."""
    record: str | None = None
    """File to which each request that a model answered is appended as a line of a trace."""


@dataclass(frozen=True, slots=True)
class Open:
    """The model runs and is ready: forward to it, beginning with what is held, oldest first."""

    kind: ClassVar[str] = "open"
    model: str
    epoch: int
    network_pid: int | None
    """Process whose network namespace has the model's port. None: the host's own."""
    waited_for: str | None = None
    """Where it came from (`ram`, `nvme`, `object`, `start`), for headers and metrics of what was held. None: it was open before."""
    seconds: float = 0.0
    """What coming took."""
    victims: tuple[str, ...] = ()
    """Who was paused for it."""


@dataclass(frozen=True, slots=True)
class Close:
    """Hold what comes, let what is in flight end, close idle connections, answer `Drained`. An `Open` takes it back."""

    kind: ClassVar[str] = "close"
    model: str
    epoch: int
    preempt: bool = False
    """Don't wait for requests in flight: cut them off (502 where no byte of the answer was sent)."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many of a model's `concurrency` this worker may use now. Sent only for models with such a limit."""

    kind: ClassVar[str] = "share"
    model: str
    concurrency: int


@dataclass(frozen=True, slots=True)
class Status:
    """How a model stands, for /v1/models, headers and `Retry-After`. Sent at each change."""

    kind: ClassVar[str] = "status"
    model: str
    state: str
    """As in `ps`, or `stopped` while it was never started."""
    tier: str | None = None
    expected_s: float | None = None
    """Until it could answer, were it asked for now, by what was measured or else by its size. 0: it answers."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The model can't be had: answer everything held for it with this, and what comes until the next `Status` or `Open`.

    One that stands otherwise and is still refused gets both, the `Refuse` last.
    """

    kind: ClassVar[str] = "refuse"
    model: str
    status: int
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class End:
    """Take no new connections, finish what is in flight for `grace_s`, answer what is held with 503, exit."""

    kind: ClassVar[str] = "end"
    grace_s: float = 10.0


# -- from a worker -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a worker on each connection; its `Load`s follow, one for each model it has requests of."""

    kind: ClassVar[str] = "hello"
    worker: int
    pid: int
    open_epochs: dict[str, int] = field(default_factory=dict)
    """What it forwards to now: leases that an earlier agent gave. The new one confirms each by `Open`, or takes it by `Close`."""
    listening: bool = False
    """Clients can connect to it: as `Listening`, of one that did so under an earlier agent."""


@dataclass(frozen=True, slots=True)
class Listening:
    """From now on clients can connect: it was configured, and the kernel queues connections for it."""

    kind: ClassVar[str] = "listening"


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one model in this worker. Sent at once when one that waits is the first or the last, else at most 20 times a
    second."""

    kind: ClassVar[str] = "load"
    model: str
    epoch: int
    waiting: int
    oldest_s: float | None
    """Age of the oldest that waits."""
    in_flight: int
    begun: int
    """Requests that came for it since the worker started."""
    ended: int
    """Answered in whole, of those."""
    service_s: float | None = None
    """Moving average of a request's time at the model, without holding."""
    still: int = 0
    """Of those in flight, how many have not moved for as long as `Limits` says: they don't keep the model."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Answer to `Close`: nothing of this worker is connected to the model any more."""

    kind: ClassVar[str] = "drained"
    model: str
    epoch: int


Message = Configure | Open | Close | Share | Status | Refuse | End | Hello | Listening | Load | Drained
_KINDS: dict[str, type[Any]] = {
    message.kind: message
    for message in (Configure, Open, Close, Share, Status, Refuse, End, Hello, Listening, Load, Drained)
}
_NESTED: dict[str, type[Any]] = {"limits": Limits, "endpoints": Endpoint, "keys": Key}


def encode(message: Message) -> bytes:
    """One line, its end included."""
    return json.dumps({"kind": message.kind, **dataclasses.asdict(message)}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message | None:
    """None: a kind that this version doesn't know.

    Raises:
        ValueError: it is no message.
    """
    data = json.loads(line)
    if not isinstance(data, dict):
        raise ValueError("a message must be an object")  # noqa: TRY004 - one error for whatever isn't a message
    kind = _KINDS.get(data.pop("kind", ""))
    if kind is None:
        return None
    message: Message = _made(kind, data)
    return message


def _made(kind: type[Any], data: dict[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    values = {name: _value(name, value) for name, value in data.items() if name in known}
    try:
        return kind(**values)
    except TypeError as e:
        raise ValueError(f"a {kind.__name__} lacks something: {e}") from e


def _value(name: str, value: Any) -> Any:
    nested = _NESTED.get(name)
    if isinstance(value, list):
        return tuple(_made(nested, item) if nested is not None else item for item in value)
    return _made(nested, value) if nested is not None and isinstance(value, dict) else value
