"""The REST API's part about serving: models and jobs, what would be done, the configuration read again."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from kybernate.agent.api import http
from kybernate.agent.api.routes import route
from kybernate.agent.serving.serving import Serving
from kybernate.model.api_serving import PlanRequest, PlanView, ReloadView, ServedView, ServingView
from kybernate.model.types import WorkloadName


class ServingAgent(Protocol):
    """What these handlers ask of the agent."""

    serving: Serving
    clock: Callable[[], float]


class ServedApi:
    def __init__(self, agent: ServingAgent) -> None:
        self._agent = agent

    @route(
        "GET",
        "/v1/serving",
        "Models and jobs, their queues, what switches cost, who had the GPU",
        answer=ServingView,
    )
    async def show_serving(self, request: web.Request) -> web.Response:
        return http.answer(self._agent.serving.views.view(self._agent.clock(), caller=http.caller(request)))

    @route(
        "POST",
        "/v1/serving/plan",
        "What would be done now, were there requests for these models",
        body=PlanRequest,
        answer=PlanView,
    )
    async def plan(self, request: web.Request) -> web.Response:
        wanted = await http.body(request, PlanRequest)
        serving = self._agent.serving
        names = [WorkloadName(name) for name in wanted.models]
        for name in names:
            serving.orders.require(name)
        return http.answer(serving.views.plan(names))

    @route(
        "POST",
        "/v1/serving/served/{name}/start",
        "Start a model or a job of the configuration as soon as it gets room",
        answer=ServedView,
    )
    async def start_served(self, request: web.Request) -> web.Response:
        http.caller(request).require_owner(os.geteuid(), "what the configuration names")
        name = http.name_of(request)
        serving = self._agent.serving
        serving.orders.begin(name)
        view = serving.views.view(self._agent.clock(), caller=http.caller(request))
        return http.answer(next(each for each in view.served if each.name == name))

    @route(
        "POST",
        "/v1/serving/reload",
        "Read the configuration again, all but `agent`; nothing changes if it makes no sense",
        answer=ReloadView,
    )
    async def reload(self, request: web.Request) -> web.Response:
        http.caller(request).require_owner(os.geteuid(), "the agent")
        return http.answer(await self._agent.serving.file.reload())
