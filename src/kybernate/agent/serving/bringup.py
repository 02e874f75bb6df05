"""Bringing a model or a job to where it computes: resumed from where it lies, cloned from its gold image, or started.

A resumed model may be asked at once, a started one once its probe says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kybernate.agent.records.ledger import Ledger
from kybernate.agent.serving.gold_images import GoldImages
from kybernate.agent.serving.leases import Arrival
from kybernate.agent.serving.readiness import Readiness
from kybernate.agent.serving.running import owner_of, run_request
from kybernate.agent.serving.surroundings import RunWorkload, Switches
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.model.types import WorkloadName, WorkloadState
from kybernate.settings.specs import Served

START = "start"
CLONE = "clone"


class Bringup:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        run: RunWorkload,
        switches: Switches,
        gold_images: GoldImages,
        readiness: Readiness,
        stats: WorkloadStats,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._run = run
        self._switches = switches
        self._gold_images = gold_images
        self._readiness = readiness
        self._stats = stats
        self._clock = clock

    async def resume(self, name: WorkloadName, *, victims: Sequence[WorkloadName], wait_s: float, why: str) -> None:
        """Raises what the resume does; it is where it was then, or lost."""
        await self._switches.bring(name, victims=victims, wait_s=wait_s, why=why)

    async def start(self, served: Served, *, victims: Sequence[WorkloadName], wait_s: float) -> float | None:
        """From its image or from its beginning; returns once it may be asked, which is told to the workers.

        Returns the seconds that it took. None: it was paused before that, and its resume has it asked again.

        Raises:
            KybernateError: it can't be started, or isn't ready in its time; it has been stopped then.
        """
        name = served.name
        began = self._clock()
        self._stats.update(name, fingerprint=served.fingerprint, done=False, was_ready=False)
        if await self._gold_images.has(served):
            assert served.image is not None
            # Its image was taken when it could be asked, so it can be as soon as it runs.
            self._stats.update(name, was_ready=True)
            await self._gold_images.clone(served, timeout_s=wait_s)
            if self._ledger.entry(name).state is WorkloadState.PAUSED:
                await self._switches.bring(name, victims=victims, wait_s=wait_s, why=f"started: {served.image.name}")
            how = CLONE
        else:
            owner = owner_of(served)
            await self._run(run_request(served, owner), owner, by_itself=True)
            how = START
        if served.probe is None:
            return self._clock() - began
        if how == START:
            while not await self._readiness.wait_ready(served, served.probe):
                if self._readiness.is_away(name):
                    return None
            await self._gold_images.take(served)
        self._readiness.open(name, Arrival(how, self._clock() - began, tuple(victims)))
        return self._clock() - began
