"""What clients get to read when the agent itself fails, and what they don't."""

from __future__ import annotations

import json
import logging

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from kybernate.agent.api import http


async def test_an_internal_failure_is_told_by_a_number_only(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: web.Request) -> web.Response:
        raise RuntimeError("postgres://user:secret@host")

    application = web.Application(middlewares=[http.errors_in_our_words])
    application.router.add_get("/", fail)
    with caplog.at_level(logging.ERROR):
        async with TestClient(TestServer(application)) as client:
            answer = await client.get("/")
            text = await answer.text()
    assert answer.status == 500
    assert "secret" not in text
    assert "RuntimeError" not in text
    error = json.loads(text)
    assert error["code"] == "internal"
    number = error["message"].rpartition(" ")[2]
    (record,) = [record for record in caplog.records if number in record.getMessage()]
    assert record.exc_info is not None
    assert "secret" in str(record.exc_info[1]), "the log has all of it"
