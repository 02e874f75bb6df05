"""Workloads whose program was changed in the file: ended as soon as nobody needs them, so that they begin with what it says now."""

from __future__ import annotations

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.action_runner import ActionRunner
from kybernate.agent.serving.controller_state import ActionsUnderWay
from kybernate.agent.serving.failures import END, ActionFailures
from kybernate.agent.serving.observe import Observations
from kybernate.agent.serving.surroundings import StopWorkload
from kybernate.agent.serving.victims import Victims
from kybernate.agent.serving.worker_load import Demand
from kybernate.agent.workloads.starts import Starts
from kybernate.model.types import WorkloadState
from kybernate.policy.node_state import Phase
from kybernate.settings.specs import Served

_GRACE_S = 10.0
"""For a program that is to be started in another way."""


class Restarts:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        runner: ActionRunner,
        actions: ActionsUnderWay,
        victims: Victims,
        stop: StopWorkload,
        starts: Starts,
        events: Events,
        observations: Observations,
        failures: ActionFailures,
    ) -> None:
        self._runner = runner
        self._actions = actions
        self._victims = victims
        self._stop = stop
        self._starts = starts
        self._events = events
        self._observations = observations
        self._failures = failures

    def begin_when_idle(self, served: Served, entry: Entry, demand: Demand) -> None:
        """`entry`: of one on which nobody does anything."""
        settled = entry.state in (WorkloadState.RUNNING, WorkloadState.PAUSED)
        # One that lies elsewhere has nobody's requests; those that wait for it are for the new program.
        busy = entry.state is WorkloadState.RUNNING and (demand.in_flight or demand.waiting)
        if settled and not busy:
            self._runner.begin(served.name, Phase.LEAVING, self._replace(served))

    async def _replace(self, served: Served) -> None:
        name = served.name
        self._events.record("reconfigured", "ended, since its program was changed in the file", workload=name)
        self._actions.set_replacing(name, True)
        try:
            await self._victims.drain(name)
            await self._stop(name, grace_s=_GRACE_S, remove=False)
        except Exception as e:
            self._failures.report(name, e, END)
            self._victims.let_run(name)
        else:
            if not self._starts.is_held(name):  # else a person stopped it, too
                self._observations.on_replaced(name)
        finally:
            self._actions.set_replacing(name, False)
