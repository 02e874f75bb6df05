"""Leases without a socket: what workers are told, who is waited for, and what a predecessor's word is worth."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.agent.building import A, B, Clock
from tests.agent.serving.building import load

from kybernate.agent.serving.lease_table import LeaseTable
from kybernate.agent.serving.leases import Arrival, Leases
from kybernate.agent.serving.shares import Shares
from kybernate.agent.serving.worker_load import WorkerLoads
from kybernate.agent.serving.workers import Workers
from kybernate.model.caller import own_user
from kybernate.model.errors import Busy
from kybernate.model.messages import Close, Message, Open, Refuse, Share
from kybernate.model.types import WorkloadName

pytestmark = pytest.mark.unit

SOON = 0.05


class _Workers(Workers):
    """Those that the test says are connected, and what they were told."""

    def __init__(self, *pids: int) -> None:
        super().__init__(path=Path("none"), caller_of=lambda _: own_user())
        self.connected = set(pids)
        self.told: list[tuple[int, Message]] = []

    def pids(self) -> frozenset[int]:
        return frozenset(self.connected)

    def tell(self, pid: int, message: Message) -> None:
        self.told.append((pid, message))

    def tell_all(self, message: Message) -> None:
        for pid in sorted(self.connected):
            self.tell(pid, message)

    def kinds(self) -> list[tuple[int, type[Message]]]:
        """Since the last question."""
        found = [(pid, type(message)) for pid, message in self.told]
        self.told.clear()
        return found


class _Rig:
    def __init__(self, *pids: int) -> None:
        self.workers = _Workers(*pids)
        self.loads = WorkerLoads()
        self.table = LeaseTable()
        self.shares = Shares(workers=self.workers, loads=self.loads)
        self.changed: list[WorkloadName] = []
        self.leases = Leases(
            table=self.table,
            shares=self.shares,
            workers=self.workers,
            loads=self.loads,
            clock=Clock(),
            on_change=self.changed.append,
        )
        self.table.add(A)

    @property
    def epoch(self) -> int:
        lease = self.table.get(A)
        assert lease is not None
        return lease.epoch


async def test_an_open_model_is_told_to_every_worker_with_what_its_coming_took() -> None:
    rig = _Rig(1, 2)
    rig.leases.open(A, network_pid=7, arrival=Arrival("nvme", 2.5, (B,)))
    assert rig.table.is_open(A)
    (_, said), _ = rig.workers.told
    assert isinstance(said, Open)
    assert (said.network_pid, said.waited_for, said.seconds, said.victims) == (7, "nvme", 2.5, (B,))
    assert rig.workers.kinds() == [(1, Open), (2, Open)]
    assert rig.changed == [A]


async def test_a_model_is_closed_once_every_worker_has_drained() -> None:
    rig = _Rig(1, 2)
    rig.leases.open(A, network_pid=None)
    closing = asyncio.ensure_future(rig.leases.close(A, timeout_s=60))
    await asyncio.sleep(0)
    assert not rig.table.is_open(A)
    rig.leases.on_drained(1, A, rig.epoch)
    await asyncio.sleep(0)
    assert not closing.done()
    rig.leases.on_disconnected(2)  # its connections have gone with it
    await closing
    await rig.leases.close(A, timeout_s=0)  # a closed one is fine


async def test_an_answer_to_an_older_opening_is_void() -> None:
    rig = _Rig(1)
    rig.leases.open(A, network_pid=None)
    rig.leases.hold(A)
    rig.leases.on_drained(1, A, rig.epoch - 1)
    with pytest.raises(Busy):
        await rig.leases.close(A, timeout_s=SOON)


async def test_one_that_does_not_drain_in_time_goes_on_with_a_new_opening() -> None:
    rig = _Rig(1)
    rig.leases.open(A, network_pid=None)
    rig.loads.update(1, load("a", in_flight=2), 0.0)
    before = rig.epoch
    with pytest.raises(Busy, match="2 requests in flight"):
        await rig.leases.close(A, timeout_s=SOON)
    assert rig.table.is_open(A)
    assert rig.epoch > before


async def test_of_two_who_close_the_first_to_give_up_does_not_open_it_under_the_other() -> None:
    rig = _Rig(1)
    rig.leases.open(A, network_pid=None)
    patient = asyncio.ensure_future(rig.leases.close(A, timeout_s=60))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await rig.leases.close(A, timeout_s=SOON)
    assert not rig.table.is_open(A)
    rig.leases.on_drained(1, A, rig.epoch)
    await patient


async def test_one_that_ends_has_nothing_to_drain() -> None:
    rig = _Rig(1)
    rig.leases.open(A, network_pid=None)
    closing = asyncio.ensure_future(rig.leases.close(A, timeout_s=60))
    await asyncio.sleep(0)
    rig.leases.on_ended(A)
    await closing


async def test_a_refusal_holds_until_it_is_admitted_or_opened() -> None:
    rig = _Rig(1)
    rig.leases.refuse(A, message="no", retry_after_s=None)
    rig.leases.refuse(A, message="no", retry_after_s=None)
    assert rig.workers.kinds() == [(1, Refuse)], "the same is said once"
    assert rig.leases.admit(A)
    assert not rig.leases.admit(A)
    rig.leases.refuse(A, message="no", retry_after_s=None)
    rig.leases.open(A, network_pid=None)
    assert rig.table.refusal(A) is None
    rig.leases.refuse(A, message="no", retry_after_s=None)
    assert rig.table.refusal(A) is None, "what is open isn't refused"


async def test_what_a_predecessor_opened_is_closed_before_anything_else() -> None:
    rig = _Rig()
    rig.leases.expect({1})
    rig.workers.connected.add(1)
    far = rig.epoch + 10**15
    closing = asyncio.ensure_future(rig.leases.close(A, timeout_s=60))
    await asyncio.sleep(0)
    assert not closing.done(), "nobody knows yet what that worker forwards to"
    assert rig.leases.on_hello(1, {A: far}) == [A]
    await asyncio.sleep(0)
    rig.leases.on_drained(1, A, far)
    await closing
    rig.leases.open(A, network_pid=None)
    assert rig.epoch > far, "epochs go on growing"


async def test_a_worker_that_connects_hears_what_is_open() -> None:
    rig = _Rig()
    rig.leases.open(A, network_pid=None)
    rig.table.add(B)
    rig.leases.refuse(B, message="no", retry_after_s=None)
    rig.workers.connected.add(3)
    rig.workers.told.clear()
    assert rig.leases.on_hello(3, {}) == []
    assert rig.workers.kinds() == [(3, Open), (3, Refuse)]


async def test_a_closing_model_is_taken_back_from_a_worker_that_comes_meanwhile() -> None:
    rig = _Rig(1)
    rig.leases.open(A, network_pid=None)
    rig.leases.hold(A)
    rig.workers.connected.add(2)
    rig.workers.told.clear()
    assert rig.leases.on_hello(2, {A: 5}) == []
    assert (2, Close) in rig.workers.kinds()


async def test_a_limit_is_divided_anew_when_a_worker_goes() -> None:
    rig = _Rig(1, 2)
    rig.shares.limit(A, 4)
    assert {pid: message.concurrency for pid, message in rig.workers.told if isinstance(message, Share)} == {1: 2, 2: 2}
    rig.workers.connected.discard(2)
    rig.workers.told.clear()
    rig.leases.on_disconnected(2)
    assert [(pid, message.concurrency) for pid, message in rig.workers.told if isinstance(message, Share)] == [(1, 4)]
