"""Who held VRAM when: true to the ledger, bounded, and known to the agent that comes next."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.conftest import AgentProcess
from tests.conftest import Eventually

from kybernate.agent.records import history as module
from kybernate.agent.records.database import Database
from kybernate.agent.records.history import History, switched_view
from kybernate.agent.records.ledger import Entry
from kybernate.agent.records.residency import Residency, residency_of
from kybernate.model.api_history import HistoryView, IntervalView
from kybernate.model.types import MIB, Backend, Depth, StepTiming, SwitchReport, TierName, WorkloadName, WorkloadState

pytestmark = pytest.mark.timeout(300)


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.path = path
        self.stayed: dict[tuple[str, str], float] = {}
        self.database = Database(path)
        self.open()

    def open(self, *, keep_s: float = 3600.0) -> None:
        self.database = Database(self.path)
        self.database.open()
        self.history = History(
            database=self.database,
            clock=self.clock,
            keep_s=keep_s,
            resident=lambda _: 80 * MIB,
            links=list,
            ended=self._stayed,
        )
        self.entries: dict[str, Entry] = {}

    def _stayed(self, name: WorkloadName, place: Residency, seconds: float) -> None:
        self.stayed[name, place] = self.stayed.get((name, place), 0.0) + seconds

    def put(self, name: str, state: WorkloadState, **changes: object) -> None:
        old = self.entries.get(name)
        base = old or Entry(name=WorkloadName(name), state=state, since=0.0, backend=Backend.BROKER, last_use=0.0)
        new = dataclasses.replace(base, state=state, **changes)  # type: ignore[arg-type]
        self.entries[name] = new
        self.history.changed(old, new)

    def cycle(self, name: str) -> None:
        for state in (WorkloadState.RUNNING, WorkloadState.PAUSING, WorkloadState.PAUSED, WorkloadState.RESUMING):
            self.put(name, state)
            self.clock.now += 1.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "agent.db")
    yield rig
    rig.database.close()


def told(view: HistoryView) -> list[tuple[str, str, float, float | None]]:
    return [(i.workload, i.place, i.began, i.ended) for i in view.intervals]


def test_places() -> None:
    entry = Entry(
        name=WorkloadName("a"),
        state=WorkloadState.PAUSED,
        since=0,
        backend=Backend.BROKER,
        last_use=0,
        tier=TierName.NVME,
    )
    assert residency_of(entry) is Residency.NVME
    found = {state: residency_of(dataclasses.replace(entry, state=state)) for state in WorkloadState}
    assert found[WorkloadState.RUNNING] is Residency.VRAM
    assert found[WorkloadState.EXITED] is found[WorkloadState.LOST] is residency_of(None) is None
    assert {found[s] for s in WorkloadState if s in ("starting", "pausing", "resuming", "stopping")} == {
        Residency.SWITCHING
    }


def test_one_interval_after_the_other(rig: Rig) -> None:
    rig.cycle("a")
    rig.put("a", WorkloadState.RUNNING)
    rig.put("a", WorkloadState.RUNNING, reason="touched")
    view = rig.history.view(0)
    assert told(view) == [
        ("a", "vram", 1000, 1001),
        ("a", "switching", 1001, 1002),
        ("a", "ram", 1002, 1003),
        ("a", "switching", 1003, 1004),
        ("a", "vram", 1004, None),
    ]
    rig.put("a", WorkloadState.EXITED)
    assert told(rig.history.view(0))[-1] == ("a", "vram", 1004, 1004)
    assert rig.stayed == {("a", "vram"): 1.0, ("a", "switching"): 2.0, ("a", "ram"): 1.0}


def test_a_deeper_tier_is_another_place(rig: Rig) -> None:
    rig.put("a", WorkloadState.PAUSED)
    rig.clock.now += 5
    rig.put("a", WorkloadState.PAUSED, tier=TierName.NVME)
    assert [i.place for i in rig.history.view(0).intervals] == ["ram", "nvme"]


def test_since(rig: Rig) -> None:
    rig.cycle("a")
    assert [i.place for i in rig.history.view(1002.5).intervals] == ["ram", "switching"]


def test_the_next_agent_goes_on(rig: Rig) -> None:
    for name in ("stays", "moves", "gone"):
        rig.put(name, WorkloadState.RUNNING)
    rig.clock.now += 10
    rig.database.close()
    rig.open()
    rig.put("stays", WorkloadState.RUNNING)
    rig.put("moves", WorkloadState.PAUSED)
    rig.history.settle(rig.entries.values())
    assert told(rig.history.view(0)) == [
        ("stays", "vram", 1000, None),
        ("moves", "vram", 1000, 1010),
        ("gone", "vram", 1000, 1010),
        ("moves", "ram", 1010, None),
    ]
    rig.database.close()
    rig.open()
    assert len(rig.history.view(0).intervals) == 4


def test_it_is_bounded_in_time(rig: Rig, tmp_path: Path) -> None:
    rig.database.close()
    rig.open(keep_s=60)
    for _ in range(300):
        rig.cycle("a")
    view = rig.history.view(0)
    assert rig.clock.now - view.intervals[0].began <= 64
    rig.database.close()
    rig.open(keep_s=60)
    assert len(rig.history.view(0).intervals) <= len(view.intervals)
    rows = rig.database.read_now("SELECT count(*) FROM intervals")[0][0]
    assert rows <= module._PRUNE_EVERY + 64


def test_it_is_bounded_in_number_and_says_from_when_it_is_whole(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWERED_MAX", 10)
    for _ in range(10):
        rig.cycle("a")
    view = rig.history.view(0)
    assert len(view.intervals) == 11
    assert view.since == view.intervals[0].began
    assert rig.history.view(rig.clock.now).since == rig.clock.now


def test_a_clock_that_is_set_back(rig: Rig) -> None:
    rig.put("a", WorkloadState.RUNNING)
    rig.clock.now -= 500
    rig.put("a", WorkloadState.PAUSED)
    rig.clock.now += 1
    rig.put("a", WorkloadState.RUNNING)
    for interval in rig.history.view(0).intervals:
        assert interval.ended is None or interval.ended >= interval.began


def test_the_rate_of_a_switch() -> None:
    steps = (StepTiming("quiesce", 0.1), StepTiming("copy", 2.0))
    report = SwitchReport(
        workload="a",
        operation="pause",
        depth=Depth.ZERO,
        backend=Backend.BROKER,
        seconds=2.2,
        bytes_copied=100 * MIB,
        steps=steps,
    )
    assert switched_view(report, 1.0).bytes_per_s == 50 * MIB
    assert switched_view(dataclasses.replace(report, bytes_copied=0), 1.0).bytes_per_s is None
    assert switched_view(dataclasses.replace(report, steps=()), 1.0).copy_s is None


def last(agent: AgentProcess, name: str) -> IntervalView:
    return [i for i in agent.client.history().intervals if i.workload == name][-1]


def test_a_real_agent_tells_it_and_its_successor_too(gpu_agent: AgentProcess, eventually: Eventually) -> None:
    client = gpu_agent.client
    gpu_agent.run_cuda("told")
    eventually(lambda: gpu_agent.steps("told") > 1)
    eventually(lambda: last(gpu_agent, "told").bytes >= 80 * MIB, what="its VRAM is seen")
    client.pause("told")
    assert (last(gpu_agent, "told").place, last(gpu_agent, "told").ended) == ("ram", None)
    assert last(gpu_agent, "told").bytes >= 80 * MIB
    switch = client.history().switches[-1]
    assert (switch.workload, switch.operation) == ("told", "pause")
    assert switch.bytes_per_s is not None
    links = eventually(lambda: client.history().links, what="the links are looked at once the pool is made")
    assert links[0].source == "unknown"
    before = [i for i in client.history().intervals if i.workload == "told"]
    gpu_agent.kill()
    gpu_agent.start()
    after = [i for i in client.history().intervals if i.workload == "told"]
    assert [i.id for i in after] == [i.id for i in before]
    assert after[-1].ended is None
    assert client.history().switches[-1] == switch
    client.resume("told")
    assert last(gpu_agent, "told").place == "vram"
    client.stop("told", remove=True)
    assert last(gpu_agent, "told").ended is not None
