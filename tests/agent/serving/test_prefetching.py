"""Staging ahead: what waits, or is about to be asked for, is read into the pool while others compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.agent.serving.conftest import ServingAgent, server
from tests.agent.serving.peer import Peer
from tests.conftest import SLOWER, Eventually

from kybernate.model.types import MIB

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

Begin = Callable[..., ServingAgent]


def _one_on_disk_and_one_at_work(begin: Begin, eventually: Eventually, **serving: object) -> tuple[ServingAgent, Peer]:
    models = {"a": server("a", size=64 * MIB), "b": server("b", size=96 * MIB, idle=0.3, demote_after=0.3)}
    agent = begin(models=models, serving={"due_after": 60, "staging": {"budget": "128MiB"}, **serving})
    peer = agent.peer()
    peer.request("b", waiting=1)
    eventually(lambda: peer.is_open("b"), timeout_s=90, what="b open")
    peer.answer("b")
    eventually(lambda: agent.state_of("b") == "away in nvme", timeout_s=90, what="b on the disk")
    peer.request("a", waiting=1)
    eventually(lambda: peer.is_open("a"), timeout_s=90, what="a open")
    peer.request("a", in_flight=1)
    return agent, peer


def test_what_waits_for_its_turn_is_read_into_the_pool_meanwhile(begin: Begin, eventually: Eventually) -> None:
    agent, peer = _one_on_disk_and_one_at_work(begin, eventually)
    peer.request("b", waiting=1)
    eventually(lambda: agent.client.workload("b").staged, timeout_s=90, what="b's content in the pool")
    staging = agent.client.serving().staging
    assert 0 < staging.used_bytes <= staging.budget_bytes
    peer.answer("a")
    eventually(lambda: peer.is_open("b"), timeout_s=90, what="b open")
    staging = agent.client.serving().staging
    assert (staging.hits, staging.misses, staging.used_bytes) == (1, 0, 0)


def test_what_was_staged_for_nothing_is_counted_so(begin: Begin, eventually: Eventually) -> None:
    agent, peer = _one_on_disk_and_one_at_work(begin, eventually)
    peer.request("b", waiting=1)
    eventually(lambda: agent.client.workload("b").staged, timeout_s=90, what="b's content in the pool")
    peer.answer("b")  # its client hung up
    agent.client.stop("b", remove=True)
    staging = agent.client.serving().staging
    assert (staging.hits, staging.misses) == (0, 1)
    lines = agent.metrics().splitlines()
    assert {"kybernate_staging_hits_total 0.0", "kybernate_staging_misses_total 1.0"} <= set(lines)


def test_nothing_is_staged_without_a_budget(begin: Begin, eventually: Eventually) -> None:
    agent, peer = _one_on_disk_and_one_at_work(begin, eventually, staging={"budget": "off"})
    peer.request("b", waiting=1)
    since = agent.client.serving().time
    eventually(lambda: agent.client.serving().time > since + 3.0, timeout_s=30, what="time to think of it")
    assert not agent.client.workload("b").staged
    peer.answer("a")
    eventually(lambda: peer.is_open("b"), timeout_s=90, what="b open")
