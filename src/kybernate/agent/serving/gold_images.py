"""Gold images of models: started from where there is one of this very program, taken once a model is ready."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kybernate.agent.orders.clones import Clones
from kybernate.agent.orders.images import Images
from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.records.events import Events
from kybernate.agent.serving.running import owner_of
from kybernate.agent.serving.vram_access import VramAccess
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.api import CloneRequest, SnapshotRequest
from kybernate.model.errors import Conflict, KybernateError, NotFound
from kybernate.model.types import TierName
from kybernate.settings.specs import Served

log = logging.getLogger(__name__)


class GoldImages:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        images: Images,
        clones: Clones,
        catalog: SnapshotCatalog,
        find: Callable[[str], object],
        stats: WorkloadStats,
        events: Events,
        vram: VramAccess,
    ) -> None:
        """`find`: looks for a snapshot of that name in the tiers. Blocks; raises NotFound, or what hinders it to tell."""
        self._images = images
        self._clones = clones
        self._catalog = catalog
        self._find = find
        self._stats = stats
        self._events = events
        self._vram = vram

    async def has(self, served: Served) -> bool:
        """Whether there is an image of this very program."""
        image = served.image
        if image is None or not self._vram.exists:
            return False
        try:
            await in_thread(f"find {image.name}", lambda: self._find(image.name))
        except KybernateError as e:
            if not image.take or not isinstance(e, NotFound):
                self._events.record("image-missing", f"started without its image: {e.message}", workload=served.name)
            return False
        imaged = self._stats.of(served.name).imaged
        if image.take and imaged and imaged != served.fingerprint:
            text = f"image {image.name} is of what was configured before: started without it, and it is taken anew"
            self._events.record("image-old", text, workload=served.name)
            await self._catalog.remove(image.name, None, owner_of(served))
            return False
        return True

    async def clone(self, served: Served, *, timeout_s: float) -> None:
        """Start it from its image. Raises what the clone does."""
        assert served.image is not None
        wanted = CloneRequest.of(name=served.name, timeout_s=timeout_s)
        await self._clones.clone(served.image.name, wanted, owner_of(served), by_itself=True)

    async def take(self, served: Served) -> None:
        """A model whose image could not be taken serves all the same."""
        image = served.image
        if image is None or not image.take or not self._vram.exists:
            return
        tier = TierName.OBJECT if served.lowest_tier is TierName.OBJECT else TierName.NVME
        try:
            await self._images.snapshot(served.name, SnapshotRequest.of(image=image.name, tier=tier))
        except Conflict as e:
            log.info("image %s of %s: %s", image.name, served.name, e)
            return
        except KybernateError as e:
            self._events.record("image-failed", f"its image was not taken: {e.message}", workload=served.name)
            return
        self._stats.update(served.name, imaged=served.fingerprint)
