"""The host pool, what the engine has prefetched into it, and the order to do so, as one: what prefetching needs."""

from __future__ import annotations

from collections.abc import Iterable

from kybernate.agent.orders.tiering import Tiering
from kybernate.agent.serving.prefetching import PrefetchedContent
from kybernate.cuda.pool import PinnedPool
from kybernate.engine.engine import Engine
from kybernate.model.api import StoredView
from kybernate.model.types import WorkloadName


class PoolContent:
    """See `HostPool` in prefetching.py."""

    def __init__(self, *, pool: PinnedPool, engine: Engine, tiering: Tiering) -> None:
        self._pool = pool
        self._engine = engine
        self._tiering = tiering

    @property
    def size_bytes(self) -> int:
        return self._pool.size_bytes

    @property
    def free_slots(self) -> int:
        return self._pool.free_slots

    def prefetched(self) -> Iterable[PrefetchedContent]:
        return self._engine.staged()

    def drop(self, uid: str) -> None:
        self._engine.drop_staged(uid)

    async def prefetch(self, name: WorkloadName) -> StoredView:
        return await self._tiering.prefetch(name, by_person=False)
