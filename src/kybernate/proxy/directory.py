"""What a worker serves, and by which rules. Both are replaced as a whole when the agent configures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Self

from kybernate.model.messages import Configure, Endpoint, Status
from kybernate.proxy.backend import Backend
from kybernate.proxy.host_allowlist import HostAllowlist
from kybernate.proxy.keys import Keys
from kybernate.proxy.origins import Origins
from kybernate.proxy.routing import Routes

_DEFAULTS: Final = Configure()


@dataclass(frozen=True, slots=True)
class Rules:
    """What the agent's configuration says of requests, made ready for use."""

    routes: Routes = field(default_factory=lambda: Routes(()))
    keys: Keys = field(default_factory=lambda: Keys(()))
    hosts: HostAllowlist = field(default_factory=lambda: HostAllowlist(None))
    origins: Origins | None = None
    """None: no page of another site may ask."""
    upstream: bool = _DEFAULTS.upstream
    """Other paths than OpenAI's lead to models, too (`detours.py`)."""
    heartbeat_s: float | None = _DEFAULTS.heartbeat_s
    body_max: int = _DEFAULTS.body_max
    """Bytes."""
    idle_s: float = _DEFAULTS.idle_s
    """A client's connection that nothing comes from is ended then."""

    @classmethod
    def of(cls, message: Configure) -> Self:
        return cls(
            routes=Routes(message.endpoints),
            keys=Keys(message.keys),
            hosts=HostAllowlist(message.hosts),
            origins=Origins(message.origins) if message.origins else None,
            upstream=message.upstream,
            heartbeat_s=message.heartbeat_s,
            body_max=message.body_max,
            idle_s=message.idle_s,
        )


class Directory:
    """`backends` by their models' names."""

    def __init__(self) -> None:
        self.rules = Rules()
        self.ready = False
        """Configured once: it knows where requests go."""
        self.backends: dict[str, Backend] = {}
        self._retired: dict[str, Backend] = {}
        """Of models no longer configured, as long as requests of theirs are in flight."""

    def configure(self, message: Configure, make: Callable[[Endpoint], Backend]) -> None:
        """What the agent says now. Models that aren't named any more are removed; what is in flight there goes on."""
        self.rules = Rules.of(message)
        gone, self.backends = self.backends, {}
        for endpoint in message.endpoints:
            backend = gone.pop(endpoint.model, None) or self._retired.pop(endpoint.model, None)
            if backend is None:
                backend = make(endpoint)
            else:
                backend.configure(endpoint)
            self.backends[endpoint.model] = backend
        if self.rules.keys.needed:
            for backend in self.backends.values():
                backend.refuse_strangers()
        for name, backend in gone.items():
            backend.remove()
            self._retired[name] = backend
        self.ready = True

    def known(self, name: str) -> Backend | None:
        """The one of this model, be it still configured or not."""
        return self.backends.get(name) or self._retired.get(name)

    def backend_named(self, name: str) -> Backend | None:
        """By any name that requests may use."""
        endpoint = self.rules.routes.by_name(name)
        return None if endpoint is None else self.backends.get(endpoint.model)

    def statuses(self) -> dict[str, Status | None]:
        return {name: backend.queue.status for name, backend in self.backends.items()}

    def all(self) -> Iterator[Backend]:
        """Retired ones included."""
        yield from self.backends.values()
        yield from self._retired.values()

    def forget_client(self, client: object) -> None:
        """It is gone, and with it the connections to models that were kept for it."""
        for backend in self.all():
            if backend.pool is not None:
                backend.pool.forget(client)

    def sweep(self) -> None:
        """Once a second: retired ones that nobody asks any more are forgotten."""
        self._retired = {name: backend for name, backend in self._retired.items() if not backend.queue.idle}
