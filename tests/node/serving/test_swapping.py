"""Who has the VRAM, by who is asked: models come by their requests, and give way to each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.conftest import SLOWER, Eventually
from tests.node.serving.conftest import ServingAgent, server

pytestmark = [pytest.mark.root, pytest.mark.timeout(120 * SLOWER)]

Begin = Callable[..., ServingAgent]


def test_a_request_starts_a_model_and_the_next_one_swaps(begin: Begin, eventually: Eventually) -> None:
    agent = begin(models={"a": server("a"), "b": server("b")})
    peer = agent.peer()
    eventually(lambda: peer.configured)
    assert peer.configured is not None
    assert [endpoint.model for endpoint in peer.configured.endpoints] == ["a", "b"]
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=40, what="a open")
    assert peer.opened["a"].waited_for == "start"
    assert agent.state_of("a") == "resident"
    peer.answer("a")
    peer.request("b", waiting=2)
    eventually(lambda: peer.is_open("b"), timeout_s=40, what="b open")
    assert not peer.is_open("a")
    assert agent.state_of("a") == "away in ram"
    peer.answer("b")
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=20, what="a again")
    assert peer.opened["a"].waited_for == "ram"
    assert peer.opened["a"].victims == ("b",)
    peer.close()
