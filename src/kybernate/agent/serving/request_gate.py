"""The gate that switching asks: no requests are at a workload when it is paused, and all are let through again when it runs."""

from __future__ import annotations

from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.controller_state import ActionsUnderWay
from kybernate.agent.serving.leases import Arrival, Leases
from kybernate.agent.serving.observe import Observations
from kybernate.agent.serving.readiness import Readiness
from kybernate.agent.serving.ready_watch import ReadyWatch
from kybernate.agent.serving.user_orders import UserOrders
from kybernate.model.errors import Busy
from kybernate.model.types import TierName, WorkloadName


class ServingGate:
    """See `RequestGate` in switching/gate.py. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        configuration: CurrentConfiguration,
        leases: Leases,
        readiness: Readiness,
        ready_watch: ReadyWatch,
        observations: Observations,
        user_orders: UserOrders,
        actions: ActionsUnderWay,
    ) -> None:
        self._configuration = configuration
        self._leases = leases
        self._readiness = readiness
        self._ready_watch = ready_watch
        self._observations = observations
        self._user_orders = user_orders
        self._actions = actions

    async def close(self, name: WorkloadName, *, timeout_s: float, by_arbiter: bool) -> None:
        preempt = by_arbiter and self._configuration.may_preempt(name)
        try:
            await self._leases.close(name, timeout_s=timeout_s, preempt=preempt)
        except Busy:
            self.on_pause_aborted(name)
            raise

    def hold(self, name: WorkloadName) -> None:
        self._leases.hold(name)

    def on_pause_aborted(self, name: WorkloadName) -> None:
        if self._readiness.runs(name):
            self._leases.reopen(name)

    def on_resumed(self, name: WorkloadName, *, tier: str, seconds: float, victims: tuple[WorkloadName, ...]) -> None:
        self._observations.on_resumed(name, TierName(tier), seconds)
        served = self._configuration.served.get(name)
        if served is None or served.probe is None or self._actions.is_starting(name):
            return
        arrival = Arrival(tier, seconds, victims)
        if self._readiness.was_ready(name):
            self._ready_watch.open(name, arrival)
        else:
            self._ready_watch.begin(served, arrival)

    def on_requested(self, name: WorkloadName) -> None:
        self._user_orders.on_requested(name)

    def port_of(self, name: WorkloadName) -> int | None:
        return self._configuration.port_of(name)
