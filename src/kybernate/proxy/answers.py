"""Answers that are the activator's own: errors as OpenAI's clients expect them, the list of models, health."""

from __future__ import annotations

import http
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from kybernate.model.messages import Endpoint, Status
from kybernate.proxy.codings import ACCEPTED
from kybernate.proxy.queueing import RETRY_MAX_S
from kybernate.proxy.refusals import Refusal

_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
"""What may be passed on; a model's server says which of these it answers."""


def error_object(refusal: Refusal) -> dict[str, Any]:
    """As OpenAI has it."""
    kind = "invalid_request_error" if refusal.status < 500 and refusal.status != 429 else "server_error"
    if refusal.status == 429:
        kind = "rate_limit_error"
    return {"error": {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}}


def error(refusal: Refusal, *, extra: bytes, close: bool, head_only: bool = False) -> bytes:
    """`extra` are whole header lines."""
    body = error_object(refusal)
    if refusal.retry_after_s is not None:
        extra += b"retry-after: %d\r\n" % max(1, math.ceil(min(refusal.retry_after_s, RETRY_MAX_S)))
    if refusal.status == 415:
        extra += b"accept-encoding: %b\r\n" % ACCEPTED.encode()
    if refusal.status == 405:
        extra += b"allow: %b\r\n" % _METHODS
    if refusal.status == 401:
        extra += b"www-authenticate: Bearer\r\n"
    return page(refusal.status, body, extra=extra, close=close, head_only=head_only)


def page(status: int, content: Mapping[str, Any], *, extra: bytes, close: bool, head_only: bool = False) -> bytes:
    body = json.dumps(content, separators=(",", ":")).encode()
    try:
        reason = http.HTTPStatus(status).phrase.encode()
    except ValueError:
        reason = b""
    return b"".join(
        (
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % (status, reason, len(body)),
            b"connection: close\r\n" if close else b"",
            extra,
            b"\r\n",
            b"" if head_only else body,
        )
    )


def models(endpoints: Iterable[Endpoint], statuses: Mapping[str, Status | None]) -> dict[str, Any]:
    """Every name that may be asked for, but those that are hidden, as OpenAI lists them."""
    return {
        "object": "list",
        "data": [
            model(name, endpoint, statuses.get(endpoint.model))
            for endpoint in endpoints
            for name in (endpoint.model, *(n for n in endpoint.names if n != endpoint.model))
            if name not in endpoint.hidden
        ],
    }


def model(name: str, endpoint: Endpoint, status: Status | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "kybernate",
        "workload": name if endpoint.model in endpoint.hidden else endpoint.model,
        "state": status.state if status is not None else "unknown",
        "tier": status.tier if status is not None else None,
        "expected_s": status.expected_s if status is not None else None,
    }


def preflight(fields: bytes, *, extra: bytes, close: bool) -> bytes:
    """What a browser asks before a page's request: no body, nothing of a model. Both are whole header lines."""
    return b"".join(
        (b"HTTP/1.1 204 No Content\r\n", fields, b"connection: close\r\n" if close else b"", extra, b"\r\n")
    )
