"""Through the activator's own worker: requests over HTTP, real model servers, agents that are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from tests.agent.serving.conftest import ServingAgent, free_port, server
from tests.certificates import self_signed
from tests.conftest import SLOWER, Eventually

from kybernate.model.errors import BadInput
from kybernate.model.types import MIB, TierName

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

Begin = Callable[..., ServingAgent]
SLOW = ["--seconds-per-token", "0.1"]


def slow(name: str, **more: object) -> dict[str, object]:
    made = server(name, **more)  # type: ignore[arg-type]
    return {**made, "command": [*made["command"], *SLOW]}  # type: ignore[misc]


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=200) as client:
        yield client


def complete(
    http: httpx2.Client, agent: ServingAgent, model: str, prompt: str = "x", count: int = 8
) -> httpx2.Response:
    asked = {"model": model, "prompt": prompt, "max_tokens": count}
    return http.post(f"http://127.0.0.1:{agent.port}/v1/completions", json=asked)


def text_of(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def up(agent: ServingAgent, eventually: Eventually) -> None:
    def connected() -> bool:
        workers = agent.client.serving().workers
        return bool(workers) and all(worker.connected for worker in workers)

    eventually(connected, timeout_s=90, what="the activator's workers")


def test_names_paths_and_pages_as_the_file_says(begin: Begin, eventually: Eventually, http: httpx2.Client) -> None:
    page = {"origin": "https://chat.example.org"}
    files = {"models": {"a": server("a", names=["gpt"], hidden_names=["org/a"])}}
    agent = begin(port=free_port(), **files, activator={"origins": [page["origin"]], "heartbeat": 0.5})
    up(agent, eventually)
    address = f"http://127.0.0.1:{agent.port}"
    preflight = {**page, "access-control-request-method": "POST"}
    asked = http.options(f"{address}/v1/completions", headers=preflight)
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, page["origin"])
    streamed = {"model": "gpt", "prompt": "x", "max_tokens": 3, "stream": True}
    answer = http.post(f"{address}//v1/completions", json=streamed, headers=page)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == page["origin"]
    assert "data: [DONE]" in answer.text
    assert text_of(complete(http, agent, "org/a")) == text_of(complete(http, agent, "a"))
    assert [each["id"] for each in http.get(f"{address}/v1/models").json()["data"]] == ["a", "gpt"]
    assert http.get(f"{address}/v1/models/org%2Fa").json()["workload"] == "a"
    assert http.get(f"{address}/upstream/org/a/health").status_code == 200
    agent.write(**files, activator={"upstream": False})
    agent.client.reload()
    eventually(lambda: http.options(f"{address}/v1/completions", headers=preflight).status_code == 404)
    assert http.get(f"{address}/upstream/org/a/health").status_code == 404


def test_models_that_do_not_fit_together_answer_under_one_address(
    begin: Begin, eventually: Eventually, http: httpx2.Client
) -> None:
    agent = begin(port=free_port(), models={name: server(name) for name in ("a", "b")})
    up(agent, eventually)
    first = {name: text_of(complete(http, agent, name)) for name in ("a", "b")}
    assert first["a"] != first["b"]
    with ThreadPoolExecutor(8) as pool:
        asked = ["a", "b", "b", "a", "b", "a", "a", "b"]
        answers = list(pool.map(lambda name: text_of(complete(http, agent, name)), asked))
    assert answers == [first[name] for name in asked]
    found = http.get(f"http://127.0.0.1:{agent.port}/v1/models").json()["data"]
    assert {each["id"] for each in found} == {"a", "b"}
    assert 'kybernate_requests_total{model="a",status="200"' in str(
        eventually(
            lambda: "kybernate_requests_total" in (text := agent.metrics()) and text, what="the workers' metrics"
        )
    )
    served = {each.name: each for each in agent.client.serving().served}
    eventually(lambda: sum(each.ended for each in agent.client.serving().served) == 10)
    assert served["a"].bytes == 80 * MIB


def test_a_killed_agent_costs_no_answer(begin: Begin, eventually: Eventually, http: httpx2.Client) -> None:
    agent = begin(port=free_port(), models={"a": slow("a"), "b": server("b")}, serving={"due_after": 1})
    up(agent, eventually)
    text_of(complete(http, agent, "b"))
    text_of(complete(http, agent, "a", count=1))
    with ThreadPoolExecutor(2) as pool:
        flying = pool.submit(complete, http, agent, "a", "long", 60)
        eventually(lambda: any(each.in_flight for each in agent.client.serving().served), timeout_s=30)
        agent.kill()
        held = pool.submit(complete, http, agent, "b")
        agent.start()
        up(agent, eventually)
        assert agent.client.serving().workers[0].worker == 0
        text_of(flying.result())
        text_of(held.result())


def test_a_worker_that_crashes_is_started_again(begin: Begin, eventually: Eventually, http: httpx2.Client) -> None:
    agent = begin(port=free_port(), models={"a": server("a", size=16 * MIB)})
    up(agent, eventually)
    text_of(complete(http, agent, "a"))
    worker = agent.client.serving().workers[0].pid
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: [each.pid for each in agent.client.serving().workers] not in ([], [worker]), timeout_s=60)
    up(agent, eventually)
    text_of(complete(http, agent, "a"))


def test_another_address_takes_new_workers_and_loses_nothing(
    begin: Begin, eventually: Eventually, http: httpx2.Client
) -> None:
    agent = begin(port=free_port(), models={"a": slow("a", size=16 * MIB)})
    up(agent, eventually)
    text_of(complete(http, agent, "a", count=1))
    old = agent.client.serving().workers[0].pid
    with ThreadPoolExecutor(1) as pool:
        flying = pool.submit(complete, http, agent, "a", "long", 30)
        eventually(lambda: any(each.in_flight for each in agent.client.serving().served), timeout_s=30)
        agent.write(models={"a": slow("a", size=16 * MIB)}, activator={"workers": 2})
        agent.client.reload()
        eventually(lambda: len(agent.client.serving().workers) == 2)
        up(agent, eventually)
        text_of(flying.result())
    text_of(complete(http, agent, "a"))

    def gone() -> bool:
        with suppress(ProcessLookupError):
            os.kill(old, 0)
            return False
        return True

    eventually(gone, timeout_s=60, what="the old worker's end")


def test_a_model_that_has_just_answered_can_be_parked_on_the_disk(
    begin: Begin, eventually: Eventually, http: httpx2.Client
) -> None:
    agent = begin(port=free_port(), models={"a": slow("a", size=16 * MIB)})
    up(agent, eventually)
    before = text_of(complete(http, agent, "a"))
    with ThreadPoolExecutor(1) as pool:  # the activator keeps a connection to it, and is in the middle of an answer
        flying = pool.submit(complete, http, agent, "a", "long", 20)
        eventually(lambda: any(each.in_flight for each in agent.client.serving().served), timeout_s=30)
        view = agent.client.pause("a", tier=TierName.NVME)
        assert view.tier == "nvme"
        text_of(flying.result())
    agent.client.resume("a")
    assert text_of(complete(http, agent, "a")) == before


@pytest.fixture
def occupied() -> Iterator[str]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield f"127.0.0.1:{held.getsockname()[1]}"


def test_an_address_that_cannot_be_had_changes_nothing(
    begin: Begin, eventually: Eventually, http: httpx2.Client, occupied: str, tmp_path: Path
) -> None:
    models = {"a": server("a", size=16 * MIB)}
    agent = begin(port=free_port(), models=models)
    up(agent, eventually)
    certificate, _ = self_signed(tmp_path)
    wrong = {"certificate": str(certificate), "key": str(certificate)}
    gone = {"certificate": str(tmp_path / "gone"), "key": str(certificate)}
    for activator, words in (
        ({"listen": occupied}, "can't listen on"),
        ({"tls": wrong}, "can't use the certificate"),
        ({"tls": gone}, "can't read"),
    ):
        agent.write(models=models, activator=activator)
        with pytest.raises(BadInput, match=words):
            agent.client.reload()
        text_of(complete(http, agent, "a"))


def test_an_agent_that_cannot_have_the_address_says_so_and_ends(begin: Begin, occupied: str) -> None:
    models = {"a": server("a", size=16 * MIB)}
    agent = begin(port=free_port(), models=models)
    agent.end()
    agent.write(models=models, activator={"listen": occupied})
    with pytest.raises(AssertionError, match="can't listen on"):
        agent.start()


def test_a_renewed_certificate_is_taken_by_a_reload(begin: Begin, eventually: Eventually, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    tls = {"certificate": str(certificate), "key": str(key)}
    agent = begin(port=free_port(), models={"a": server("a", size=16 * MIB)}, activator={"tls": tls})
    up(agent, eventually)
    presented = lambda: ssl.get_server_certificate(("127.0.0.1", agent.port))  # noqa: E731
    assert presented().strip() == certificate.read_text().strip()
    self_signed(tmp_path)
    assert agent.client.reload().settings == ["the files of activator.tls"]
    eventually(lambda: presented().strip() == certificate.read_text().strip(), timeout_s=60, what="the new certificate")


def test_keys_are_asked_for_and_reloaded(begin: Begin, eventually: Eventually, http: httpx2.Client) -> None:
    agent = begin(port=free_port(), models={"a": server("a", size=16 * MIB)})
    up(agent, eventually)
    keys = agent.file.parent / "keys"
    keys.write_text("web: sk-0123456789abcdef\n")
    keys.chmod(0o600)
    agent.write(models={"a": server("a", size=16 * MIB)}, activator={"keys_file": str(keys)})
    agent.client.reload()
    eventually(lambda: complete(http, agent, "a").status_code == 401, what="a refusal")
    http.headers["authorization"] = "Bearer sk-0123456789abcdef"
    text_of(complete(http, agent, "a"))


def test_foreign_names_are_refused_unless_the_file_says_otherwise(
    begin: Begin, eventually: Eventually, http: httpx2.Client
) -> None:
    agent = begin(port=free_port(), models={"a": server("a", size=16 * MIB)})
    up(agent, eventually)
    http.headers["host"] = "evil.example"
    assert complete(http, agent, "a").status_code == 421
    agent.write(models={"a": server("a", size=16 * MIB)}, activator={"hosts": ["evil.example"]})
    assert agent.client.reload().settings == ["activator.hosts"]
    eventually(lambda: complete(http, agent, "a").status_code == 200, what="an answer")


@pytest.mark.parametrize("probe", [{"ready": "/health"}, {"ready": ["true"]}, {}], ids=str)
def test_nobody_else_answers_in_a_models_name(
    begin: Begin, eventually: Eventually, http: httpx2.Client, probe: dict[str, object]
) -> None:
    """A model in the host's network whose port somebody else has taken: it isn't ready, and no request goes there."""
    asked: list[str] = []

    class Impostor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Impostor) as impostor:
        thread = threading.Thread(target=impostor.serve_forever)
        thread.start()
        try:
            port = impostor.server_address[1]
            sleeps = {"command": ["sleep", "1000"], "port": port, "network": "host", "vram": 16 * MIB}
            agent = begin(port=free_port(), models={"m": {**sleeps, **probe, "ready_timeout": 2}})
            up(agent, eventually)
            answer = complete(http, agent, "m")
            assert answer.status_code == 503, answer.text
            assert "listens at port" in answer.text
        finally:
            impostor.shutdown()
            thread.join()
    assert set(asked) <= {"/health"}, "probes alone"


def test_workers_are_told_no_secrets(begin: Begin, eventually: Eventually, http: httpx2.Client) -> None:
    """What the agent has for its bucket is not for whoever talks to clients; what a collector of traces wants is."""
    secrets = {"AWS_SECRET_ACCESS_KEY": "UNMISTAKABLE-1", "MY_TOKEN": "UNMISTAKABLE-2"}
    agent = begin(
        port=free_port(),
        environment={**secrets, "OTEL_EXPORTER_OTLP_HEADERS": "x=y"},
        models={"a": server("a", size=16 * MIB)},
    )
    up(agent, eventually)
    keys = agent.file.parent / "keys"
    keys.write_text("web: UNMISTAKABLE-3-0123456789\n")
    keys.chmod(0o600)
    agent.write(models={"a": server("a", size=16 * MIB)}, activator={"keys_file": str(keys)})
    agent.client.reload()
    eventually(lambda: complete(http, agent, "a").status_code == 401, what="a refusal")
    http.headers["authorization"] = "Bearer UNMISTAKABLE-3-0123456789"
    text_of(complete(http, agent, "a"))
    worker = Path("/proc") / str(agent.client.serving().workers[0].pid)
    environment = (worker / "environ").read_bytes()
    assert b"OTEL_EXPORTER_OTLP_HEADERS=x=y" in environment
    said = [
        environment,
        (worker / "cmdline").read_bytes(),
        agent.output("a").encode(),
        agent.metrics().encode(),
        json.dumps([event.model_dump() for event in agent.client.events()]).encode(),
        agent.client.serving().model_dump_json().encode(),
        *(file.read_bytes() for file in agent.state.root.iterdir() if file.suffix in {".log", ".json"}),
    ]
    assert len(said) > 7, "logs and records of the agent are among them"
    for text in said:
        assert b"UNMISTAKABLE" not in text


def test_down_ends_the_workers_and_their_socket(begin: Begin, eventually: Eventually, http: httpx2.Client) -> None:
    agent = begin(port=free_port(), models={"a": server("a", size=16 * MIB)})
    up(agent, eventually)
    worker = agent.client.serving().workers[0].pid
    agent.end()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert not agent.activator_socket.exists()
    with pytest.raises(httpx2.ConnectError):
        complete(http, agent, "a")
    agent.start()
    assert agent.client.node().pid


def test_a_model_that_cannot_start_answers_503_with_the_reason(
    begin: Begin, eventually: Eventually, http: httpx2.Client
) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    agent = begin(port=free_port(), models={"a": {**server("a"), "command": command}})
    up(agent, eventually)
    answer = complete(http, agent, "a")
    assert answer.status_code == 503
    assert "ended before it was ready" in json.dumps(answer.json())
    assert int(answer.headers["retry-after"]) >= 1
