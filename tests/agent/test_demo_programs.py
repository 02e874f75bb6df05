"""The demo's model server and training job: exact before, during and after a pause, and wrong where VRAM is wrong."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from tests.agent.conftest import AgentProcess
from tests.conftest import SLOWER, Eventually

from kybernate.cuda import simulated
from kybernate.model.types import MIB

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

SERVER = (sys.executable, "-m", "kybernate.demo.server", "--port", "0")
TRAINING = (sys.executable, "-m", "kybernate.demo.training", "--bytes", str(16 * MIB), "--steps", "300")


class Server:
    """A demo server that listens on the host's network."""

    def __init__(self, agent: AgentProcess, eventually: Eventually, name: str, *options: str) -> None:
        self._agent, self._name = agent, name
        agent.run(name, *SERVER, "--name", name, *options, network="host")
        ready = eventually(lambda: re.search(r"ready port=(\d+) ", agent.output(name)), what="a server that listens")
        assert ready is not None
        self.port = int(ready[1])
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def answer(self, prompt: str, *, count: int = 16) -> str:
        done = self.http.post("/v1/completions", json={"model": self._name, "prompt": prompt, "max_tokens": count})
        assert done.status_code == 200, done.text
        assert done.json()["usage"]["completion_tokens"] == count
        text: str = done.json()["choices"][0]["text"]
        return text

    def streamed(self, prompt: str, *, count: int = 16) -> list[str]:
        """The pieces of a chat's answer."""
        asked = {
            "model": self._name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": count,
            "stream": True,
        }
        with self.http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert lines.pop() == "[DONE]"
        pieces = [json.loads(line)["choices"][0]["delta"].get("content") for line in lines]
        return [piece for piece in pieces if piece]

    def stats(self) -> dict[str, int]:
        counts: dict[str, int] = self.http.get("/stats").json()
        return counts


@pytest.fixture
def serve(gpu_agent: AgentProcess, eventually: Eventually) -> Iterator[Callable[..., Server]]:
    """`serve(NAME, OPTION ...)` starts one and waits until it listens."""
    with contextlib.ExitStack() as stack:

        def start(name: str, *options: str) -> Server:
            server = Server(gpu_agent, eventually, name, *options)
            stack.enter_context(server.http)
            return server

        yield start


def test_answers_are_the_same_after_a_pause(gpu_agent: AgentProcess, serve: Callable[..., Server]) -> None:
    server = serve("model", "--bytes", str(24 * MIB))
    before = server.answer("why"), server.streamed("why", count=5), server.answer("why not", count=40)
    assert len(set(map(str, before))) == 3
    assert len(before[1]) == 5
    gpu_agent.client.pause("model")
    gpu_agent.client.resume("model")
    assert (server.answer("why"), server.streamed("why", count=5), server.answer("why not", count=40)) == before
    models = server.http.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["model"]
    assert server.http.get("/health").status_code == 200
    [vector] = server.http.post("/v1/embeddings", json={"input": "why"}).json()["data"]
    assert len(vector["embedding"]) == 16
    assert server.stats()["failed"] == 0


def test_other_weights_answer_otherwise(serve: Callable[..., Server]) -> None:
    one, two = (serve(f"seed-{seed}", "--bytes", str(8 * MIB), "--seed", seed) for seed in "12")
    assert one.answer("same") != two.answer("same")


def test_a_generation_goes_on_across_a_pause(gpu_agent: AgentProcess, serve: Callable[..., Server]) -> None:
    server = serve("long", "--bytes", str(8 * MIB), "--seconds-per-token", "0.02")
    expected = server.answer("story", count=40)
    asked = {"prompt": "story", "max_tokens": 40, "stream": True}
    got: list[str] = []
    with server.http.stream("POST", "/v1/completions", json=asked) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                got.append(json.loads(line[6:])["choices"][0]["text"])
            if len(got) == 5:
                gpu_agent.client.pause("long")
                gpu_agent.client.resume("long")
    assert "".join(got) == expected


def test_what_makes_no_sense_is_refused(serve: Callable[..., Server]) -> None:
    server = serve("strict", "--bytes", str(8 * MIB))
    for path, body, status in [
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b'{"prompt": 7}', 400),
        ("/v1/completions", b'{"prompt": "a", "max_tokens": 0}', 400),
        ("/v1/completions", b'{"prompt": "a", "model": "other"}', 404),
        ("/v1/nothing", b"{}", 404),
    ]:
        done = server.http.post(path, content=body)
        assert (done.status_code, "message" in done.json()["error"]) == (status, True)
    chunked = server.http.post("/v1/completions", content=iter([b'{"prompt": "a", ', b'"max_tokens": 2}']))
    assert chunked.status_code == 200, chunked.text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_generation(
    serve: Callable[..., Server], eventually: Eventually, stream: bool
) -> None:
    options = ("--bytes", str(8 * MIB), "--seconds-per-token", "0.02", "--slots", "1")
    server = serve("patient", *options)
    body = json.dumps({"prompt": "x", "max_tokens": 4000, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        eventually(lambda: server.stats()["tokens"] > 2, what="tokens")
    eventually(lambda: server.stats()["cancelled"] == 1, what="an end of the generation")
    assert server.answer("next", count=2), "its place is free again"


def test_training_ends_with_the_same_result(gpu_agent: AgentProcess, eventually: Eventually, tmp_path: Path) -> None:
    alone = simulated.make(tmp_path / "gpu", size_bytes=64 * MIB)
    try:
        done = subprocess.run(
            TRAINING, capture_output=True, text=True, timeout=120, env=simulated.environment([alone], {}), check=False
        )
    finally:
        simulated.remove(alone.path)
    assert done.returncode == 0, done.stderr
    expected = done.stdout.splitlines()[-1]
    assert expected.startswith("result steps=300 sum=")
    gpu_agent.run("trainer", *TRAINING, "--pace", "0.01")
    for steps in (50, 120):
        eventually(
            lambda at=steps: (found := re.findall(r"step (\d+)", gpu_agent.output("trainer"))) and int(found[-1]) >= at,
            what=f"{steps} steps",
        )
        gpu_agent.client.pause("trainer")
        gpu_agent.client.resume("trainer")
    view = gpu_agent.client.wait("trainer")
    assert (view.state, view.exit_status) == ("exited", 0)
    assert gpu_agent.output("trainer").splitlines()[-1] == expected


def test_wrong_vram_is_noticed(tmp_path: Path) -> None:
    """One word of the weights changed behind the server's back: another answer, whatever the number of tokens."""
    program = (
        "import sys\n"
        "from kybernate.demo.server import Weights\n"
        "model = Weights(name='m', size=16 << 20, seed=1, slots=1, seconds_per_token=0)\n"
        "before = [list(model.generate('a', count)) for count in (1, 3, 100)]\n"
        "assert before == [list(model.generate('a', count)) for count in (1, 3, 100)]\n"
        "for block in model._blocks:\n"
        "    model._driver.call('cuMemsetD32_v2', block, 12345, (2 << 20) // 4)\n"
        "    after = [list(model.generate('a', count)) for count in (1, 3, 100)]\n"
        "    assert all(a != b for a, b in zip(before, after)), block\n"
        "    before = after\n"
    )
    gpu = simulated.make(tmp_path / "gpu", size_bytes=64 * MIB)
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=120,
            env=simulated.environment([gpu], {}),
            check=False,
        )
    finally:
        simulated.remove(gpu.path)
    assert done.returncode == 0, done.stderr
