"""Which workload a request names, and whether its caller may change it."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from kybernate.agent.api import http
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.records.views import for_strangers
from kybernate.agent.tiers.workload_discovery import WorkloadDiscovery
from kybernate.agent.workloads.view import WorkloadViews
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import WorkloadView
from kybernate.model.caller import Caller
from kybernate.model.types import WorkloadName


class KnownWorkloads(Protocol):
    """What this asks of the agent."""

    ledger: Ledger
    workloads: Workloads
    workload_views: WorkloadViews
    discovery: WorkloadDiscovery


class Access:
    def __init__(self, agent: KnownWorkloads) -> None:
        self._agent = agent

    def entry(self, request: web.Request) -> Entry:
        """Raises NotFound."""
        return self._agent.ledger.entry(http.name_of(request))

    def own(self, request: web.Request) -> WorkloadName:
        """The name, if the caller may change that workload. Raises NotFound, NotPermitted."""
        entry = self.entry(request)
        http.caller(request).require_owner(entry.uid, f"workload {entry.name}")
        return entry.name

    async def own_or_stored(self, request: web.Request) -> WorkloadName:
        """The same; one that this agent doesn't know is looked for in its tiers."""
        name, caller = http.name_of(request), http.caller(request)
        known = self._agent.ledger.get(name)
        if known is None or known.ended:
            uid = None if caller.owns(-1) else caller.uid
            if known is None or caller.owns(known.uid):
                await self._agent.discovery.find(name, uid)
        return self.own(request)

    def view(self, request: web.Request, entry: Entry) -> WorkloadView:
        return self.seen_by(http.caller(request), entry)

    def seen_by(self, caller: Caller, entry: Entry) -> WorkloadView:
        """Without what is its owner's alone, for everybody else."""
        view = self._agent.workload_views.of(entry)
        return view if caller.owns(entry.uid) else for_strangers(view)
