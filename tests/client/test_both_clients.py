"""The blocking and the asynchronous client are one: the same methods, and on the wire the same requests."""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.answering import AnsweringAgent, answering

from kybernate.client import AsyncClient, Client
from kybernate.model import api
from kybernate.model.errors import AgentAway, NotFound
from kybernate.model.types import Depth, TierName


@pytest.fixture
def server() -> Iterator[AnsweringAgent]:
    with answering() as made:
        yield made


RUN = api.RunRequest(name="a", argv=["x"], directory="/")
SNAPSHOT = api.SnapshotRequest(image="gold")
CALLS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "node": [((), {}), ((), {"ask": True})],
    "workloads": [((), {})],
    "workload": [(("a",), {})],
    "run": [((RUN,), {})],
    "wait": [(("a",), {"timeout_s": 1.0})],
    "pause": [(("a",), {}), (("a",), {"depth": Depth.WARM, "tier": TierName.NVME, "connections": "close"})],
    "resume": [(("a",), {"timeout_s": 2.0, "take_over": True})],
    "prefetch": [(("a",), {})],
    "snapshot": [(("a", SNAPSHOT), {})],
    "snapshots": [((), {})],
    "clone": [(("gold", "a"), {}), (("gold", "a"), {"count": 2})],
    "move": [(("a", TierName.OBJECT), {"keep": True})],
    "remove_snapshot": [(("x",), {"tier": TierName.NVME})],
    "verify": [((), {}), (("x", "y"), {"content": False})],
    "collect": [((), {"dry_run": True})],
    "jobs": [((), {})],
    "serving": [((), {})],
    "plan": [(("a", "b"), {})],
    "start": [(("a",), {})],
    "reload": [((), {})],
    "stop": [(("a",), {"grace_s": 1.0, "remove": True})],
    "signal": [(("a", signal.SIGUSR1), {})],
    "remove": [(("a",), {})],
    "pause_external": [((4242,), {})],
    "resume_external": [((4242,), {})],
    "explain": [(("a",), {})],
    "events": [((), {}), (("a",), {"count": 3, "after": 9})],
    "history": [((), {}), ((1.5,), {})],
    "shutdown": [((), {}), ((), {"stop": True, "grace_s": 1.0})],
    "logs": [(("a",), {}), (("a",), {"lines": 5, "follow": True})],
    "follow_events": [((), {}), (("a",), {"count": 3})],
    "follow_node": [((), {})],
}


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}


def test_both_have_the_same_methods_with_the_same_parameters_and_words() -> None:
    blocking, awaiting = public(Client), public(AsyncClient)
    assert blocking.keys() == awaiting.keys()
    for name, one in blocking.items():
        other = awaiting[name]
        assert inspect.signature(one).parameters == inspect.signature(other).parameters, name
        assert inspect.getdoc(one) == inspect.getdoc(other), name


def test_every_method_has_an_example_here() -> None:
    assert CALLS.keys() == public(Client).keys() - {"send", "close"}


async def awaited(client: AsyncClient, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    answer = getattr(client, name)(*arguments, **options)
    if isinstance(answer, AsyncIterator):
        async for _ in answer:
            pass
    else:
        await answer


@pytest.mark.parametrize("name", CALLS)
def test_both_ask_the_same_and_raise_what_the_agent_raised(server: AnsweringAgent, name: str) -> None:
    path = server.socket_path
    with Client(path) as client:
        for arguments, options in CALLS[name]:
            with pytest.raises(NotFound, match="nobody knows that"):
                for _ in _drained(getattr(client, name)(*arguments, **options)):
                    pass
    first, server.asked = server.asked, []

    async def ask() -> None:
        async with AsyncClient(path) as other:
            for arguments, options in CALLS[name]:
                with pytest.raises(NotFound, match="nobody knows that"):
                    await awaited(other, name, arguments, options)

    asyncio.run(ask())
    assert first == server.asked
    assert len(first) == len(CALLS[name])


def _drained(answer: Any) -> Iterator[Any]:
    return iter(answer) if inspect.isgenerator(answer) else iter(())


def test_lists_are_handed_out_without_their_wrapping(server: AnsweringAgent) -> None:
    server.answers = {
        "/v1/workloads": b'{"workloads": []}',
        "/v1/jobs": b'{"jobs": [{"kind": "park", "seconds": 1, "subject": "a"}]}',
        "/v1/events": b'{"events": []}',
        "/v1/store/verify": b'{"tiers": []}',
        "/v1/store/gc": b'{"tiers": [], "dry_run": true}',
    }
    path = server.socket_path
    with Client(path) as client:
        assert [job.subject for job in client.jobs()] == ["a"]
        assert (client.workloads(), client.events(), client.verify(), client.collect()) == ([], [], [], [])

    async def ask() -> None:
        async with AsyncClient(path) as other:
            assert [job.subject for job in await other.jobs()] == ["a"]
            assert (
                await other.workloads() == await other.events() == await other.verify() == await other.collect() == []
            )

    asyncio.run(ask())


def test_streams_are_read_to_their_end(server: AnsweringAgent) -> None:
    events = b'event: gone\ndata: {"workload": "a"}\n\n: still here\n\nevent: of_tomorrow\ndata: {}\n\n'
    server.answers = {"/v1/stream": events, "/v1/workloads/a/logs": b"first\nsecond\n"}
    path = server.socket_path
    with Client(path) as client:
        assert list(client.follow_node()) == [api.GoneView(workload="a")]
        assert b"".join(client.logs("a")) == b"first\nsecond\n"

    async def ask() -> None:
        async with AsyncClient(path) as other:
            assert [view async for view in other.follow_node()] == [api.GoneView(workload="a")]
            assert b"".join([piece async for piece in other.logs("a")]) == b"first\nsecond\n"

    asyncio.run(ask())


def test_where_nobody_listens_both_say_what_to_start(tmp_path: Path) -> None:
    with Client(tmp_path / "none") as client, pytest.raises(AgentAway, match="no agent answers on") as refused:
        client.jobs()
    assert refused.value.hint == "start one with `kybernate up`"

    async def ask() -> None:
        async with AsyncClient(tmp_path / "none") as other:
            with pytest.raises(AgentAway, match="no agent answers on"):
                await other.jobs()
            with pytest.raises(AgentAway, match="no agent answers on"):
                await awaited(other, "follow_node", (), {})

    asyncio.run(ask())
