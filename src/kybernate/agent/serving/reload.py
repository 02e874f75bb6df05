"""The configuration put into force, at the start and when the file is read again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kybernate.agent.records.events import Events
from kybernate.agent.serving.advice import advice_on
from kybernate.agent.serving.configuration import (
    Configured,
    CurrentConfiguration,
    configured,
    kinds,
    settings_changed,
)
from kybernate.agent.serving.policy_start import PolicyStart
from kybernate.agent.serving.prefetching import Prefetching
from kybernate.agent.serving.processes import Processes
from kybernate.agent.serving.removal import ModelLeases, Removal
from kybernate.agent.serving.user_orders import UserOrders
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.api_serving import ReloadView
from kybernate.model.errors import BadInput, KybernateError
from kybernate.model.types import WorkloadName
from kybernate.settings import AgentSettings, load
from kybernate.settings.differences import differing


class Applying:
    """Puts a configuration into force. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        current: CurrentConfiguration,
        models: ModelLeases,
        stats: WorkloadStats,
        prefetching: Prefetching,
        user_orders: UserOrders,
        vram: VramAccess,
        processes: Processes,
    ) -> None:
        self._current = current
        self._models = models
        self._stats = stats
        self._prefetching = prefetching
        self._user_orders = user_orders
        self._vram = vram
        self._processes = processes

    def apply(self, new: Configured) -> None:
        self._current.replace(new)
        self._models.configure(new)
        for served in new.served.values():
            self._stats.update(served.name, klass=str(served.klass))
        self._prefetching.configure(new.settings.serving.staging.budget)
        self._vram.reserve_for_jobs(new.served)
        self._user_orders.on_configured()
        self._models.tell()

    def want_workers(self) -> None:
        """Have the activator's processes as the configuration says."""
        self._processes.want(self._current.now.address, grace_s=self._current.grace_s)


class Reload:
    """The file, read again. Use it in the loop's thread."""

    def __init__(
        self,
        *,
        file: Path | None,
        began_with: AgentSettings,
        current: CurrentConfiguration,
        applying: Applying,
        removal: Removal,
        policy_start: PolicyStart,
        vram: VramAccess,
        events: Events,
    ) -> None:
        """`began_with`: what the file said of the agent itself when it began."""
        self._file = file
        self._began_with = began_with
        self._current = current
        self._applying = applying
        self._removal = removal
        self._policy_start = policy_start
        self._vram = vram
        self._events = events
        self._reloading = asyncio.Lock()

    async def reload(self) -> ReloadView:
        """Read the file again; nothing changes if it makes no sense.

        Raises:
            BadInput: it was started without a file, or there is something wrong with it.
        """
        if self._file is None:
            raise BadInput("this agent was started without a file", hint="start it with `kybernate up -f FILE`")
        file = self._file
        async with self._reloading:
            try:
                new = await in_thread("reload", lambda: configured(load(file)))
            except KybernateError as e:
                self._events.record("reload-refused", f"nothing was changed: {e.message}")
                raise
            view = self._compare(new)
            await self._removal.take_out([WorkloadName(name) for name in view.removed], grace_s=self._current.grace_s)
            self._applying.apply(new)
            self._applying.want_workers()
            self._policy_start.begin_when_needed()
        what = ", ".join(f"{kind} {' '.join(names)}" for kind, names in kinds(view) if names)
        self._events.record("reloaded", f"{file}: {what or 'nothing has changed'}", data=view.model_dump())
        return view

    def _compare(self, new: Configured) -> ReloadView:
        old = self._current.now
        both = [name for name in new.served if name in old.served]
        restart = differing(self._began_with, new.settings.agent, under="agent")
        notes = [f"{', '.join(restart)}: holds once the agent is started again"] if restart else []
        return ReloadView(
            added=sorted(new.served.keys() - old.served.keys()),
            removed=sorted(old.served.keys() - new.served.keys()),
            changed=sorted(name for name in both if old.served[name] != new.served[name]),
            restarting=sorted(name for name in both if old.served[name].fingerprint != new.served[name].fingerprint),
            settings=settings_changed(old, new),
            notes=notes,
            advice=advice_on(new, self._vram),
        )
