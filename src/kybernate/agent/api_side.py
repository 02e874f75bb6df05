"""What the API asks of the agent, put together."""

from __future__ import annotations

import asyncio
from typing import Protocol

from kybernate.agent.wiring.foundation import Foundation
from kybernate.agent.wiring.parts import Parts
from kybernate.model.api import NodeView


class Node(Protocol):
    """The agent as a whole."""

    closing: asyncio.Event

    def node_view(self) -> NodeView: ...

    async def ask_tiers(self) -> None: ...

    def metrics(self) -> bytes: ...

    async def stop_all(self, grace_s: float) -> None: ...

    def ask_to_end(self) -> None: ...


class ApiSide:
    """See `Agent` in api/api.py."""

    def __init__(self, base: Foundation, parts: Parts, *, node: Node) -> None:
        self.clock = base.clock
        self.ledger = base.ledger
        self.events = base.events
        self.jobs = base.jobs
        self.workloads = parts.workloads
        self.workload_views = parts.workload_views
        self.starting = parts.starting
        self.ending = parts.ending
        self.switching = parts.switching
        self.external = parts.external
        self.tiering = parts.tiering
        self.discovery = parts.discovery
        self.catalog = parts.catalog
        self.moving = parts.moving
        self.images = parts.images
        self.clones = parts.clones
        self.store_check = parts.store_check
        self.history = parts.history
        self.serving = parts.serving
        self.closing = node.closing
        self._node = node

    def node_view(self) -> NodeView:
        return self._node.node_view()

    async def ask_tiers(self) -> None:
        await self._node.ask_tiers()

    def metrics(self) -> bytes:
        return self._node.metrics()

    async def stop_all(self, grace_s: float) -> None:
        """End all workloads. Raises Busy: not all of them could be ended, and the agent stays."""
        await self._node.stop_all(grace_s)

    def ask_to_end(self) -> None:
        self._node.ask_to_end()
