"""Models on their way to their first answer: what others, and persons, do meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.agent.serving.conftest import ServingAgent, server
from tests.conftest import SLOWER, Eventually

from kybernate.model.errors import NotFound
from kybernate.model.types import MIB

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

Begin = Callable[..., ServingAgent]


def slow(name: str, until: Path, *, size: int = 80 * MIB, **more: Any) -> dict[str, object]:
    """A model whose server begins once that file is there."""
    said = server(name, size=size, **more)
    command = said["command"]
    assert isinstance(command, list)
    wait = 'until [ -e "$0" ]; do sleep 0.05; done; exec "$@"'
    return {**said, "command": ["sh", "-c", wait, str(until), *(str(word) for word in command)]}


def state(agent: ServingAgent, name: str) -> str:
    try:
        return agent.client.workload(name).state
    except NotFound:
        return "not begun"


def test_a_model_that_is_paused_while_it_starts_keeps_nobody_waiting(
    begin: Begin, tmp_path: Path, eventually: Eventually
) -> None:
    go = tmp_path / "go"
    agent = begin(models={"a": server("a"), "b": slow("b", go)})
    peer = agent.peer()
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.answer("a")
    peer.request("b", waiting=1)
    eventually(lambda: agent.state_of("a") == "away in ram", timeout_s=90, what="a gone for b")
    eventually(lambda: state(agent, "b") == "running", timeout_s=90, what="b begun")
    agent.client.pause("b")
    eventually(lambda: "b" in peer.refusals, what="word for those who ask for b")
    assert "paused by order" in peer.refusals["b"].message
    assert agent.state_of("b") == "away in ram"
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a again, though b never came to be ready")
    peer.answer("a")
    go.touch()
    agent.client.resume("b")
    eventually(lambda: peer.is_open("b"), timeout_s=90, what="b open, once it is resumed and ready")
    assert [event.text for event in agent.client.events("b") if event.kind in ("exited", "stop")] == []


def test_who_gave_way_for_a_slow_start_comes_back_before_its_end(
    begin: Begin, tmp_path: Path, eventually: Eventually
) -> None:
    sizes = {"size": 60 * MIB}
    go = tmp_path / "go"
    agent = begin(models={"a": server("a", **sizes), "b": server("b", **sizes), "c": slow("c", go, **sizes)})
    peer = agent.peer()
    for name in ("a", "b"):
        peer.request(name, waiting=1)
        eventually(lambda name=name: peer.is_open(name), timeout_s=90, what=f"{name} open")
        peer.answer(name)
    peer.request("c", waiting=1)
    eventually(lambda: not (peer.is_open("a") and peer.is_open("b")), timeout_s=90, what="room for c")
    gone = "b" if peer.is_open("a") else "a"
    eventually(lambda: state(agent, "c") == "running", timeout_s=90, what="c begun")
    peer.request(gone, waiting=1)
    eventually(lambda: peer.is_open(gone), timeout_s=90, what=f"{gone} again, while c still starts")
    assert not peer.is_open("c")
    peer.answer(gone)
    go.touch()
    eventually(lambda: peer.is_open("c"), timeout_s=90, what="c open")
