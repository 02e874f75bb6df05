"""The demo's model server over real connections: OpenAI's routes, streams, refusals, and a client that hangs up."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.conftest import Eventually

from kybernate.demo import openai
from kybernate.demo.openai import TOKENS_MOST


class Counting:
    """Tokens that are numbers; `hold` stops it in the middle."""

    name = "one"

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.hold.set()

    def generate(self, prompt: str, count: int) -> Iterator[str]:
        if prompt == "break":
            raise ZeroDivisionError("division by zero")
        for number in range(count):
            yield f"{number} "
            if number == 1:
                self.hold.wait(60)

    def embed(self, text: str) -> list[float]:
        return [float(len(text))]


class Served:
    def __init__(self, model: Counting, server: openai._Server) -> None:
        self.model, self._server = model, server
        self.port = int(server.server_address[1])

    def ask(self, method: str, path: str, body: object = None, **fields: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, raw, fields)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        kind = answer.headers.get("content-type", "")
        return answer.status, json.loads(text) if kind == "application/json" else text

    def counts(self) -> dict[str, int]:
        return self._server.counts.all()


@pytest.fixture
def served() -> Iterator[Served]:
    model = Counting()
    with openai._Server(("127.0.0.1", 0), model) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Served(model, server)
        model.hold.set()
        server.shutdown()
        thread.join()


def test_health_models_and_counts(served: Served) -> None:
    assert served.ask("GET", "/health?probe=1") == (200, {"status": "ok"})
    status, models = served.ask("GET", "/v1/models")
    assert (status, [each["id"] for each in models["data"]]) == (200, ["one"])
    assert served.ask("GET", "/stats")[1] == {"begun": 0, "ended": 0, "cancelled": 0, "failed": 0, "tokens": 0}
    assert served.ask("GET", "/nothing")[0] == 404


def test_a_completion_has_as_many_tokens_as_were_asked_for(served: Served) -> None:
    status, answer = served.ask("POST", "/v1/completions", {"model": "one", "prompt": "a b c", "max_tokens": 4})
    assert status == 200
    assert answer["choices"] == [{"index": 0, "finish_reason": "length", "text": "0 1 2 3 "}]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert answer["object"] == "text_completion"
    assert served.counts() == {"begun": 1, "ended": 1, "cancelled": 0, "failed": 0, "tokens": 4}


def test_a_chat_says_who_speaks_and_the_newer_word_for_its_length_counts(served: Served) -> None:
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "max_completion_tokens": 2}
    status, answer = served.ask("POST", "/v1/chat/completions", asked)
    assert (status, answer["object"]) == (200, "chat.completion")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "0 1 "}
    assert answer["usage"]["prompt_tokens"] == 2, "the role and the word"


def events(text: bytes) -> list[Any]:
    lines = [line for line in text.split(b"\n\n") if line]
    assert all(line.startswith(b"data: ") for line in lines)
    assert lines[-1] == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def test_a_stream_of_a_completion_is_a_token_an_event(served: Served) -> None:
    asked = {"prompt": "x", "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    status, text = served.ask("POST", "/v1/completions", asked)
    found = events(text)
    assert status == 200
    assert [event["choices"][0]["text"] for event in found[:-1]] == ["0 ", "1 ", "2 ", ""]
    assert [event["choices"][0]["finish_reason"] for event in found[:-1]] == [None, None, None, "length"]
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 3
    assert len({event["id"] for event in found}) == 1


def test_a_stream_of_a_chat_begins_with_its_role(served: Served) -> None:
    _, text = served.ask("POST", "/v1/chat/completions", {"messages": [], "max_tokens": 1, "stream": True})
    assert [event["choices"][0]["delta"] for event in events(text)] == [
        {"role": "assistant", "content": ""},
        {"content": "0 "},
        {},
    ]


@pytest.mark.parametrize(("given", "count"), [("word", 1), (["one", "two words"], 2), ([], 0)])
def test_embeddings_are_one_for_each_text(served: Served, given: object, count: int) -> None:
    status, answer = served.ask("POST", "/v1/embeddings", {"input": given})
    assert (status, len(answer["data"])) == (200, count)
    assert [each["index"] for each in answer["data"]] == list(range(count))


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/nothing", {}, 404, "no such path"),
        ("/v1/completions", {"model": "other"}, 404, "no such model: other"),
        ("/v1/completions", b"{", 400, "the body is no JSON"),
        ("/v1/completions", [], 400, "must be a JSON object"),
        ("/v1/completions", {"prompt": ["a"]}, 400, "prompt must be a string"),
        ("/v1/completions", {"max_tokens": 0}, 400, "max_tokens must be 1 to"),
        ("/v1/completions", {"max_tokens": TOKENS_MOST + 1}, 400, "max_tokens must be 1 to"),
        ("/v1/completions", {"max_tokens": "many"}, 400, "max_tokens must be 1 to"),
        ("/v1/chat/completions", {"messages": "hi"}, 400, "messages must be a list of objects"),
        ("/v1/chat/completions", {"messages": ["hi"]}, 400, "messages must be a list of objects"),
        ("/v1/completions", {"prompt": "break"}, 500, "ZeroDivisionError"),
    ],
)
def test_what_can_not_be_answered_is_said(served: Served, path: str, body: object, status: int, words: str) -> None:
    found, answer = served.ask("POST", path, body)
    assert found == status
    assert words in answer["error"]["message"]


def test_a_body_in_chunks_is_a_body(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    pieces = iter([b'{"prompt": "x",', b'"max_tokens": 1}'])
    connection.request("POST", "/v1/completions", pieces, encode_chunked=True, headers={"transfer-encoding": "chunked"})
    assert json.loads(connection.getresponse().read())["choices"][0]["text"] == "0 "
    connection.close()


@pytest.mark.parametrize("length", ["-1", "x", str(1 << 40)])
def test_a_length_that_is_not_possible_is_refused(served: Served, length: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("content-length", length)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def raw(served: Served, text: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=60)
    connection.sendall(text)
    return connection


def cancelled(served: Served) -> Callable[[], bool]:
    return lambda: served.counts()["cancelled"] == 1


def test_who_hangs_up_ends_its_own_generation(served: Served, eventually: Eventually) -> None:
    served.model.hold.clear()
    body = json.dumps({"prompt": "x", "max_tokens": 1000, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with contextlib.closing(raw(served, head + body)) as connection:
        assert connection.recv(16).startswith(b"HTTP/1.1 200")
    served.model.hold.set()
    eventually(cancelled(served), what="the generation ends")
    assert served.counts()["tokens"] < 1000


def test_who_hangs_up_within_its_request_is_no_failure(served: Served, eventually: Eventually) -> None:
    raw(served, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc").close()
    eventually(cancelled(served), what="it is counted")
    assert served.counts()["failed"] == 0


def test_a_failure_is_said_and_costs_nobody_else_anything(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert served.ask("POST", "/v1/completions", {"prompt": "break", "max_tokens": 1})[0] == 500
    assert served.counts()["failed"] == 1
    assert "request failed: ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert served.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200
