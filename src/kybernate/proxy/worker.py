"""The worker: what all its connections share, and the agent's messages carried out.

Everything runs on one event loop; nothing here blocks it or waits.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from kybernate.model.messages import Close, Configure, End, Hello, Listening, Message, Open, Refuse, Share, Status
from kybernate.proxy.agent_channel import AgentLink
from kybernate.proxy.backend import LOADS_EVERY_S, ServedModel
from kybernate.proxy.client_connection import Front
from kybernate.proxy.host_allowlist import Hosts
from kybernate.proxy.keys import Keys
from kybernate.proxy.origins import Origins
from kybernate.proxy.queueing import HeldBudget, Refusal
from kybernate.proxy.recording import Recorder
from kybernate.proxy.request import Exchange
from kybernate.proxy.routing import Routes
from kybernate.proxy.upstream import POOL_IDLE_S

if TYPE_CHECKING:
    from kybernate.proxy.metrics import Meter
    from kybernate.proxy.tracing import Tracing

_SWEEP_S: Final = 1.0
_END_POLL_S: Final = 0.02
_RESERVE: Final = 4096
"""Descriptors, or a quarter of all, that are not for clients: connections to models, their networks and the agent need them."""
_FAREWELL_S: Final = 0.5
"""What models' servers get at the end to close their side."""
_DEFAULTS: Final = Configure()

log = structlog.get_logger()


class Worker:
    """`number` of `workers` that share the port."""

    def __init__(
        self, *, agent: str, number: int, workers: int, meter: Meter | None = None, tracing: Tracing | None = None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.fronts: set[Front] = set()
        self.models: dict[str, ServedModel] = {}
        self.routes = Routes(())
        self.keys = Keys(())
        self.hosts = Hosts(None)
        self.origins: Origins | None = None
        """None: no page of another site may ask."""
        self.upstream = _DEFAULTS.upstream
        self.heartbeat_s = _DEFAULTS.heartbeat_s
        self.body_max = _DEFAULTS.body_max
        self.idle_s = _DEFAULTS.idle_s
        self.ending = False
        self.ready = False
        """Configured once: it knows where requests go."""
        self._listening = False
        self.tracing = tracing
        self.ended = asyncio.Event()
        """Set when the agent says so."""
        self.grace_s: float | None = None
        self.configured = asyncio.Event()
        self._meter = meter
        self._counting = True
        self._recorder: Recorder | None = None
        self._number = number
        self._workers = workers
        self.fronts_max = _clients_max()
        self.budget = HeldBudget(requests=_DEFAULTS.held_max, size_bytes=_DEFAULTS.held_bytes_max)
        self._gone: dict[str, ServedModel] = {}
        """Models no longer configured, as long as requests of theirs are in flight."""
        self._link = AgentLink(agent, told=self.told, hello=self._hello, lost=self._agent_lost)
        self._ticking = False
        self._id_prefix = os.urandom(6).hex().encode()
        self._id = 0

    async def run(self) -> None:
        """Talks to the agent and looks after connections, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.run())
            group.create_task(self._sweep())

    async def finish(self, grace_s: float) -> None:
        """Ends what is held, lets what is in flight end for so long, then cuts it off. The listener is closed before."""
        self.ending = True
        for model in self.models.values():
            model.end()
        for front in list(self.fronts):
            front.finish()
        deadline = time.monotonic() + grace_s
        while self.fronts and time.monotonic() < deadline:  # noqa: ASYNC110 - no event on the way of every connection for this
            await asyncio.sleep(_END_POLL_S)
        for front in list(self.fronts):
            front.abandon()
        pools = [model.pool for model in (*self.models.values(), *self._gone.values()) if model.pool is not None]
        for model in self.models.values():
            model.remove()
        deadline = time.monotonic() + _FAREWELL_S
        while any(pool.size for pool in pools) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_END_POLL_S)
        for pool in pools:
            pool.abort()
        if self._recorder is not None:
            self._recorder.flush()
        await asyncio.sleep(_END_POLL_S)

    def listening(self) -> None:
        """Clients can connect now."""
        self._listening = True
        self._link.tell(Listening())

    # -- for connections -------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """With more clients there would be no descriptors left by which a request could reach its model."""
        return len(self.fronts) > self.fronts_max

    def forget(self, client: Front) -> None:
        """It is gone, and with it what was kept for it."""
        for model in (*self.models.values(), *self._gone.values()):
            if model.pool is not None:
                model.pool.forget(client)

    def model_named(self, name: str) -> ServedModel | None:
        endpoint = self.routes.by_name(name)
        return None if endpoint is None else self.models.get(endpoint.model)

    def statuses(self) -> dict[str, Status | None]:
        return {name: model.queue.status for name, model in self.models.items()}

    def next_request_id(self) -> bytes:
        self._id += 1
        return b"%b-%x" % (self._id_prefix, self._id)

    def over(self, exchange: Exchange, status: int) -> None:
        """A request ended with this status; 499: its client hung up."""
        if self._recorder is not None and exchange.forwarded and exchange.model is not None and 200 <= status < 500:
            now = time.monotonic()
            self._recorder.answered(
                exchange.model.name, arrived=exchange.arrived, forwarded=exchange.forwarded, now=now
            )
        if self._meter is not None:
            self._meter.count(exchange, status, now=time.monotonic())
        if exchange.span is not None and self.tracing is not None:
            self.tracing.end(exchange, status, now=time.monotonic())

    def failed(self, refusal: Refusal, exchange: Exchange | None) -> None:
        """A request ended with an error of ours."""
        if self._meter is not None:
            model = exchange.model if exchange is not None else None
            self._meter.fail("" if model is None else model.name, refusal.code)

    # -- the agent -------------------------------------------------------------------------------------------------------

    def told(self, message: Message) -> None:
        match message:
            case Configure():
                self._configure(message)
            case Open() | Close() | Share() | Status() | Refuse():
                model = self.models.get(message.model) or self._gone.get(message.model)
                if model is not None:
                    model.told(message)
                else:
                    log.warning("a message about a model that isn't configured", model=message.model, kind=message.kind)
            case End():
                self.grace_s = message.grace_s
                self.ended.set()
            case _:
                log.warning("a message that no agent sends", kind=message.kind)

    def _configure(self, message: Configure) -> None:
        self.body_max = message.body_max
        self.idle_s = message.idle_s
        self.budget.requests_max = message.held_max
        self.budget.bytes_max = message.held_bytes_max
        self.keys = Keys(message.keys)
        self.hosts = Hosts(message.hosts)
        self.origins = Origins(message.origins) if message.origins else None
        self.upstream = message.upstream
        self.heartbeat_s = message.heartbeat_s
        if self._recorder is not None and str(self._recorder.path) != message.record:
            self._recorder.flush()
            self._recorder = None
        if self._recorder is None and message.record is not None:
            self._recorder = Recorder(Path(message.record))
        old, self.models = self.models, {}
        for endpoint in message.endpoints:
            model = old.pop(endpoint.model, None) or self._gone.pop(endpoint.model, None)
            if model is None:
                model = ServedModel(endpoint, self.budget, workers=self._workers, tell=self._link.tell, wake=self._wake)
            else:
                model.configure(endpoint)
            self.models[endpoint.model] = model
        self.routes = Routes(message.endpoints)
        if self.keys.needed:
            for model in self.models.values():
                model.refuse_strangers()
        for name, model in old.items():
            model.remove()
            self._gone[name] = model
        self.ready = True
        self.configured.set()

    def _hello(self) -> list[Message]:
        """Who we are, and what an earlier agent left with us."""
        epochs = {name: model.queue.epoch for name, model in self.models.items() if model.queue.is_open}
        hello = Hello(worker=self._number, pid=os.getpid(), open_epochs=epochs, listening=self._listening)
        return [hello, *self._loads()]

    def _loads(self) -> list[Message]:
        now = time.monotonic()
        return [model.load(now) for model in self.models.values() if not model.queue.idle]

    def _agent_lost(self) -> None:
        for model in self.models.values():
            model.queue.forget_closes()

    # -- time ------------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._ticking:
            self._ticking = True
            self.loop.call_later(LOADS_EVERY_S, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        again = False
        for model in self.models.values():
            again |= model.tick(now)
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
        for front in list(self.fronts):
            front.sweep(now)
        for model in self.models.values():
            if model.pool is not None:
                model.pool.close_idle(older_than=now - POOL_IDLE_S)
        self._gone = {name: model for name, model in self._gone.items() if not model.queue.idle}
        if self._recorder is not None:
            self._recorder.flush()
        if self._meter is not None:
            self._flush(self._meter)

    def _flush(self, meter: Meter) -> None:
        try:
            meter.flush(self.models.values())
        except OSError as e:
            if self._counting:  # once, not every second
                log.warning("no room for the counters; they are written once there is", error=str(e))
            self._counting = False
        else:
            self._counting = True


def _clients_max() -> int:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return sys.maxsize
    return most - min(_RESERVE, most // 4)
