"""What both clients do with httpx2: the Unix socket, and its errors in our words."""

from __future__ import annotations

from pathlib import Path

import httpx2

from kybernate.model.errors import AgentAway, KybernateError

BASE_URL = "http://agent"
"""The host is never resolved: the socket decides."""
CONNECT_TIMEOUT_S = 5.0


def timeout(seconds: float | None) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=CONNECT_TIMEOUT_S)


def in_our_words(error: Exception, socket: Path) -> KybernateError:
    """The product's error for one of the transport."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        if isinstance(_root(error), PermissionError):
            return AgentAway(f"may not open {socket}", hint="be root or in the agent's group (api.group)")
        return AgentAway(f"no agent answers on {socket}", hint="start one with `kybernate up`")
    if isinstance(error, httpx2.TimeoutException):
        return KybernateError(
            f"the agent on {socket} did not answer in time", hint="`kybernate events` shows what it does"
        )
    return AgentAway(
        f"the agent on {socket} went away in the middle of the answer",
        hint="`kybernate ps` shows where it stands once an agent runs again",
    )


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
