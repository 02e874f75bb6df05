"""The HTTP front of the demo's model servers: the OpenAI routes over anything that makes tokens, with the standard library alone.

Answers `/v1/chat/completions` and `/v1/completions` (whole, and as server-sent events), `/v1/embeddings`, `/v1/models`,
`/health`, and `/stats` with counts. It listens only once the model is loaded, as real servers do. A client that hangs up ends
its own generation. Nothing in it knows of pausing.

Limits: no authentication, text prompts only, one choice.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

TOKENS_DEFAULT = 16
TOKENS_MOST = 4096
BODY_MOST = 64 << 20
SOCKET_S = 600.0
"""A connection that says nothing for so long is closed."""


class Model(Protocol):
    """What makes tokens. Called from many threads at once."""

    name: str

    def generate(self, prompt: str, count: int) -> Iterator[str]:
        """`count` tokens that follow the prompt, each as soon as it is known."""
        ...

    def embed(self, text: str) -> list[float]: ...


class Refused(Exception):
    """A request that can't be answered: status and words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Counts:
    """What the server has done since it began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values = {"begun": 0, "ended": 0, "cancelled": 0, "failed": 0, "tokens": 0}

    def add(self, what: str, count: int = 1) -> None:
        with self._lock:
            self._values[what] += count

    def all(self) -> dict[str, int]:
        with self._lock:
            return dict(self._values)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], model: Model) -> None:
        super().__init__(address, _Handler)
        self.model = model
        self.counts = Counts()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are the clients' right; the handler has said everything else already."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SOCKET_S
    disable_nagle_algorithm = True
    server: _Server
    streaming = False
    """Past the point where an error could be said."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named by the base class
        """No access log: thousands of lines of a demo's output would hide its own."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/health":
            self._json(200, {"status": "ok"})
        elif path == "/v1/models":
            model = {"id": self.server.model.name, "object": "model", "owned_by": "kybernate-demo", "created": 0}
            self._json(200, {"object": "list", "data": [model]})
        elif path == "/stats":
            self._json(200, self.server.counts.all())
        else:
            self._refuse(404, f"no such path: {path}")

    def do_POST(self) -> None:
        routes: Mapping[str, Callable[[dict[str, Any]], None]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embeddings,
        }
        path = self.path.partition("?")[0]
        counts = self.server.counts
        counts.add("begun")
        try:
            body = self._body()
            if (route := routes.get(path)) is None:
                raise Refused(404, f"no such path: {path}")
            asked = _parsed(body)
            if (name := asked.get("model", self.server.model.name)) != self.server.model.name:
                raise Refused(404, f"no such model: {name}")
            route(asked)
            counts.add("ended")
        except Refused as e:
            counts.add("ended")
            self._refuse(e.status, str(e))
        except (ConnectionError, TimeoutError):
            counts.add("cancelled")
            self.close_connection = True
        except Exception as e:
            counts.add("failed")
            self.close_connection = True
            print(f"request failed: {type(e).__name__}: {e}", flush=True)
            if not self.streaming:
                with contextlib.suppress(OSError):
                    self._refuse(500, f"{type(e).__name__}: {e}")

    # -- routes ----------------------------------------------------------------------------------------------------------

    def _chat(self, asked: dict[str, Any]) -> None:
        messages = asked.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise Refused(400, "messages must be a list of objects")
        prompt = "\n".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
        self._answer(asked, prompt, chat=True)

    def _completion(self, asked: dict[str, Any]) -> None:
        prompt = asked.get("prompt", "")
        if not isinstance(prompt, str):
            raise Refused(400, "prompt must be a string")
        self._answer(asked, prompt, chat=False)

    def _embeddings(self, asked: dict[str, Any]) -> None:
        given = asked.get("input", "")
        texts = given if isinstance(given, list) else [given]
        data = [
            {"object": "embedding", "index": k, "embedding": self.server.model.embed(str(text))}
            for k, text in enumerate(texts)
        ]
        used = sum(_count(str(text)) for text in texts)
        usage = {"prompt_tokens": used, "total_tokens": used}
        self._json(200, {"object": "list", "model": self.server.model.name, "data": data, "usage": usage})

    def _answer(self, asked: dict[str, Any], prompt: str, *, chat: bool) -> None:
        count = asked.get("max_completion_tokens", asked.get("max_tokens", TOKENS_DEFAULT))
        if not isinstance(count, int) or not 1 <= count <= TOKENS_MOST:
            raise Refused(400, f"max_tokens must be 1 to {TOKENS_MOST}")
        kind = "chat.completion" if chat else "text_completion"
        common = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{time.monotonic_ns()}",
            "created": int(time.time()),
            "model": self.server.model.name,
        }
        tokens = self._tokens(prompt, count)
        if asked.get("stream"):
            options = asked.get("stream_options") or {}
            usage = _usage(prompt, count) if options.get("include_usage") else None
            self._stream(common | {"object": kind + (".chunk" if chat else "")}, tokens, chat=chat, usage=usage)
            return
        text = "".join(tokens)
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, "finish_reason": "length", **said}
        self._json(200, common | {"object": kind, "choices": [choice], "usage": _usage(prompt, count)})

    def _tokens(self, prompt: str, count: int) -> Iterator[str]:
        for token in self.server.model.generate(prompt, count):
            if self._hung_up():
                raise ConnectionAbortedError("the client hung up")
            self.server.counts.add("tokens")
            yield token

    def _stream(
        self, common: dict[str, Any], tokens: Iterator[str], *, chat: bool, usage: dict[str, int] | None
    ) -> None:
        self.streaming = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if chat:
            self._event(common | {"choices": [_choice({"delta": {"role": "assistant", "content": ""}})]})
        for token in tokens:
            self._event(common | {"choices": [_choice({"delta": {"content": token}} if chat else {"text": token})]})
        self._event(common | {"choices": [_choice({"delta": {}} if chat else {"text": ""}, finish="length")]})
        if usage is not None:
            self._event(common | {"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")
        self.streaming = False

    # -- HTTP ------------------------------------------------------------------------------------------------------------

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._chunks())
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > BODY_MOST:
            self.close_connection = True
            raise Refused(413, f"a body of {length} bytes is not possible")
        return self._exactly(int(length))

    def _exactly(self, count: int) -> bytes:
        body = self.rfile.read(count)
        if len(body) != count:
            raise ConnectionAbortedError("the client hung up within its request")
        return body

    def _chunks(self) -> Iterator[bytes]:
        whole = 0
        while size := int(self.rfile.readline(64).split(b";")[0] or b"0", 16):
            whole += size
            if whole > BODY_MOST:
                self.close_connection = True
                raise Refused(413, "the body is too large")
            yield self._exactly(size)
            self.rfile.readline(4)
        while self.rfile.readline(1024).strip():
            pass

    def _hung_up(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        with contextlib.suppress(OSError):
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
        return True

    def _event(self, content: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(content).encode() + b"\n\n")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def _json(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, message: str) -> None:
        self._json(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except ValueError as e:
        raise Refused(400, f"the body is no JSON: {e}") from e
    if not isinstance(asked, dict):
        raise Refused(400, "the body must be a JSON object")
    return asked


def _choice(said: dict[str, Any], *, finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "finish_reason": finish, **said}


def _count(text: str) -> int:
    return len(text.split())


def _usage(prompt: str, count: int) -> dict[str, int]:
    used = _count(prompt)
    return {"prompt_tokens": used, "completion_tokens": count, "total_tokens": used + count}


def serve(model: Model, *, host: str, port: int, ready: str) -> None:
    """Answer until SIGTERM or SIGINT. Says `ready` with the port on stdout once it listens; port 0 takes a free one."""
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: end.set())
    with _Server((host, port), model) as server:
        thread = threading.Thread(target=server.serve_forever, name="accept", kwargs={"poll_interval": 0.1})
        thread.start()
        print(f"ready port={server.server_address[1]} {ready}", flush=True)
        end.wait()
        server.shutdown()
        thread.join()
        print(f"ended {json.dumps(server.counts.all())}", flush=True)
