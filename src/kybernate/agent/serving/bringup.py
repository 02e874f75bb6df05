"""Bringing a model or a job to where it computes: resumed from where it lies, cloned from its gold image, or started.

A resumed model may be asked at once, a started one once its probe says so.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence

from kybernate.agent.gear import Gear
from kybernate.agent.orders.images import Images
from kybernate.agent.orders.ready import EndedUnready, HttpPath, wait_ready
from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.orders.switching import Switching
from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.leases import Came, Gates
from kybernate.agent.serving.running import owner_of, run_request
from kybernate.agent.serving.workload_stats import Memories
from kybernate.agent.tiers.pool_eviction import PoolEviction
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import CloneRequest, SnapshotRequest
from kybernate.model.errors import Conflict, KybernateError, NotFound
from kybernate.model.types import TierName, WorkloadName, WorkloadState
from kybernate.settings.specs import Probe, Served

log = logging.getLogger(__name__)

START = "start"
CLONE = "clone"


class Coming:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        gear: Gear,
        workloads: Workloads,
        switching: Switching,
        library: SnapshotCatalog,
        images: Images,
        pool_eviction: PoolEviction,
        gates: Gates,
        memories: Memories,
    ) -> None:
        self._gear = gear
        self._workloads = workloads
        self._switching = switching
        self._library = library
        self._images = images
        self._pool_eviction = pool_eviction
        self._gates = gates
        self._memories = memories

    async def resume(self, name: WorkloadName, *, victims: Sequence[WorkloadName], wait_s: float, why: str) -> None:
        """Raises what the resume does; it is where it was then, or lost."""
        await self._switching.bring(name, victims=victims, wait_s=wait_s, why=why)

    async def start(self, served: Served, *, victims: Sequence[WorkloadName], wait_s: float) -> bool:
        """From its image or from its beginning; returns once it may be asked, which is told to the workers.

        Returns False when it was paused before that: whoever resumes it has it asked again whether it is ready.

        Raises:
            KybernateError: it can't be started, or isn't ready in its time; it has been stopped then.
        """
        name = served.name
        began = self._gear.clock()
        self._memories.update(name, fingerprint=served.fingerprint, done=False, was_ready=False)
        if await self._from_image(served):
            assert served.image is not None
            # Its image was taken when it could be asked, so it can be as soon as it runs.
            self._memories.update(name, was_ready=True)
            wanted = CloneRequest.of(name=name, timeout_s=wait_s)
            await self._gear.clones.clone(served.image.name, wanted, owner_of(served), by_itself=True)
            if self._gear.ledger.entry(name).state is WorkloadState.PAUSED:
                await self._switching.bring(name, victims=victims, wait_s=wait_s, why=f"started: {served.image.name}")
            how = CLONE
        else:
            owner = owner_of(served)
            await self._gear.starting.run(run_request(served, owner), owner, by_itself=True)
            how = START
        if served.probe is None:
            return True
        if how == START:
            while not await self.wait_ready(served, served.probe):
                if self._away(name):
                    return False
            await self._take_image(served)
        self.opened(name, Came(how, self._gear.clock() - began, tuple(victims)))
        return True

    async def wait_ready(self, served: Served, probe: Probe) -> bool:
        """Wait until it may be asked. False: it was paused meanwhile.

        One that is paused answers nobody. Were it waited for all the same, whoever gave way for it would stay away
        that long, and in the end it would be stopped for something that is not its fault.

        Raises:
            KybernateError: it isn't ready in its time; it has been stopped then.
        """
        name = served.name
        tree = self._workloads.tree(name)
        if tree is None:
            entry = self._gear.ledger.get(name)
            status = None if entry is None else entry.exit_status
            raise EndedUnready(name, status=status, run_directory=self._gear.state.run_directory(name))
        path = None if probe.path is None else HttpPath("127.0.0.1", probe.port, probe.path)
        withdrawn = threading.Event()
        asking = asyncio.ensure_future(
            in_thread(
                f"ready {name}",
                lambda: wait_ready(
                    tree,
                    path=path,
                    command=probe.command,
                    timeout_s=probe.timeout_s,
                    port=probe.port,
                    withdrawn=withdrawn,
                ),
            )
        )
        pausing = asyncio.ensure_future(self._workloads.wait_until(lambda: self._away(name), None))
        try:
            # The thread may hang in a question to a frozen process for seconds: it is left to end by itself.
            await asyncio.wait((asking, pausing), return_when=asyncio.FIRST_COMPLETED)
            if pausing.done():
                return False
            await asking
        except KybernateError as e:
            entry = self._gear.ledger.get(name)
            if entry is not None and not entry.ended:
                e.hint = f"stopped; models.{name}.ready_timeout, and `kybernate logs {name}`"
                await self._gear.ending.stop(name, grace_s=1.0, remove=False)
            raise
        finally:
            withdrawn.set()
            for each in (asking, pausing):
                each.cancel()
            await asyncio.gather(asking, pausing, return_exceptions=True)
        self._memories.update(name, was_ready=True)
        return True

    def _away(self, name: WorkloadName) -> bool:
        entry = self._gear.ledger.get(name)
        return entry is not None and entry.state in (WorkloadState.PAUSED, WorkloadState.RESUMING)

    def opened(self, name: WorkloadName, came: Came | None) -> None:
        """It runs and is ready: let the workers forward."""
        entry, tree = self._gear.ledger.get(name), self._workloads.tree(name)
        if entry is None or entry.state is not WorkloadState.RUNNING or tree is None:
            return
        self._gates.open(name, network_pid=self.network_pid(name), came=came)

    def network_pid(self, name: WorkloadName) -> int | None:
        """A process in the network in which the model listens; None: the host's."""
        tree = self._workloads.tree(name)
        return tree.supervisor_pid if tree is not None and tree.isolated else None

    def may_sink(self, entry: Entry) -> bool:
        return self._pool_eviction.may_demote(entry)

    async def sink(self, served: Served) -> bool:
        """One that has been paused in RAM for long goes to its lowest tier. Whether it left."""
        entry = self._gear.ledger.entry(served.name)
        return await self._pool_eviction.demote(
            entry, served.lowest_tier, why=f"went to {served.lowest_tier}, being idle for long"
        )

    async def _from_image(self, served: Served) -> bool:
        """Whether there is an image of this very program."""
        image = served.image
        if image is None or self._gear.gpu is None:
            return False
        try:
            await in_thread(f"find {image.name}", lambda: self._gear.stores.find(image.name, one=True))
        except KybernateError as e:
            if not image.take or not isinstance(e, NotFound):
                self._gear.events.record(
                    "image-missing", f"started without its image: {e.message}", workload=served.name
                )
            return False
        imaged = self._memories.of(served.name).imaged
        if image.take and imaged and imaged != served.fingerprint:
            text = f"image {image.name} is of what was configured before: started without it, and it is taken anew"
            self._gear.events.record("image-old", text, workload=served.name)
            await self._library.remove(image.name, None, owner_of(served))
            return False
        return True

    async def _take_image(self, served: Served) -> None:
        """A model whose image could not be taken serves all the same."""
        image = served.image
        if image is None or not image.take or self._gear.gpu is None:
            return
        tier = TierName.OBJECT if served.lowest_tier is TierName.OBJECT else TierName.NVME
        try:
            await self._images.snapshot(served.name, SnapshotRequest.of(image=image.name, tier=tier))
        except Conflict as e:
            log.info("image %s of %s: %s", image.name, served.name, e)
            return
        except KybernateError as e:
            self._gear.events.record("image-failed", f"its image was not taken: {e.message}", workload=served.name)
            return
        self._memories.update(served.name, imaged=served.fingerprint)
