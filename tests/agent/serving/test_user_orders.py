"""What a person's orders mean for what starts by itself: stopped stays stopped until somebody asks, resumed stays resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agent.building import entry
from tests.agent.serving.building import job, load, model

from kybernate.agent.records.database import Database
from kybernate.agent.serving.backoff import Backoff
from kybernate.agent.serving.configuration import Configured, CurrentConfiguration
from kybernate.agent.serving.controller_state import ControllerState
from kybernate.agent.serving.user_orders import UserOrders
from kybernate.agent.serving.worker_load import WorkerLoads
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.agent.workloads.starts import Starts
from kybernate.model.types import EndedBy, WorkloadName, WorkloadState
from kybernate.settings import Settings

pytestmark = pytest.mark.unit

M, J, OTHER = WorkloadName("m"), WorkloadName("j"), WorkloadName("other")
WORKER = 7


class Rig:
    """A model `m` and a job `j`, and all that orders change."""

    def __init__(self, database: Database) -> None:
        self.now = 100.0
        self.woken = 0
        self.configuration = CurrentConfiguration()
        self.configure()
        self.starts = Starts()
        self.state = ControllerState()
        self.backoff = Backoff(lambda: self.now)
        self.stats = WorkloadStats(database)
        self.loads = WorkerLoads()
        self.orders = UserOrders(
            configuration=self.configuration,
            starts=self.starts,
            state=self.state,
            backoff=self.backoff,
            stats=self.stats,
            loads=self.loads,
            clock=lambda: self.now,
            wake=self._wake,
        )

    def configure(self, fingerprint: str = "f") -> None:
        served = {M: model("m"), J: job("j", fingerprint=fingerprint)}
        self.configuration.replace(Configured(Settings(), served, (), None))

    def asked(self, *, begun: int, waiting: int) -> None:
        self.loads.update(WORKER, load("m", begun=begun, waiting=waiting), self.now)

    def _wake(self) -> None:
        self.woken += 1


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    database = Database(tmp_path / "agent.db")
    database.open()
    yield Rig(database)
    database.close()


def test_what_a_person_stopped_is_not_started_by_itself(rig: Rig) -> None:
    rig.orders.on_requested(M)
    rig.orders.on_stop_ordered(M)
    assert rig.starts.is_held(M)
    assert M not in rig.state.requested


def test_a_stopped_model_starts_again_at_the_next_request_and_not_at_an_old_one(rig: Rig) -> None:
    rig.asked(begun=5, waiting=1)
    rig.orders.on_stop_ordered(M)
    rig.orders.on_stopped(M)
    rig.orders.poll(rig.now)
    assert rig.starts.is_held(M), "that request came before the order was carried out"
    rig.asked(begun=6, waiting=0)
    rig.orders.poll(rig.now)
    assert rig.starts.is_held(M), "it was answered: nobody waits"
    rig.asked(begun=7, waiting=1)
    rig.orders.poll(rig.now)
    assert not rig.starts.is_held(M)
    assert rig.state.requested.stopped() == []


def test_while_it_is_being_stopped_no_request_starts_it(rig: Rig) -> None:
    rig.orders.on_stop_ordered(M)
    rig.asked(begun=1, waiting=1)
    rig.orders.poll(rig.now)
    assert rig.starts.is_held(M)


def test_a_stopped_job_is_done_until_a_person_or_another_program_starts_it(rig: Rig) -> None:
    rig.orders.on_stop_ordered(J)
    rig.orders.on_stopped(J)
    assert rig.stats.of(J).done
    assert rig.state.requested.stopped() == [], "nobody asks a job"
    rig.orders.on_configured()
    assert rig.starts.is_held(J), "the same program"
    rig.configure(fingerprint="another")
    rig.orders.on_configured()
    assert not rig.starts.is_held(J)


def test_a_start_by_order_takes_a_stop_back_and_a_failure_and_an_end(rig: Rig) -> None:
    rig.orders.on_stop_ordered(J)
    rig.backoff.add(J, "it failed")
    woken = rig.woken
    rig.orders.on_requested(J)
    assert J in rig.state.requested
    assert not rig.starts.is_held(J)
    assert not rig.stats.of(J).done
    assert rig.backoff.until(J) == 0.0
    assert rig.woken == woken + 1


def test_a_new_file_may_have_mended_whatever_failed(rig: Rig) -> None:
    rig.backoff.add(M, "no such file")
    rig.orders.on_configured()
    assert rig.backoff.until(M) == 0.0
    assert rig.woken == 1


def test_a_workload_that_the_configuration_does_not_name_is_held_by_nobody(rig: Rig) -> None:
    rig.orders.on_stop_ordered(OTHER)
    rig.orders.on_stopped(OTHER)
    assert not rig.starts.is_held(OTHER)
    assert rig.state.requested.stopped() == []


@pytest.mark.parametrize(
    ("old", "new", "over"),
    [
        (WorkloadState.RUNNING, WorkloadState.PAUSED, True),
        (WorkloadState.PAUSING, WorkloadState.PAUSED, True),
        (WorkloadState.RUNNING, WorkloadState.EXITED, True),
        (WorkloadState.RESUMING, WorkloadState.PAUSED, False),
        (WorkloadState.PAUSED, WorkloadState.RESUMING, False),
        (WorkloadState.RUNNING, WorkloadState.PAUSING, False),
        (None, WorkloadState.PAUSED, False),
    ],
)
def test_an_order_to_run_is_over_once_it_ran_and_does_no_more(
    rig: Rig, old: WorkloadState | None, new: WorkloadState, *, over: bool
) -> None:
    rig.orders.on_requested(M)
    rig.orders.on_changed(None if old is None else entry("m", old), entry("m", new))
    assert (M not in rig.state.requested) is over


def test_an_end_by_order_ends_the_order_to_run_from_any_state(rig: Rig) -> None:
    rig.orders.on_requested(M)
    rig.orders.on_changed(None, entry("m", WorkloadState.EXITED, ended_by=EndedBy.ORDER))
    assert M not in rig.state.requested
