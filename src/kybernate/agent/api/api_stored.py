"""The REST API's part about what is stored: snapshots in the tiers, images and clones, the store's checks."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from kybernate.agent.api import http
from kybernate.agent.api.routes import Query, route
from kybernate.agent.orders.clones import Clones
from kybernate.agent.orders.moving import Moving
from kybernate.agent.orders.snapshot_catalog import SnapshotCatalog
from kybernate.agent.orders.store_check import StoreCheck
from kybernate.agent.records.jobs import Jobs
from kybernate.model.api import (
    CloneList,
    CloneRequest,
    CollectedList,
    CollectRequest,
    JobList,
    MoveRequest,
    SnapshotList,
    StoredView,
    VerifiedList,
    VerifyRequest,
)


class StoredAgent(Protocol):
    """What these handlers ask of the agent."""

    catalog: SnapshotCatalog
    moving: Moving
    clones: Clones
    store_check: StoreCheck
    jobs: Jobs


class StoredApi:
    def __init__(self, agent: StoredAgent) -> None:
        self._agent = agent

    @route("GET", "/v1/snapshots", "All snapshots in all tiers", answer=SnapshotList)
    async def snapshots(self, _: web.Request) -> web.Response:
        return http.answer(await self._agent.catalog.listing())

    @route(
        "DELETE",
        "/v1/snapshots/{name}",
        "Delete a snapshot",
        answer=StoredView,
        query=(Query("tier", "string", "only from this tier", values=("nvme", "object")),),
    )
    async def remove_snapshot(self, request: web.Request) -> web.Response:
        name, tier = http.snapshot_of(request), http.tier(request)
        return http.answer(await self._agent.catalog.remove(name, tier, http.caller(request)))

    @route(
        "POST",
        "/v1/snapshots/{name}/move",
        "Let a snapshot, or a paused workload of that name, lie in another tier",
        body=MoveRequest,
        answer=StoredView,
    )
    async def move(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, MoveRequest)
        return http.answer(await self._agent.moving.move(http.snapshot_of(request), wanted, http.caller(request)))

    @route(
        "POST",
        "/v1/snapshots/{name}/clone",
        "Make workloads of an image",
        body=CloneRequest,
        answer=CloneList,
        status=201,
    )
    async def clone(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, CloneRequest)
        made = await self._agent.clones.clone(http.snapshot_of(request), wanted, http.caller(request))
        return http.answer(made, status=201)

    @route(
        "POST",
        "/v1/store/verify",
        "Read what is stored and compare it with its hashes",
        body=VerifyRequest,
        answer=VerifiedList,
    )
    async def verify(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, VerifyRequest)
        return http.answer(await self._agent.store_check.verify(wanted, http.caller(request)))

    @route("POST", "/v1/store/gc", "Remove what no snapshot needs", body=CollectRequest, answer=CollectedList)
    async def collect(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, CollectRequest)
        return http.answer(await self._agent.store_check.collect(wanted, http.caller(request)))

    @route("GET", "/v1/jobs", "Long steps of the store under way", answer=JobList)
    async def list_jobs(self, _: web.Request) -> web.Response:
        return http.answer(JobList(jobs=self._agent.jobs.views()))
