"""The REST API's part about what is stored: snapshots in the tiers, images and clones, the store's upkeep."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from kybernate.agent.api import http
from kybernate.agent.api.routes import Query, Route
from kybernate.agent.orders.images import Images
from kybernate.agent.orders.snapshot_catalog import Library
from kybernate.agent.orders.store_check import Upkeep
from kybernate.agent.records.jobs import Jobs
from kybernate.model import api as words


class Stored(Protocol):
    """What these handlers ask of the agent."""

    library: Library
    images: Images
    upkeep: Upkeep
    jobs: Jobs


class StoredApi:
    def __init__(self, agent: Stored) -> None:
        self._agent = agent

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("GET", "/v1/snapshots", self.snapshots, "All snapshots in all tiers", answer=words.SnapshotList),
            Route(
                "DELETE",
                "/v1/snapshots/{name}",
                self.remove_snapshot,
                "Delete a snapshot",
                answer=words.StoredView,
                query=(Query("tier", "string", "only from this tier", values=("nvme", "object")),),
            ),
            Route(
                "POST",
                "/v1/snapshots/{name}/move",
                self.move,
                "Let a snapshot, or a paused workload of that name, lie in another tier",
                body=words.MoveRequest,
                answer=words.StoredView,
            ),
            Route(
                "POST",
                "/v1/snapshots/{name}/clone",
                self.clone,
                "Make workloads of an image",
                body=words.CloneRequest,
                answer=words.CloneList,
                status=201,
            ),
            Route(
                "POST",
                "/v1/store/verify",
                self.verify,
                "Read what is stored and compare it with its hashes",
                body=words.VerifyRequest,
                answer=words.VerifiedList,
            ),
            Route(
                "POST",
                "/v1/store/gc",
                self.collect,
                "Remove what no snapshot needs",
                body=words.CollectRequest,
                answer=words.CollectedList,
            ),
            Route("GET", "/v1/jobs", self.list_jobs, "Long steps of the store under way", answer=words.JobList),
        )

    async def snapshots(self, _: web.Request) -> web.Response:
        return http.answer(await self._agent.library.listing())

    async def remove_snapshot(self, request: web.Request) -> web.Response:
        name, tier = http.snapshot_of(request), http.tier(request)
        return http.answer(await self._agent.library.remove(name, tier, http.caller(request)))

    async def move(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.MoveRequest)
        return http.answer(await self._agent.library.move(http.snapshot_of(request), wanted, http.caller(request)))

    async def clone(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.CloneRequest)
        made = await self._agent.images.clone(http.snapshot_of(request), wanted, http.caller(request))
        return http.answer(made, status=201)

    async def verify(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.VerifyRequest)
        return http.answer(await self._agent.upkeep.verify(wanted, http.caller(request)))

    async def collect(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, words.CollectRequest)
        return http.answer(await self._agent.upkeep.collect(wanted, http.caller(request)))

    async def list_jobs(self, _: web.Request) -> web.Response:
        return http.answer(words.JobList(jobs=self._agent.jobs.views()))
