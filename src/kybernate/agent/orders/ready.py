"""When a workload is ready for its image to be taken: an HTTP path that answers, or a command that ends well, both inside of
the workload's own namespaces. Blocks; run it in a thread."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kybernate.agent.workloads.logs import last_line
from kybernate.model.errors import BadInput, Busy, KybernateError, WorkloadLost
from kybernate.process.connections import listens
from kybernate.process.entering import run_inside
from kybernate.process.networks import open_socket
from kybernate.process.tree import Tree

_LOOK_S = 0.1
_ANSWER_S = 10.0
"""What a question that is under way at the deadline still gets: what it finds is what is said."""
_COMMAND_S = 60.0


@dataclass(frozen=True, slots=True)
class HttpPath:
    """What answers 2xx once it is ready."""

    host: str
    port: int
    path: str


def http_path(text: str) -> HttpPath:
    """`8000/health`, `:8000/health` or `http://127.0.0.1:8000/health`. Raises BadInput."""
    url = text if "://" in text else f"http://{text if text.startswith(':') else ':' + text}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port = None
    if port is None or port < 1 or parts.scheme != "http" or parts.username or any(c <= " " or c > "~" for c in text):
        raise BadInput(f"{text[:80]!r} is no path to ask", hint="give PORT/PATH or http://HOST:PORT/PATH")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return HttpPath(parts.hostname or "127.0.0.1", port, path)


@dataclass(frozen=True, slots=True)
class Found:
    """What is wrong yet."""

    what: str
    output: str = ""
    """By the probing command itself."""


class EndedUnready(WorkloadLost):
    """It ended before it was ready. The message has the last line of its output, `plain` hasn't: that isn't for everybody."""

    def __init__(self, name: str, *, status: int | None, run_directory: Path) -> None:
        how = "" if status is None else f", with status {status}"
        self.plain = f"workload {name} ended before it was ready{how}"
        output = last_line(run_directory, name)
        super().__init__(
            f"{self.plain}: {output}" if output else f"{self.plain}, and said nothing",
            hint=f"`kybernate logs {name}` has its output",
        )


class NotReady(Busy):
    """It was not ready in time. The message has what its probe complained about, `plain` hasn't: that isn't for everybody."""

    def __init__(self, name: str, *, timeout_s: float, found: Found) -> None:
        self.plain = f"workload {name} was not ready within {timeout_s:g} s: {found.what}"
        super().__init__(
            f"{self.plain}: {found.output}" if found.output else self.plain,
            hint="it runs on; give a longer --ready-timeout",
        )


def for_everybody(error: KybernateError) -> str:
    """The message without what a workload's programs have written, which only its owner may read."""
    return error.plain if isinstance(error, EndedUnready | NotReady) else error.message


def wait_ready(
    tree: Tree,
    *,
    path: HttpPath | None,
    command: Sequence[str],
    timeout_s: float,
    port: int | None = None,
    withdrawn: threading.Event | None = None,
) -> None:
    """Until it is ready; at once where nothing is to be asked.

    Args:
        port: one of its own processes has to listen there, so that nobody else answers in its name.
        withdrawn: once it is set nobody waits for the answer any more, and this returns.

    Raises:
        NotReady: not in time; the message says what was found the last time.
        EndedUnready: it has ended.
    """
    deadline = time.monotonic() + timeout_s
    withdrawn = withdrawn or threading.Event()
    while not withdrawn.is_set():
        if (ended := tree.exit()) is not None:
            raise EndedUnready(tree.name, status=ended.status, run_directory=tree.run_directory)
        found = _missing(tree, path=path, command=command, port=port, left_s=deadline - time.monotonic())
        if found is None:
            return
        if time.monotonic() >= deadline:
            raise NotReady(tree.name, timeout_s=timeout_s, found=found)
        withdrawn.wait(_LOOK_S)


def _missing(
    tree: Tree, *, path: HttpPath | None, command: Sequence[str], port: int | None, left_s: float
) -> Found | None:
    """What it is not ready for; None when it is."""
    try:
        found = _answer(tree, path) if path is not None else None
        if found is None and command:
            found = _run(tree, command, left_s=left_s)
        if found is None and port is not None and not listens(tree, port):
            found = Found(f"none of its processes listens at port {port}")
    except WorkloadLost as e:
        return Found(e.message)  # it ends just now: the next look at its exit has the status
    return found


class _Connection(http.client.HTTPConnection):
    """Through a socket of the workload's network."""

    def __init__(self, tree: Tree, path: HttpPath) -> None:
        super().__init__(path.host, path.port, timeout=_ANSWER_S)
        self._tree = tree

    def connect(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self.sock = open_socket(self._tree, family=family)
        self.sock.settimeout(_ANSWER_S)
        self.sock.connect((self.host, self.port))


def _answer(tree: Tree, path: HttpPath) -> Found | None:
    """What is wrong with the answer; None when it is ready."""
    connection = _Connection(tree, path)
    try:
        connection.request("GET", path.path)
        response = connection.getresponse()
        with contextlib.suppress(OSError, http.client.HTTPException):
            response.read(1 << 16)
    except (OSError, http.client.HTTPException) as e:
        return Found(f"port {path.port}: {getattr(e, 'strerror', None) or type(e).__name__}")
    finally:
        connection.close()
    return None if 200 <= response.status < 300 else Found(f"{path.path} answers {response.status}")


def _run(tree: Tree, command: Sequence[str], *, left_s: float) -> Found | None:
    """What is wrong with the command's end; None when it is ready."""
    try:
        status, output = run_inside(tree, command, timeout_s=min(_COMMAND_S, max(left_s, _ANSWER_S)))
    except TimeoutError:
        return Found(f"{command[0]} takes too long")
    return None if status == 0 else Found(f"{command[0]} ends with status {status}", output)
