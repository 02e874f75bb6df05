"""A real agent without a GPU: workloads' life, the API's manners. What the GPU adds is in test_switching.py."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys

import pytest
from tests.agent.conftest import AgentProcess
from tests.conftest import Eventually

from kybernate.client import AsyncClient
from kybernate.model.errors import AgentAway, BadInput, Conflict, NotFound, Unsupported
from kybernate.model.types import WorkloadState
from kybernate.process.tree import attach

pytestmark = pytest.mark.timeout(300)


def test_a_workload_from_start_to_removal(plain_agent: AgentProcess) -> None:
    client = plain_agent.client
    view = plain_agent.run("whole", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert view.name == "whole"
    ended = client.wait("whole", timeout_s=20)
    assert (ended.state, ended.exit_status) == (WorkloadState.EXITED, 7)
    assert plain_agent.output("whole") == "out\nerr\n"
    assert client.remove("whole").removed
    with pytest.raises(NotFound, match="whole"):
        client.workload("whole")
    assert not plain_agent.state.run_directory(ended.name).exists()  # type: ignore[arg-type]


def test_a_living_name_is_taken_an_ended_one_is_not(plain_agent: AgentProcess) -> None:
    plain_agent.run("taken", "sleep", "60")
    with pytest.raises(Conflict, match="running already"):
        plain_agent.run("taken", "true")
    with pytest.raises(Conflict, match="running"):
        plain_agent.client.remove("taken")
    assert plain_agent.client.stop("taken", grace_s=5).exit_status == 128 + signal.SIGTERM
    plain_agent.run("taken", "sh", "-c", "echo second")
    plain_agent.client.wait("taken")
    assert plain_agent.output("taken") == "second\n"


def test_a_command_that_is_not_there(plain_agent: AgentProcess) -> None:
    with pytest.raises(BadInput, match="command not found"):
        plain_agent.run("absent", "no-such-command")
    assert plain_agent.client.workload("absent").state is WorkloadState.EXITED
    assert "command not found" in plain_agent.client.explain("absent").text


def test_names_of_external_processes_are_taken(plain_agent: AgentProcess) -> None:
    """Who may pause `pid-1` is decided by process 1, not by a workload's owner."""
    with pytest.raises(BadInput, match="another name"):
        plain_agent.run("pid-1", "true")


def test_it_has_all_descriptors_there_may_be(plain_agent: AgentProcess) -> None:
    """A new agent takes over one for each extent of each running workload, and 1024 are soon used up."""
    soft, hard = resource.prlimit(plain_agent.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


def test_one_that_ignores_sigterm_is_killed_after_the_grace(plain_agent: AgentProcess, eventually: Eventually) -> None:
    plain_agent.run("stubborn", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    eventually(lambda: "up" in plain_agent.output("stubborn"))
    assert plain_agent.client.stop("stubborn", grace_s=0.2).exit_status == 128 + signal.SIGKILL


def test_its_end_is_noticed_and_told(plain_agent: AgentProcess, eventually: Eventually) -> None:
    view = plain_agent.run("killed", "sleep", "60")
    os.kill(view.pids[0], signal.SIGKILL)
    assert plain_agent.client.wait("killed").exit_status == 128 + signal.SIGKILL
    kinds = [event.kind for event in plain_agent.client.events("killed")]
    assert kinds == ["started", "exited"]


def test_logs_follow_until_the_end(plain_agent: AgentProcess) -> None:
    plain_agent.run("talker", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done")
    assert b"".join(plain_agent.client.logs("talker", follow=True)) == b"1\n2\n3\n"
    assert b"".join(plain_agent.client.logs("talker", lines=2)) == b"2\n3\n"
    assert b"".join(plain_agent.client.logs("talker", lines=0)) == b""


def test_environment_and_directory_are_the_callers(plain_agent: AgentProcess) -> None:
    plain_agent.run("env", "env", environment={"PATH": os.environ["PATH"], "MINE": "ünï"}, directory="/usr")
    plain_agent.client.wait("env")
    lines = plain_agent.output("env").splitlines()
    assert "MINE=ünï" in lines
    assert "KYBERNATE_WORKLOAD=env" in lines


def test_without_a_gpu_a_pause_is_unsupported(plain_agent: AgentProcess) -> None:
    plain_agent.run("plain", "sleep", "60")
    with pytest.raises(Unsupported, match="no GPU"):
        plain_agent.client.pause("plain")
    assert plain_agent.client.workload("plain").state is WorkloadState.RUNNING
    plain_agent.client.stop("plain", remove=True)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        pytest.param("POST", "/v1/workloads", b"{", 400, id="no JSON"),
        pytest.param("POST", "/v1/workloads", b"\xff\xfe", 400, id="no text"),
        pytest.param("POST", "/v1/workloads", b"[]", 400, id="a list"),
        pytest.param("POST", "/v1/workloads", b'{"name":"x"}', 400, id="fields missing"),
        pytest.param("POST", "/v1/workloads", b'{"name":"X","argv":["a"],"directory":"/"}', 400, id="bad name"),
        pytest.param("POST", "/v1/workloads", b'{"name":"x","argv":["a"],"directory":"rel"}', 400, id="relative"),
        pytest.param("POST", "/v1/workloads", b'{"name":"x","argv":[],"directory":"/"}', 400, id="no command"),
        pytest.param("POST", "/v1/workloads/none/pause", b"", 404, id="unknown name"),
        pytest.param("GET", "/v1/workloads/..%2f..%2fetc", b"", 400, id="a path for a name"),
        pytest.param("GET", "/v1/workloads/none/logs?lines=x", b"", 400, id="bad number"),
        pytest.param("GET", "/v1/nothing", b"", 404, id="unknown path"),
        pytest.param("PUT", "/v1/node", b"", 405, id="wrong method"),
        pytest.param("POST", "/v1/external/pause", b'{"pid":-1}', 400, id="bad pid"),
    ],
)
def test_garbage_is_answered_in_one_line(
    plain_agent: AgentProcess, method: str, path: str, body: bytes, status: int
) -> None:
    answer_status, answer = http(plain_agent, method, path, body)
    assert answer_status == status
    error = json.loads(answer)
    assert error["message"]
    assert "\n" not in error["message"]
    assert set(error) == {"code", "message", "hint", "exit_status"}


def test_a_body_that_is_too_large_is_refused(plain_agent: AgentProcess) -> None:
    status, _ = http(plain_agent, "POST", "/v1/workloads", b" " * (5 << 20))
    assert status == 413
    assert plain_agent.client.node().pid == plain_agent.pid


def test_noise_and_hang_ups_change_nothing(plain_agent: AgentProcess) -> None:
    for noise in (
        b"",
        b"\0" * 100,
        b"GET / HTTP/1.1\r\n",
        os.urandom(4096),
        b"POST /v1/workloads HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{",
    ):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(plain_agent.state.socket))
            connection.sendall(noise)
    assert plain_agent.client.node().pid == plain_agent.pid


def test_a_client_that_hangs_up_does_not_stop_a_start(plain_agent: AgentProcess, eventually: Eventually) -> None:
    body = json.dumps({"name": "orphan", "argv": ["sleep", "60"], "directory": "/", "environment": dict(os.environ)})
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(plain_agent.state.socket))
        head = f"POST /v1/workloads HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body.encode())}\r\n\r\n"
        connection.sendall(head.encode() + body.encode())
    eventually(
        lambda: any(w.name == "orphan" and w.state is WorkloadState.RUNNING for w in plain_agent.client.workloads())
    )


def test_every_route_is_in_the_description(plain_agent: AgentProcess) -> None:
    from kybernate.agent.api.api import Api

    status, answer = http(plain_agent, "GET", "/openapi.json")
    document = json.loads(answer)
    assert (status, document["openapi"]) == (200, "3.1.0")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    application = Api(object()).application()  # type: ignore[arg-type]
    served = {
        (route.method, route.resource.canonical)
        for route in application.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert described == served
    identifiers = [o["operationId"] for methods in document["paths"].values() for o in methods.values()]
    assert len(set(identifiers)) == len(identifiers)


def test_metrics(plain_agent: AgentProcess) -> None:
    status, answer = http(plain_agent, "GET", "/metrics")
    assert status == 200
    assert b'kybernate_workloads{state="running"}' in answer


async def test_the_asynchronous_client(plain_agent: AgentProcess) -> None:
    async with AsyncClient(plain_agent.state.socket) as client:
        assert (await client.node()).pid == plain_agent.pid
        with pytest.raises(NotFound):
            await client.workload("none")


def test_events_as_they_come(plain_agent: AgentProcess) -> None:
    plain_agent.run("seen", "sleep", "600")
    kinds = []
    for event in plain_agent.client.follow_events(count=100):  # the connection is made with the first of them
        if event.workload == "seen":
            kinds.append(event.kind)
            if event.kind == "started":
                plain_agent.client.stop("seen", grace_s=0)
            elif event.kind == "exited":
                break
    assert kinds[0] == "started"
    assert kinds[-1] == "exited"


def test_one_agent_a_directory(plain_agent: AgentProcess) -> None:
    command = [sys.executable, "-m", "kybernate.cli", "up", "--state-dir", str(plain_agent.state.root)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 2
    assert f"an agent (pid {plain_agent.pid})" in second.stderr
    assert second.stderr.count("\n") == 1


def test_a_new_agent_finds_everything(plain_agent: AgentProcess, eventually: Eventually) -> None:
    plain_agent.run("lives", "sleep", "60")
    plain_agent.run("ends", "sh", "-c", "sleep 0.5; exit 3")
    plain_agent.run("ended", "sh", "-c", "exit 4")
    plain_agent.client.wait("ended")
    plain_agent.kill()
    with pytest.raises(AgentAway, match="kybernate up"):
        plain_agent.client.node()
    eventually(lambda: (plain_agent.state.workloads / "ends" / "exit.json").exists())
    plain_agent.start()
    client = plain_agent.client
    assert client.workload("lives").state is WorkloadState.RUNNING
    assert client.wait("ends").exit_status == 3
    assert client.workload("ended").exit_status == 4
    assert client.stop("lives").exit_status == 128 + signal.SIGTERM


def test_an_end_that_was_cleaned_up_but_not_noted_is_an_end(plain_agent: AgentProcess) -> None:
    plain_agent.run("unnoted", "sleep", "60")
    plain_agent.kill()
    # What an agent does that dies right before it notes the end.
    tree = attach(plain_agent.state.workloads / "unnoted")
    tree.signal(signal.SIGTERM)
    tree.wait(60)
    tree.remove()
    plain_agent.start()
    found = plain_agent.client.workload("unnoted")
    assert (found.state, found.exit_status) == (WorkloadState.EXITED, 128 + signal.SIGTERM)


def http(agent: AgentProcess, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    import httpx2

    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(agent.state.socket)), base_url="http://agent") as client:
        response = client.request(method, path, content=body)
        return response.status_code, response.content


_AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall(sys.stdin.buffer.read())
while piece := connection.recv(65536):
    sys.stdout.buffer.write(piece)
"""


def as_nobody(agent: AgentProcess, path: str, body: dict[str, object], *, method: str = "POST") -> str:
    """The whole answer to user 65534. Raw, since that user may not be able to read our Python's modules."""
    text = json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
    command = [sys.executable, "-I", "-c", _AS_NOBODY, str(agent.state.socket)]
    return subprocess.run(
        command, input=head.encode() + text, capture_output=True, timeout=120, check=True
    ).stdout.decode()


@pytest.mark.root
def test_another_user_is_the_one_it_runs_as(plain_agent: AgentProcess) -> None:
    plain_agent.state.socket.chmod(0o666)
    plain_agent.state.root.parent.chmod(0o755)
    body: dict[str, object] = {"name": "nobodys", "argv": ["/usr/bin/id", "-u"], "directory": "/"}
    assert " 201 " in as_nobody(plain_agent, "/v1/workloads", body)
    plain_agent.client.wait("nobodys")
    assert plain_agent.output("nobodys") == "65534\n"
    plain_agent.client.stop("nobodys", remove=True)


@pytest.mark.root
def test_another_user_sees_no_command_line(plain_agent: AgentProcess) -> None:
    plain_agent.state.socket.chmod(0o666)
    plain_agent.state.root.parent.chmod(0o755)
    plain_agent.run("secretive", "/bin/sh", "-c", "sleep 60; : --token=hunter2", directory="/tmp")
    view = plain_agent.client.workload("secretive")
    assert "hunter2" in view.argv[-1]
    assert view.directory == "/tmp"
    one = "/v1/workloads/secretive"
    for path in (
        "/v1/workloads",
        one,
        f"{one}/wait?timeout_s=0",
        f"{one}/explain",
        f"{one}/events",
        "/v1/events",
        "/metrics",
    ):
        told = as_nobody(plain_agent, path, {}, method="GET")
        assert " 200 " in told, told
        assert "secretive" in told
        assert "hunter2" not in told
        assert '"/tmp"' not in told
    assert '"argv":["sh"]' in as_nobody(plain_agent, one, {}, method="GET")
    assert " 403 " in as_nobody(plain_agent, f"{one}/logs", {}, method="GET")
    started = next(event for event in plain_agent.client.events("secretive") if event.kind == "started")
    assert started.text == "runs sh"
    plain_agent.client.stop("secretive", remove=True)


@pytest.mark.root
def test_another_user_may_not_change_what_is_roots(plain_agent: AgentProcess) -> None:
    plain_agent.state.socket.chmod(0o666)
    plain_agent.state.root.parent.chmod(0o755)
    plain_agent.run("roots", "sleep", "60")
    refused = as_nobody(plain_agent, "/v1/workloads/roots/stop", {})
    assert " 403 " in refused
    assert "belongs to user 0" in refused
    assert plain_agent.client.workload("roots").state is WorkloadState.RUNNING


def test_what_is_no_number_is_not_taken_for_one(plain_agent: AgentProcess) -> None:
    plain_agent.run("kept", "sleep", "600")
    for field, value in (("grace_s", "false"), ("grace_s", '"0"'), ("grace_s", "1e99"), ("remove", "1")):
        status, answer = http(plain_agent, "POST", "/v1/workloads/kept/stop", f'{{"{field}": {value}}}'.encode())
        assert (status, json.loads(answer)["code"]) == (400, "bad_input")
        assert field in json.loads(answer)["message"]
    assert plain_agent.client.workload("kept").state is WorkloadState.RUNNING
    plain_agent.client.stop("kept", remove=True)


def head_of(agent: AgentProcess, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, fields and body of an answer after which the connection is closed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(agent.state.socket))
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while piece := connection.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), {line.split(": ")[0].lower(): line.split(": ")[1] for line in lines}, body


def test_head_is_answered_as_get_without_a_body(plain_agent: AgentProcess) -> None:
    plain_agent.run("read", "true")
    plain_agent.client.wait("read")
    for path in ("/v1/node", "/v1/workloads", "/v1/workloads/read", "/metrics", "/openapi.json", "/v1/events?count=1"):
        got, asked = head_of(plain_agent, "GET", path), head_of(plain_agent, "HEAD", path)
        assert (asked[0], asked[1]["content-type"], asked[2]) == (200, got[1]["content-type"], b""), path
    for path, media in (
        ("/v1/stream", "text/event-stream"),
        ("/v1/events?follow=1", "text/event-stream"),
        ("/v1/workloads/read/logs?follow=1", "application/octet-stream"),
    ):
        status, fields, body = head_of(plain_agent, "HEAD", path)  # it comes to an end
        assert (status, fields["content-type"].split(";")[0], body) == (200, media, b"")
    assert head_of(plain_agent, "HEAD", "/v1/workloads/none/logs")[0] == 404
    plain_agent.client.stop("read", remove=True)


def test_a_method_that_is_not_allowed_is_answered_with_those_that_are(plain_agent: AgentProcess) -> None:
    for path, allowed in (("/v1/node", "GET, HEAD"), ("/v1/workloads", "GET, HEAD, POST"), ("/v1/store/gc", "POST")):
        status, fields, _ = head_of(plain_agent, "PUT", path)
        assert (status, fields["allow"]) == (405, allowed)


def test_the_description_has_patterns_limits_and_what_streams_bring(plain_agent: AgentProcess) -> None:
    document = json.loads(http(plain_agent, "GET", "/openapi.json")[1])
    paths, schemas = document["paths"], document["components"]["schemas"]
    name, count, *_ = paths["/v1/workloads/{name}/events"]["get"]["parameters"]
    assert re.fullmatch(name["schema"]["pattern"], "llama-8b")
    assert not re.fullmatch(name["schema"]["pattern"], "..")
    assert (count["schema"]["minimum"], count["schema"]["maximum"]) == (0, 10000)
    snapshot = paths["/v1/snapshots/{name}"]["delete"]["parameters"]
    assert re.fullmatch(snapshot[0]["schema"]["pattern"], "llama.8b_1")
    assert snapshot[1]["schema"]["enum"] == ["nvme", "object"]
    grace = schemas["StopRequest"]["properties"]["grace_s"]
    assert (grace["type"], grace["minimum"], grace["maximum"]) == ("number", 0, 86400)
    stream = paths["/v1/stream"]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    kinds = {kind["properties"]["event"]["const"]: kind["properties"]["data"] for kind in stream["items"]["oneOf"]}
    assert set(kinds) == {"node", "workload", "gone", "jobs", "event"}
    for data in kinds.values():
        assert data["contentSchema"]["$ref"].rpartition("/")[2] in schemas
    followed = paths["/v1/events"]["get"]["responses"]["200"]["content"]
    assert set(followed) == {"application/json", "text/event-stream"}
