"""An agent's socket that answers what it was told to, for tests of what clients ask and what the command line says."""

from __future__ import annotations

import contextlib
import json
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from pydantic import BaseModel

Asked = tuple[str, str, Any]
"""Method, target, and what was said."""


class AnsweringAgent(socketserver.ThreadingUnixStreamServer):
    """`answers` by path, without the query; whatever is in none of them is answered as unknown."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.socket_path = path
        self.asked: list[Asked] = []
        self.answers: dict[str, bytes] = {}

    @property
    def state(self) -> Path:
        """The state directory, as it is given to `--state-dir`."""
        return self.socket_path.parent

    def answer(self, path: str, view: BaseModel) -> None:
        self.answers[path] = view.model_dump_json().encode()


class _Handler(BaseHTTPRequestHandler):
    server: AnsweringAgent
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "somebody"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the base class
        """Nothing."""

    def _answer(self) -> None:
        said = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.asked.append((self.command, self.path, json.loads(said) if said else None))
        found = self.server.answers.get(self.path.partition("?")[0])
        body = found if found is not None else b'{"code": "not_found", "message": "nobody knows that"}'
        self.send_response(200 if found is not None else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - named by the base class


@contextlib.contextmanager
def answering() -> Iterator[AnsweringAgent]:
    """One that listens for the block."""
    with (
        tempfile.TemporaryDirectory(prefix="kyb-") as directory,
        AnsweringAgent(Path(directory) / "agent.sock") as made,
    ):
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()
