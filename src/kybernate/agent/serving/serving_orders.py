"""What a person may order of models and jobs of the configuration: that one starts, that a workload stops."""

from __future__ import annotations

from kybernate.agent.records.ledger import Ledger
from kybernate.agent.serving.configuration import CurrentConfiguration
from kybernate.agent.serving.refusals import Refusals
from kybernate.agent.serving.surroundings import StopWorkload
from kybernate.agent.serving.user_orders import UserOrders
from kybernate.agent.workloads.orders import Stored
from kybernate.agent.workloads.starts import Starts
from kybernate.model.api import StoppedView
from kybernate.model.errors import Conflict, KybernateError, NotFound
from kybernate.model.types import EndedBy, WorkloadName, WorkloadState
from kybernate.settings.specs import Kind


class ServingOrders:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        current: CurrentConfiguration,
        ledger: Ledger,
        starts: Starts,
        stop: StopWorkload,
        user_orders: UserOrders,
        refusals: Refusals,
    ) -> None:
        self._current = current
        self._ledger = ledger
        self._starts = starts
        self._stop = stop
        self._user_orders = user_orders
        self._refusals = refusals

    def require(self, name: WorkloadName) -> None:
        """Raises NotFound: the configuration names no such model or job."""
        if name not in self._current.served:
            raise NotFound(f"no model or job is called {name!r}", hint="`kybernate models` lists them")

    def is_unstarted(self, name: WorkloadName) -> bool:
        """The configuration names it, and no agent has started it."""
        return name in self._current.served and self._ledger.get(name) is None

    def begin(self, name: WorkloadName) -> None:
        """A person wants a model or a job of the file to run.

        Raises:
            NotFound: the file names none.
            Conflict: it runs, or a person paused it.
            Busy: the agent starts nothing any more.
        """
        self._starts.refuse()
        self.require(name)
        entry = self._ledger.get(name)
        if entry is not None and not entry.ended:
            hint = (
                f"`kybernate resume {name}`" if entry.state is WorkloadState.PAUSED else f"`kybernate explain {name}`"
            )
            raise Conflict(f"{name} is {entry.state} already", hint=hint)
        self._user_orders.on_requested(name)

    async def stop(
        self, name: WorkloadName, *, grace_s: float, remove: bool = False, stored: Stored | None = None
    ) -> StoppedView:
        """A person ends a workload. A job isn't started again before a person says so or its program is changed; a model is by
        the first request that comes after its end.

        Args:
            stored: what becomes of one that lies below RAM. None: it stays there unless it is to be removed, a model for the
                first request that comes, others until a person resumes them.

        Raises what `StopWorkload` does.
        """
        served = self._current.served.get(name)
        if stored is None:
            is_model = served is not None and served.kind is Kind.MODEL
            stored = Stored.ENDS if remove else Stored.STAYS if is_model else Stored.HELD
        self._user_orders.on_stop_ordered(name)
        if self.is_unstarted(name):
            view = StoppedView(workload=name, exit_status=None, removed=remove, note="it was not started yet")
        else:
            try:
                view = await self._stop(name, grace_s=grace_s, remove=remove, by=EndedBy.ORDER, stored=stored)
            except KybernateError:
                self._user_orders.on_stopped(name)  # it may end later, and is then as one that was stopped
                raise
        # Whoever waited for it until now is told so, and whoever comes from now on is waited for.
        self._refusals.on_stopped_by_order(name)
        self._user_orders.on_stopped(name)
        self._refusals.clear(name)
        return view
