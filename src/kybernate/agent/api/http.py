"""Reading requests and writing errors: what every handler of the API shares."""

from __future__ import annotations

import errno
import json
import logging
import secrets
import socket
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ValidationError

from kybernate.agent.api.peer import caller_of
from kybernate.model.api import ErrorView
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput, KybernateError, NoRoom
from kybernate.model.snapshot_names import snapshot_name
from kybernate.model.types import TierName, WorkloadName, workload_name

log = logging.getLogger(__name__)

B = TypeVar("B", bound=BaseModel)

CALLER = "kybernate.caller"
"""Key in a request of who asks, where something else than the socket has told."""

BODY_MAX = 4 << 20
"""An environment of 2 MiB (the kernel's limit for one program) written as JSON, and room to spare."""


def answer(view: BaseModel, *, status: int = 200) -> web.Response:
    return web.Response(text=view.model_dump_json(), status=status, content_type="application/json")


def error_answer(status: int, view: ErrorView) -> web.Response:
    return answer(view, status=status)


async def body(request: web.Request, model: type[B]) -> B:
    """The request's body; an empty one stands for all defaults.

    Raises:
        BadInput: not JSON, or not what the model asks for; names the first wrong field.
    """
    raw = await request.read()
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = "GET /openapi.json describes every body"
        message = first["msg"][:200]
        raise BadInput(
            f"bad request body: {where}: {message}" if where else f"bad request body: {message}", hint=hint
        ) from e


def name_of(request: web.Request) -> WorkloadName:
    """Raises BadInput for what can't be a workload's name."""
    return workload_name(request.match_info["name"])


def snapshot_of(request: web.Request) -> str:
    """Raises BadInput for what can't be a snapshot's name."""
    return snapshot_name(request.match_info["name"])


def tier(request: web.Request) -> TierName | None:
    """The query parameter of that name. Raises BadInput for what is no tier."""
    text = request.query.get("tier")
    if text is None:
        return None
    try:
        return TierName(text)
    except ValueError as e:
        raise BadInput(f"bad query parameter tier={text[:40]!r}", hint="use nvme or object") from e


def flag(request: web.Request, name: str) -> bool:
    """A query parameter that is on or off. Raises BadInput for anything else."""
    text = request.query.get(name, "0")
    if text not in ("", "0", "1", "false", "true"):
        raise BadInput(f"bad query parameter {name}={text[:40]!r}", hint="use 1 or 0")
    return text in ("", "1", "true")


def number(request: web.Request, name: str, *, default: float, maximum: float) -> float:
    """A query parameter from 0 to `maximum`. Raises BadInput for anything else."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= maximum:
        raise BadInput(f"bad query parameter {name}={text[:40]!r}", hint=f"use a number from 0 to {maximum:g}")
    return value


def caller(request: web.Request) -> Caller:
    """Who asks."""
    if (known := request.get(CALLER)) is not None:
        assert isinstance(known, Caller)
        return known
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is None:
        raise KybernateError("the caller went away before it could be identified")
    assert isinstance(connection, socket.socket) or hasattr(connection, "getsockopt")
    return caller_of(connection)


@web.middleware
async def errors_in_our_words(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error becomes {code, message, hint} with the status its type says."""
    try:
        return await handler(request)
    except KybernateError as e:
        return error_answer(
            e.http_status, ErrorView(code=e.code, message=e.message, hint=e.hint, exit_status=e.exit_status)
        )
    except web.HTTPNotFound:
        view = ErrorView(
            code="not_found", message=f"no such path: {request.path[:200]}", hint="GET /openapi.json lists them"
        )
        return error_answer(404, view)
    except web.HTTPMethodNotAllowed as e:
        allowed = ", ".join(sorted(e.allowed_methods))
        view = ErrorView(
            code="bad_input", message=f"{request.method} is not allowed on {request.path[:200]}", hint=f"use {allowed}"
        )
        refusal = error_answer(405, view)
        refusal.headers["Allow"] = allowed
        return refusal
    except web.HTTPRequestEntityTooLarge:
        view = ErrorView(
            code="bad_input", message=f"the request body is larger than {BODY_MAX} bytes", hint="send less"
        )
        return error_answer(413, view)
    except web.RequestPayloadError:
        view = ErrorView(code="bad_input", message="the request's body can't be read", hint="send JSON as it is")
        return error_answer(400, view)
    except web.HTTPException:
        raise
    except Exception as e:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            full = NoRoom(
                f"{request.method} {request.path[:200]} failed: no space is left for {e.filename or 'a file of the agent'}",
                hint="`kybernate doctor` says what fills the agent's directory",
            )
            view = ErrorView(code=full.code, message=full.message, hint=full.hint, exit_status=full.exit_status)
            return error_answer(full.http_status, view)
        return error_answer(500, internal(request.method, request.path, e))


def internal(method: str, path: str, error: BaseException | None) -> ErrorView:
    """For what nobody foresaw: all of it goes into the log, and none of it to whoever asked."""
    number = secrets.token_hex(4)
    log.error("%s %r failed (error %s)", method, path[:200], number, exc_info=error)
    return ErrorView(
        code="internal",
        message=f"internal error {number}",
        hint="the agent's log has that number and the details; please report it",
    )


def server_event(event: str, view: BaseModel) -> bytes:
    """One server-sent event. JSON has no raw line ends, so one data line is enough."""
    return f"event: {event}\ndata: {view.model_dump_json()}\n\n".encode()


KEEP_ALIVE = b": here\n\n"


def json_answer(document: object) -> web.Response:
    return web.Response(text=json.dumps(document, indent=1), content_type="application/json")
