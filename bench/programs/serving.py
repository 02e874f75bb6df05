"""The HTTP side of the inference servers: what llama_server.py and words_server.py have in common.

    NAME.py make DIRECTORY BYTES      write a model of about that size
    NAME.py serve DIRECTORY PORT      load it as any server would, then answer on 127.0.0.1

`GET /health` answers 200. `GET /generate?prompt=N&tokens=K` gives K tokens, always the same ones for one number and one model.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Protocol


class Answering(Protocol):
    def answer(self, prompt: int, tokens: int) -> list[int]: ...


def serve(model: Answering, port: int) -> None:
    """One request after the other, so that all of the GPU's work is one thread's."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            asked = {key: int(values[0]) for key, values in urllib.parse.parse_qs(url.query).items()}
            content: Any = {"tokens": model.answer(asked["prompt"], asked["tokens"])} if asked else {"status": "ok"}
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """The output is for what matters."""

    server = HTTPServer(("127.0.0.1", port), Handler)
    print("ready", flush=True)
    server.serve_forever()


def main(make: Callable[[Path, int], int], load: Callable[[Path], Answering]) -> None:
    verb, directory, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if verb == "make":
        print(f"made bytes={make(directory, number)}", flush=True)
    else:
        serve(load(directory), number)
