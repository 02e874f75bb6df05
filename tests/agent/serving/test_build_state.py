"""What a policy is shown of a workload: its phase, its bytes, whether it is wanted, and whether it may be touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.agent.building import GPU, NOW, OTHER_GPU, A, changed, entry, paused
from tests.agent.serving.building import job, model

from kybernate.agent.records.ledger import ARBITER, RECOVERY, USER, Entry
from kybernate.agent.serving.build_state import Seen, bytes_of, member_of, phase_of, wanted, work_left
from kybernate.agent.serving.controller_state import Acting
from kybernate.agent.serving.worker_load import Demand
from kybernate.agent.serving.workload_stats import Stats
from kybernate.model.types import GIB, Backend, Class, GpuUuid, TierName, WorkloadName, WorkloadState
from kybernate.policy.costs import Costs, Direction
from kybernate.policy.node_state import Member, Phase
from kybernate.policy.schedule import parse_schedule
from kybernate.settings import parse
from kybernate.settings.specs import Served, served_of

pytestmark = pytest.mark.unit

S = WorkloadState
COMING = Acting(Phase.COMING, NOW - 1)
LEAVING = Acting(Phase.LEAVING, NOW - 1)
FOREVER = float("inf")


def seen(one: Entry | None = None, served: Served | None = None, **given: Any) -> Seen:
    return replace(Seen(name=A, entry=one, served=served), **given)


def member(what: Seen, *, auto_resume: bool = True, costs: Costs | None = None, now: float = NOW) -> Member:
    return member_of(what, costs=costs or Costs(), gpus=[GPU, OTHER_GPU], auto_resume=auto_resume, now=now)


# -- phase ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "phase"),
    [
        pytest.param(seen(), Phase.ABSENT, id="never started"),
        pytest.param(seen(entry()), Phase.RESIDENT, id="it runs"),
        pytest.param(seen(entry(), ready=False), Phase.COMING, id="it runs and can't be asked yet"),
        pytest.param(seen(paused()), Phase.AWAY, id="paused"),
        pytest.param(seen(entry(state=S.LOST)), Phase.ABSENT, id="lost"),
        pytest.param(seen(paused(), acting=COMING), Phase.COMING, id="its victims still leave"),
        pytest.param(seen(entry(), acting=COMING), Phase.RESIDENT, id="it has come"),
        pytest.param(seen(entry(), acting=COMING, ready=False), Phase.COMING, id="come, and not ready yet"),
        pytest.param(seen(entry(), acting=LEAVING), Phase.LEAVING, id="a victim that still drains"),
        pytest.param(seen(paused(), acting=LEAVING), Phase.AWAY, id="a victim that has left"),
        pytest.param(seen(entry(state=S.EXITED), acting=LEAVING), Phase.ABSENT, id="a victim that ended holds nothing"),
        pytest.param(seen(acting=COMING), Phase.COMING, id="a start that isn't in the ledger yet"),
    ],
)
def test_where_it_is(what: Seen, phase: Phase) -> None:
    assert phase_of(what) is phase


# -- bytes ---------------------------------------------------------------------------------------------------------------

HELD: Mapping[GpuUuid, int] = {GPU: 4 * GIB}
NEEDS = Stats(needs={GPU: 20 * GIB, GpuUuid("GPU-sold"): GIB})


@pytest.mark.parametrize(
    ("what", "phase", "sizes"),
    [
        pytest.param(seen(entry(), resident=HELD), Phase.RESIDENT, HELD, id="what it holds"),
        pytest.param(seen(entry(), resident=HELD, stats=NEEDS), Phase.LEAVING, HELD, id="what it still holds"),
        pytest.param(seen(paused(gib=10)), Phase.AWAY, {GPU: 10 * GIB}, id="what it gave up"),
        pytest.param(
            seen(paused(gib=10), wanted={GPU: GIB, OTHER_GPU: 2 * GIB}),
            Phase.AWAY,
            {GPU: 11 * GIB, OTHER_GPU: 2 * GIB},
            id="and what it asked for in vain",
        ),
        pytest.param(
            seen(paused(gib=10), shortage={GPU: 12 * GIB}), Phase.AWAY, {GPU: 12 * GIB}, id="more, where that was too little"
        ),
        pytest.param(
            seen(stats=NEEDS, hinted={GPU: 50 * GIB}), Phase.ABSENT, {GPU: 20 * GIB}, id="what it held last, not the hint"
        ),
        pytest.param(seen(hinted={GPU: 50 * GIB}), Phase.ABSENT, {GPU: 50 * GIB}, id="the hint, where nobody knows better"),
        pytest.param(
            seen(stats=Stats(needs={GpuUuid("GPU-sold"): GIB}), hinted={GPU: 5}), Phase.ABSENT, {GPU: 5},
            id="what it held on a GPU that is gone says nothing",
        ),
        pytest.param(seen(), Phase.ABSENT, {}, id="nobody knows"),
        pytest.param(
            seen(entry(state=S.STARTING), resident={GPU: 25 * GIB}, stats=NEEDS), Phase.COMING, {GPU: 25 * GIB},
            id="one that grows beyond what it held last",
        ),
        pytest.param(
            seen(paused(gib=10), reserved={GPU: 30 * GIB}), Phase.AWAY, {GPU: 30 * GIB}, id="what is kept for it counts, if more"
        ),
        pytest.param(seen(entry(), resident=HELD, reserved={GPU: 30 * GIB}), Phase.LEAVING, HELD, id="but not while it leaves"),
    ],
)  # fmt: skip
def test_how_much_it_holds_or_needs(what: Seen, phase: Phase, sizes: Mapping[GpuUuid, int]) -> None:
    assert bytes_of(what, phase, [GPU, OTHER_GPU]) == sizes


# -- whether it shall run by itself --------------------------------------------------------------------------------------

MONDAY_NOON = datetime(2025, 1, 6, 12, tzinfo=UTC).timestamp()
BY_NIGHT = parse_schedule(["22:00-06:00"], zone="UTC")


@pytest.mark.parametrize(
    ("what", "auto_resume", "runs"),
    [
        pytest.param(seen(served=model()), True, False, id="a model waits for a request"),
        pytest.param(seen(served=model(eager=True), never_ready=True), True, True, id="an eager one doesn't"),
        pytest.param(seen(served=model(eager=True)), True, False, id="but only once"),
        pytest.param(seen(served=model(), requested=True), True, True, id="a person ordered it"),
        pytest.param(
            seen(served=model(eager=True), never_ready=True, stopped=True), True, False, id="a person stopped it"
        ),
        pytest.param(seen(served=job(), stopped=True, requested=True), True, True, id="the later order counts"),
        pytest.param(seen(served=job()), True, True, id="a job has work"),
        pytest.param(seen(served=job(), stats=Stats(done=True, fingerprint="f")), True, False, id="a job that is done"),
        pytest.param(seen(served=job(), stats=Stats(done=True, fingerprint="g")), True, True, id="another program"),
        pytest.param(seen(served=job(schedule=BY_NIGHT)), True, False, id="outside its hours"),
        pytest.param(seen(entry()), True, True, id="somebody's workload that runs goes on"),
        pytest.param(seen(entry(state=S.EXITED)), True, False, id="one that ended doesn't come back"),
        pytest.param(seen(paused(paused_by=ARBITER)), True, True, id="what the arbiter paused comes back"),
        pytest.param(seen(paused(paused_by=ARBITER)), False, False, id="unless that is switched off"),
        pytest.param(seen(paused(paused_by=USER)), True, False, id="what a person paused stays"),
        pytest.param(seen(), True, False, id="nobody knows it"),
    ],
)
def test_who_shall_run_unasked(what: Seen, *, auto_resume: bool, runs: bool) -> None:
    assert wanted(what, auto_resume=auto_resume, now=MONDAY_NOON) is runs


def test_a_job_outside_its_hours_says_when_it_will_be_wanted() -> None:
    what = seen(served=job(schedule=BY_NIGHT))
    assert member(what, now=MONDAY_NOON).wanted_at == MONDAY_NOON + 10 * 3600
    assert member(what, now=MONDAY_NOON + 11 * 3600).wanted_at is None, "it is now"
    done = seen(served=job(schedule=BY_NIGHT), stats=Stats(done=True, fingerprint="f"))
    assert member(done, now=MONDAY_NOON).wanted_at is None
    assert member(seen(served=model()), now=MONDAY_NOON).wanted_at is None


def test_a_job_that_lives_has_work_whatever_is_remembered_of_it() -> None:
    done = Stats(done=True, fingerprint="f")
    assert work_left(seen(entry(), job(), stats=done))
    assert not work_left(seen(entry(state=S.EXITED), job(), stats=done))


# -- whether it may be touched -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "pausable", "settling"),
    [
        pytest.param(seen(entry()), True, False, id="one that runs"),
        pytest.param(seen(entry(), worked_on=True), False, True, id="somebody works on it just now"),
        pytest.param(seen(entry(), refused_until=NOW + 1), False, True, id="it refused lately"),
        pytest.param(seen(entry(), refused_until=NOW), True, False, id="that is over"),
        pytest.param(
            seen(entry(), refused_until=FOREVER), False, False, id="it can't be paused at all: not worth waiting"
        ),
        pytest.param(seen(entry(), back_off_until=NOW + 1), False, True, id="it failed to leave lately"),
        pytest.param(seen(entry(external=True)), False, False, id="not ours"),
    ],
)
def test_who_may_be_paused_now_or_soon(what: Seen, *, pausable: bool, settling: bool) -> None:
    found = member(what)
    assert (found.pausable, found.settling) == (pausable, settling)


@pytest.mark.parametrize(
    ("what", "pinned"),
    [
        pytest.param(seen(entry()), False, id="one that runs"),
        pytest.param(seen(entry(external=True)), True, id="not ours"),
        pytest.param(seen(paused(paused_by=USER)), True, id="a person paused it"),
        pytest.param(seen(paused(paused_by=USER), requested=True), False, id="and then ordered its resume"),
        pytest.param(seen(paused(paused_by=RECOVERY)), True, id="its recovery is tried by itself"),
        pytest.param(seen(paused(paused_by=ARBITER)), False, id="the arbiter paused it"),
        pytest.param(seen(paused(paused_by=ARBITER), back_off_until=NOW + 1), True, id="it failed to come lately"),
        pytest.param(seen(served=model(), stopped=True), True, id="a person stopped it"),
        pytest.param(seen(entry(), model(), stopped=True), False, id="what runs isn't held"),
        pytest.param(seen(entry(state=S.LOST), model(cold_start=False)), True, id="lost, and not to be started anew"),
        pytest.param(seen(entry(state=S.LOST), model(cold_start=True)), False, id="lost, and started anew"),
        pytest.param(seen(), False, id="never started"),
    ],
)
def test_who_stays_as_it_is(what: Seen, *, pinned: bool) -> None:
    assert member(what).pinned is pinned


# -- the rest ------------------------------------------------------------------------------------------------------------


def test_demand_is_handed_on_and_a_request_counts_as_use() -> None:
    demand = Demand(waiting=3, oldest_wait=NOW - 2, in_flight=1, service_s=1.5, last_use=NOW - 1)
    found = member(seen(entry(running_since=NOW - 9), model(priority=4, idle_s=60.0), demand=demand))
    assert (found.waiting, found.oldest_wait, found.in_flight, found.service_s) == (3, NOW - 2, 1, 1.5)
    assert (found.klass, found.priority, found.idle_s, found.last_use) == (Class.INTERACTIVE, 4, 60.0, NOW - 1)


def test_a_model_that_has_just_come_was_used_then_and_a_job_whenever_it_came() -> None:
    stale = Demand(last_use=NOW - 500)
    assert member(seen(entry(running_since=NOW - 9), model(), demand=stale)).last_use == NOW - 9
    assert member(seen(entry(running_since=NOW - 9), job(), demand=Demand(last_use=NOW))).last_use == NOW - 9
    assert member(seen(served=job())).last_use == 0.0


def test_what_nobody_named_is_batch_work_without_a_rank_and_goes_never_by_itself() -> None:
    found = member(seen(entry()))
    assert (found.klass, found.priority, found.idle_s) == (Class.BATCH, 0, None)


def test_since_when_is_the_actions_word_before_the_ledgers() -> None:
    assert member(seen(entry())).since == NOW - 100
    assert member(seen(entry(), acting=LEAVING)).since == NOW - 1
    assert member(seen()).since == 0.0


def test_its_tier_is_said_only_while_it_is_away() -> None:
    assert member(seen(paused(tier=TierName.NVME), prefetched=True)).tier is TierName.NVME
    assert member(seen(changed(entry(), tier=TierName.NVME))).tier is None


@pytest.mark.parametrize(
    ("what", "place"),
    [
        pytest.param(seen(entry()), TierName.RAM, id="resident: it would go to RAM and come from there"),
        pytest.param(seen(paused(tier=TierName.NVME)), TierName.NVME, id="from where it lies"),
        pytest.param(seen(changed(paused(tier=TierName.OBJECT), state=S.RESUMING)), TierName.OBJECT, id="on its way"),
        pytest.param(seen(), None, id="a cold start"),
        pytest.param(seen(entry(state=S.EXITED, tier=TierName.NVME)), None, id="an end leaves nothing to come from"),
    ],
)
def test_what_its_coming_costs_goes_by_where_it_comes_from(what: Seen, place: TierName | None) -> None:
    costs = Costs()
    for number, each in enumerate([*TierName, None]):
        costs = costs.observed(A, Direction.COME, each, seconds=number + 1.0)
    assert member(what, costs=costs).cost.come == costs.estimate(A, Direction.COME, place, size=0)


def test_a_job_that_was_paused_in_an_allocation_needs_back_what_it_asked_for_too() -> None:
    """And all that is said for it, while it runs as well."""
    gpu, name = GpuUuid("GPU-0"), WorkloadName("job")
    away = Entry(
        name=name,
        state=WorkloadState.PAUSED,
        since=0.0,
        backend=Backend.BROKER,
        last_use=0.0,
        paused_by=ARBITER,
        evicted={gpu: 40 * GIB},
    )

    def needs(entry: Entry, **known: object) -> int:
        seen = Seen(name=name, entry=entry, served=None, **known)  # type: ignore[arg-type]
        return member_of(seen, costs=Costs(), gpus=[gpu], auto_resume=True, now=1.0).bytes[gpu]

    assert needs(away) == 40 * GIB
    assert needs(away, wanted={gpu: 10 * GIB}) == 50 * GIB
    assert needs(away, wanted={gpu: 10 * GIB}, reserved={gpu: 70 * GIB}) == 70 * GIB
    runs = replace(away, state=WorkloadState.RUNNING, evicted={})
    assert needs(runs, resident={gpu: 30 * GIB}, reserved={gpu: 70 * GIB}) == 70 * GIB


def test_what_a_person_stopped_is_neither_wanted_nor_brought() -> None:
    name = WorkloadName("j")
    served = served_of(parse("jobs: {j: {command: 'true'}}", origin="here"))[name]
    for held in (False, True):
        seen = Seen(name=name, entry=None, served=served, stopped=held)
        member = member_of(seen, costs=Costs(), gpus=[], auto_resume=True, now=0.0)
        assert (member.wanted, member.pinned) == (not held, held)
    asked = member_of(replace(seen, stopped=False, requested=True), costs=Costs(), gpus=[], auto_resume=True, now=0.0)
    assert (asked.wanted, asked.pinned) == (True, False)
