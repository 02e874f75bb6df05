"""The worker: what all its connections share, and the agent's messages carried out.

Everything runs on one event loop; nothing here blocks it or waits.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Final

import structlog

from kybernate.model.messages import (
    Close,
    Configure,
    End,
    Endpoint,
    Hello,
    Listening,
    Message,
    Open,
    Refuse,
    Share,
    Status,
)
from kybernate.proxy.agent_channel import AgentChannel
from kybernate.proxy.backend import LOADS_EVERY_S, Backend
from kybernate.proxy.directory import Directory
from kybernate.proxy.held import HeldBudget
from kybernate.proxy.outcomes import Outcomes
from kybernate.proxy.pool import POOL_IDLE_S
from kybernate.proxy.services import ClientRegistry, WorkerServices, request_ids

if TYPE_CHECKING:
    from kybernate.proxy.metrics import Meter
    from kybernate.proxy.tracing import Tracing

_SWEEP_S: Final = 1.0
_END_POLL_S: Final = 0.02
_RESERVE: Final = 4096
"""Descriptors, or a quarter of all, that are not for clients: connections to models, their networks and the agent need them."""
_CLOSE_S: Final = 0.5
"""What models' servers get at the end to close their side."""
_DEFAULTS: Final = Configure()

log = structlog.get_logger()


class Worker:
    """`number` of `workers` that share the port. Its connections are made with `services`."""

    def __init__(
        self, *, agent: str, number: int, workers: int, meter: Meter | None = None, tracing: Tracing | None = None
    ) -> None:
        self.ended = asyncio.Event()
        """Set when the agent says so."""
        self.grace_s: float | None = None
        self.configured = asyncio.Event()
        self.services = WorkerServices(
            directory=Directory(),
            clients=ClientRegistry(clients_max=_clients_max()),
            outcomes=Outcomes(meter=meter, tracing=tracing),
            budget=HeldBudget(requests=_DEFAULTS.held_max, size_bytes=_DEFAULTS.held_bytes_max),
            next_request_id=request_ids(),
        )
        self._directory = self.services.directory
        self._loop = asyncio.get_running_loop()
        self._listening = False
        self._number = number
        self._workers = workers
        self._channel = AgentChannel(
            agent, on_message=self.on_message, greeting=self._greeting, on_disconnected=self._on_disconnected
        )
        self._ticking = False

    async def run(self) -> None:
        """Talks to the agent and looks after connections, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._channel.run())
            group.create_task(self._sweep())

    async def finish(self, grace_s: float) -> None:
        """Ends what is held, lets what is in flight end for so long, then cuts it off. The listener is closed before."""
        registry = self.services.clients
        for backend in self._directory.backends.values():
            backend.end()
        registry.end()
        deadline = time.monotonic() + grace_s
        while registry.clients and time.monotonic() < deadline:  # noqa: ASYNC110 - no event on the way of every connection for this
            await asyncio.sleep(_END_POLL_S)
        for client in list(registry.clients):
            client.cut()
        pools = [backend.pool for backend in self._directory.all() if backend.pool is not None]
        for backend in self._directory.backends.values():
            backend.remove()
        deadline = time.monotonic() + _CLOSE_S
        while any(pool.size for pool in pools) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_END_POLL_S)
        for pool in pools:
            pool.abort()
        self.services.outcomes.flush_recording()
        await asyncio.sleep(_END_POLL_S)

    def listening(self) -> None:
        """Clients can connect now."""
        self._listening = True
        self._channel.send(Listening())

    # -- the agent -------------------------------------------------------------------------------------------------------

    def on_message(self, message: Message) -> None:
        match message:
            case Configure():
                self._configure(message)
            case Open() | Close() | Share() | Status() | Refuse():
                backend = self._directory.known(message.model)
                if backend is not None:
                    backend.on_message(message)
                else:
                    log.warning("a message about a model that isn't configured", model=message.model, kind=message.kind)
            case End():
                self.grace_s = message.grace_s
                self.ended.set()
            case _:
                log.warning("a message that no agent sends", kind=message.kind)

    def _configure(self, message: Configure) -> None:
        services = self.services
        services.budget.limit(requests=message.held_max, size_bytes=message.held_bytes_max)
        services.outcomes.record_to(message.record)
        services.directory.configure(message, self._backend)
        self.configured.set()

    def _backend(self, endpoint: Endpoint) -> Backend:
        budget, channel = self.services.budget, self._channel
        return Backend(endpoint, budget, workers=self._workers, send=channel.send, wake=self._wake)

    def _greeting(self) -> list[Message]:
        """Who we are, and what an earlier agent left with us."""
        backends = self._directory.backends
        epochs = {name: backend.queue.epoch for name, backend in backends.items() if backend.queue.is_open}
        hello = Hello(worker=self._number, pid=os.getpid(), open_epochs=epochs, listening=self._listening)
        now = time.monotonic()
        return [hello, *(backend.load(now) for backend in backends.values() if not backend.queue.idle)]

    def _on_disconnected(self) -> None:
        for backend in self._directory.backends.values():
            backend.queue.draining.forget()

    # -- time ------------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(LOADS_EVERY_S, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        again = False
        for backend in self._directory.backends.values():
            again |= backend.tick(now)
        self._ticking = False
        if again:
            self._wake()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                self._sweep_once(time.monotonic())
            except Exception:
                # Of one connection, or a full disk under the metrics: no reason to end all streams.
                log.exception("the sweep failed; again in a second")

    def _sweep_once(self, now: float) -> None:
        directory = self._directory
        for client in list(self.services.clients.clients):
            client.sweep(now)
        for backend in directory.backends.values():
            if backend.pool is not None:
                backend.pool.close_idle(older_than=now - POOL_IDLE_S)
        directory.sweep()
        self.services.outcomes.flush(directory.backends.values())


def _clients_max() -> int:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return sys.maxsize
    return most - min(_RESERVE, most // 4)
