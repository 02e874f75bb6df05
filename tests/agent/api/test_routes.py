"""Routes stand at their handlers: every one is found, bound to its object, and described."""

from __future__ import annotations

import pytest
from aiohttp import web

from kybernate.agent.api.api import Api
from kybernate.agent.api.openapi import describe
from kybernate.agent.api.routes import Query, route, routes_of

pytestmark = pytest.mark.unit


class _Handlers:
    def __init__(self, text: str) -> None:
        self.text = text

    @route("GET", "/one", "One", query=(Query("ask", "boolean", "whether"),))
    async def one(self, _: web.Request) -> web.Response:
        return web.Response(text=self.text)

    def helper(self) -> None: ...

    @route("POST", "/two", "Two", status=201)
    async def two(self, _: web.Request) -> web.Response:
        return web.Response(text=self.text)


async def test_routes_are_found_in_order_and_bound() -> None:
    one, two = routes_of(_Handlers("said"))
    assert (one.method, one.path, one.summary, one.query[0].name) == ("GET", "/one", "One", "ask")
    assert (two.method, two.path, two.status) == ("POST", "/two", 201)
    answer = await two.handler(None)  # type: ignore[arg-type]
    assert isinstance(answer, web.Response)
    assert answer.text == "said"


def test_no_two_handlers_of_the_api_answer_the_same() -> None:
    routes = Api(object()).routes  # type: ignore[arg-type]
    named = {(each.method, each.path) for each in routes}
    assert len(named) == len(routes) == sum(map(len, describe(routes)["paths"].values()))
    assert ("POST", "/v1/workloads/{name}/pause") in named
    assert ("GET", "/openapi.json") in named
