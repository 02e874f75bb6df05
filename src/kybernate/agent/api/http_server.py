"""Serving the API by aiohttp: what is no HTTP, or fails before any handler, is answered in our words and fills no log.

aiohttp logs a traceback for each request that it can't read, and answers in plain text with pieces of it: whoever reaches the port,
token or not, could write into the log as much as they like.

Limits: `_make_server` is the one place where aiohttp lets a runner choose its server, and not documented; a test over a real socket
notices when it goes.
"""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import http_exceptions, web
from aiohttp.web_protocol import RequestHandler

from kybernate.agent.api import http
from kybernate.model.api import ErrorView

log = logging.getLogger(__name__)

_LINE_MAX = 8190
_HINT = "GET /openapi.json lists what may be asked"


class Runner(web.AppRunner):
    """As aiohttp's, with our answers."""

    def __init__(self, application: web.Application, *, shutdown_timeout: float) -> None:
        super().__init__(application, access_log=None, shutdown_timeout=shutdown_timeout)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            if request.headers.get("Expect", "100-continue").lower() != "100-continue":
                # Before the router, which would answer by itself.
                view = ErrorView(
                    code="bad_input", message="what the request expects can't be met", hint="leave out Expect"
                )
                return http.error_answer(417, view)
            return await made.request_handler(request)

        return _Server(handle, request_factory=made.request_factory, access_log=None, max_line_size=_LINE_MAX)


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class _Handler(RequestHandler):
    """One connection."""

    __slots__ = ()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Overrides aiohttp's: a body that can't be read is the sender's fault."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError | http_exceptions.HttpProcessingError):
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Overrides aiohttp's. Closes the connection after the answer."""
        if isinstance(exc, http_exceptions.HttpProcessingError):
            view = ErrorView(code="bad_input", message=_problem(exc), hint=_HINT)
            status = 431 if isinstance(exc, http_exceptions.LineTooLong) else 400
        else:
            view = http.internal(request.method, request.path, exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun")
        response = http.error_answer(status, view)
        response.force_close()
        return response


def _problem(error: http_exceptions.HttpProcessingError) -> str:
    """Without a piece of what was sent."""
    match error:
        case http_exceptions.LineTooLong():
            return f"a line of the request is longer than {_LINE_MAX} bytes"
        case http_exceptions.InvalidURLError():
            return "the request's address makes no sense"
        case http_exceptions.BadHttpMethod() | http_exceptions.BadStatusLine():
            return "what came is no HTTP request"
    return "the request's head or body makes no sense"
