"""An agent that is killed leaves the workers with what they have; the next one takes it over."""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import stat
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.agent.serving.conftest import ServingAgent, free_port, server
from tests.conftest import SLOWER, Eventually

from kybernate.cli.main import main
from kybernate.model.errors import BadInput
from kybernate.model.types import MIB

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

Begin = Callable[..., ServingAgent]
PROGRAMS = Path(__file__).parents[1] / "programs"


def test_the_next_agent_confirms_what_is_open_and_serves_what_waits(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=64 * MIB), "b": server("b", size=96 * MIB)})
    first = agent.peer()
    first.request("a", waiting=1)
    eventually(lambda: first.is_open("a"), timeout_s=90, what="a open")
    agent.kill()
    agent.start()
    second = agent.peer(open_epochs=first.epochs)
    second.request("a", in_flight=1)
    second.request("b", waiting=1)
    eventually(lambda: "a" in second.opened, what="a's lease confirmed")
    assert second.opened["a"].epoch > first.opened["a"].epoch
    assert agent.client.workload("a").state == "running"
    second.answer("a")
    eventually(lambda: second.is_open("b"), timeout_s=90, what="b, which waited")
    assert not second.is_open("a")


def test_the_next_agent_takes_back_what_is_paused(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a")})
    first = agent.peer()
    first.request("a", waiting=1)
    eventually(lambda: first.is_open("a"), timeout_s=90, what="a open")
    first.answer("a")
    agent.client.pause("a")
    agent.kill()
    agent.start()
    second = agent.peer(open_epochs={"a": first.opened["a"].epoch})
    eventually(lambda: not second.is_open("a"), what="a closed at a worker that didn't hear of it")


def test_a_reload_adds_removes_and_changes(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB), "b": server("b", size=16 * MIB)})
    peer = agent.peer()
    for name in "ab":
        peer.request(name, waiting=1)
        eventually(lambda name=name: peer.is_open(name), timeout_s=90, what="open")  # type: ignore[misc]
        peer.answer(name)
    before = agent.client.workload("a").pids
    peer.request("a", in_flight=1)
    changed = {**server("a", size=16 * MIB), "environment": {"CHANGED": "1"}}
    agent.write(models={"a": changed, "c": server("c", size=16 * MIB)})
    view = agent.client.reload()
    assert (view.added, view.removed, view.changed, view.restarting) == (["c"], ["b"], ["a"], ["a"])
    assert peer.configured is not None
    eventually(lambda: [each.model for each in peer.configured.endpoints] == ["a", "c"])  # type: ignore[union-attr]
    eventually(lambda: agent.client.workload("b").state == "exited", timeout_s=60, what="b's end")
    assert agent.client.workload("a").pids == before, "a is not restarted while it answers"
    peer.answer("a")
    eventually(lambda: agent.client.workload("a").state == "exited", timeout_s=60, what="the old a's end")
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="the new a")


def test_what_the_next_agents_file_does_not_name_is_ended(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB), "b": server("b", size=16 * MIB)})
    agent.run_cuda("mine", bytes_=16 * MIB)
    peer = agent.peer()
    for name in "ab":
        peer.request(name, waiting=1)
        eventually(lambda name=name: peer.is_open(name), timeout_s=90, what="open")  # type: ignore[misc]
        peer.answer(name)
    agent.end()
    agent.write(models={"a": server("a", size=16 * MIB)})
    agent.start()
    eventually(lambda: agent.client.workload("b").state == "exited", timeout_s=60, what="b's end")
    assert agent.client.workload("a").state != "exited"
    assert agent.client.workload("mine").state != "exited", "the file never named it"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: {a: {command: x}}\n", "port"),
        ("activator: {keys_file: /nowhere/keys}\n", "keys"),
        ("models: [", "YAML"),
    ],
)
def test_a_file_that_makes_no_sense_changes_nothing(
    begin: Begin, eventually: Eventually, text: str, words: str
) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB)})
    peer = agent.peer()
    eventually(lambda: peer.configured)
    before = peer.configured
    agent.file.write_text(text)
    with pytest.raises(BadInput, match=words):
        agent.client.reload()
    assert [each.name for each in agent.client.serving().served] == ["a"]
    assert peer.configured is before
    assert any(event.kind == "reload-refused" for event in agent.client.events())


def test_a_workload_reaches_neither_the_agent_nor_the_activator_nor_another_workload(
    begin: Begin, eventually: Eventually
) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB, start="eager")})
    eventually(lambda: agent.state_of("a") == "resident", timeout_s=90, what="a running")
    state = agent.state.root
    doors = [str(agent.activator_socket), str(agent.state.socket), str(state / "workloads" / "a" / "agent.sock")]
    assert stat.S_IMODE(agent.activator_socket.stat().st_mode) == 0o600
    kinds = [socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET]
    for door, kind in zip(doors, kinds, strict=True):
        with socket.socket(socket.AF_UNIX, kind) as knocking:
            knocking.connect(door)  # from outside they are there
    program = (
        "import socket, sys\n"
        "for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):\n"
        "    for door in sys.argv[1:]:\n"
        "        try:\n"
        "            socket.socket(socket.AF_UNIX, kind).connect(door)\n"
        "            print('REACHED', door)\n"
        "        except OSError as e:\n"
        "            print('refused', e.errno)\n"
    )
    agent.run("spy", sys.executable, "-c", program, *doors)
    agent.client.wait("spy", timeout_s=30)
    assert agent.output("spy").splitlines() == ["refused 2"] * 2 * len(doors)


def on_a_terminal(words: list[str], *, columns: int) -> list[str]:
    """What a command prints where its output is a terminal of that width."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        subprocess.run([sys.executable, "-m", "kybernate.cli", *words], stdout=theirs, env=environment, check=True)
        os.set_blocking(ours, False)
        return os.read(ours, 1 << 16).decode().splitlines()
    finally:
        os.close(theirs)
        os.close(ours)


def test_a_workload_of_roots_finds_no_way_out(begin: Begin, eventually: Eventually) -> None:
    """It isn't meant to be a sandbox, but neither the agent, the activator nor another workload stands open."""
    port, api = free_port(), free_port()
    agent = begin(
        port=port,
        models={"a": server("a", size=16 * MIB, start="eager"), "b": server("b", size=16 * MIB)},
        agent={"api": {"listen": f"127.0.0.1:{api}"}},
    )
    eventually(lambda: agent.state_of("a") == "resident", timeout_s=90, what="a running")
    eventually(lambda: answers(port) and answers(api), what="the ports")
    agent.run("spy", sys.executable, str(PROGRAMS / "spy.py"), str(agent.state.root), "a,b", f"{port},{api},8000")
    agent.client.wait("spy", timeout_s=60)
    said = agent.output("spy").splitlines()
    assert said[-1] == "end"
    assert [line for line in said if not line.startswith("nothing ")] == ["end"]


def test_a_workload_in_the_hosts_network_needs_a_key_and_a_token(begin: Begin, eventually: Eventually) -> None:
    port, api = free_port(), free_port()
    models = {"a": server("a", size=16 * MIB)}
    agent = begin(port=port, models=models, agent={"api": {"listen": f"127.0.0.1:{api}"}})
    keys = agent.file.parent / "keys"
    keys.write_text("web: sk-0123456789abcdef\n")
    keys.chmod(0o600)
    agent.write(models=models, agent={"api": {"listen": f"127.0.0.1:{api}"}}, activator={"keys_file": str(keys)})
    agent.client.reload()
    eventually(lambda: answers(port), what="the port")
    program = (
        "import http.client, os, sys\n"
        "for port, method, path in ((sys.argv[1], 'POST', '/v1/completions'), (sys.argv[2], 'GET', '/v1/node'),\n"
        "                           (sys.argv[2], 'POST', '/v1/workloads')):\n"
        "    asking = http.client.HTTPConnection('127.0.0.1', int(port), timeout=20)\n"
        "    asking.request(method, path, body='{\"model\":\"a\"}' if method == 'POST' else None)\n"
        "    print(asking.getresponse().status)\n"
    )
    eventually(lambda: said_in_hosts_network(agent, program, port, api) == ["401"] * 3, what="refusals")
    assert agent.state_of("a") == "absent"


def said_in_hosts_network(agent: ServingAgent, program: str, *ports: int) -> list[str]:
    agent.run("spy", sys.executable, "-c", program, *map(str, ports), network="host")
    agent.client.wait("spy", timeout_s=60)
    said = agent.output("spy").split()
    agent.client.remove("spy")
    return said


def answers(port: int) -> bool:
    with socket.socket() as knocking:
        return knocking.connect_ex(("127.0.0.1", port)) == 0


def test_a_stranger_is_no_worker(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB)})
    with socket.socket(socket.AF_UNIX) as knocking:
        knocking.connect(str(agent.activator_socket))
        knocking.sendall(
            b'{"kind":"load","model":"a","epoch":0,"waiting":1,"oldest_s":0,"in_flight":0,"begun":1,"ended":0}\n'
        )
        knocking.settimeout(60)
        assert knocking.recv(1) == b"", "one who doesn't begin with a hello is hung up on"
    agent.client.node()
    assert agent.state_of("a") == "absent"


def test_the_command_line_shows_and_orders(
    begin: Begin, eventually: Eventually, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = begin(models={"a": server("a", size=16 * MIB), "b": server("b", size=96 * MIB)})
    peer = agent.peer()

    def kybernate(*words: str) -> str:
        assert main([*words, "--state-dir", str(agent.state.root)]) == 0
        return capsys.readouterr().out

    said = kybernate("plan", "a")
    assert said.startswith("a request for a now would bring it, within ")
    assert "waiting" not in said
    assert kybernate("plan") == "nothing would be done\n"
    assert "as soon as it gets room" in kybernate("start", "a")
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    assert kybernate("plan", "a") == "a request for a now would be answered at once\n"
    rows = [line.split()[:5] for line in kybernate("models").splitlines()]
    assert ["a", "model", "interactive", "running", "vram"] in rows
    assert ["b", "model", "interactive", "stopped", "-"] in rows
    assert kybernate("reload") == "nothing has changed\n"
    agent.write(models={"a": server("a", size=16 * MIB, priority=1)})
    assert kybernate("reload") == "removed: b\nchanged: a\n"
    rehearsed = kybernate("check", str(agent.file), "--dry-run")
    assert "of VRAM, policy" in rehearsed
    assert "a request for a:\na would come, within" in rehearsed
    assert "waiting" not in rehearsed
    kybernate("pause", "a")
    eventually(lambda: "a" in peer.refusals, what="a refusal")
    refused = kybernate("plan", "a")
    assert refused.startswith("a request for a now would be refused: a was paused by order")
    lines = on_a_terminal(["models", "--state-dir", str(agent.state.root)], columns=80)
    assert max(len(line) for line in lines) <= 80
    assert {"NAME", "STATE", "TIER", "WAIT"} < set(lines[1].split())
    assert "WHY" not in lines[1]
    assert any(line.startswith("a: a was paused by order") for line in lines)
    assert main(["start", "b", "--state-dir", str(agent.state.root)]) == 2
    assert main(["plan", "nobody", "--state-dir", str(agent.state.root)]) == 2
