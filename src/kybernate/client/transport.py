"""What both clients do with httpx2: the Unix socket, and its errors in our words."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx2

from kybernate.client.inside import workload_here
from kybernate.model.errors import AgentAway, KybernateError

BASE_URL = "http://agent"
"""The host is never resolved: the socket decides."""
CONNECT_TIMEOUT_S = 5.0


def timeout(seconds: float | None) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=CONNECT_TIMEOUT_S)


def knock(path: Path) -> None:
    """See whether somebody listens, before httpx2 tries: it leaves its socket open when connecting fails.

    Raises:
        AgentAway: nobody does.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except PermissionError as e:
            raise AgentAway(f"may not open {path}", hint="be root or in the agent's group (api.group)") from e
        except OSError as e:
            raise _nobody(path) from e


def _nobody(path: Path) -> AgentAway:
    name = workload_here()
    if name is None:
        return AgentAway(f"no agent answers on {path}", hint="start one with `kybernate up`")
    return AgentAway(
        f"no agent answers on {path}: this is inside workload {name}, which doesn't see its agent",
        hint="run the command outside of it",
    )


def in_our_words(error: Exception, path: Path) -> KybernateError:
    """The product's error for one of the transport."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return _nobody(path)
    if isinstance(error, httpx2.TimeoutException):
        return KybernateError(
            f"the agent on {path} did not answer in time", hint="`kybernate events` shows what it does"
        )
    return AgentAway(
        f"the agent on {path} went away in the middle of the answer",
        hint="`kybernate ps` shows where it stands once an agent runs again",
    )
