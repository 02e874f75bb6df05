"""Why a model or job stands where it stands: one reason, the one that a person can act on."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.agent.building import entry, paused
from tests.agent.serving.building import job, model

from kybernate.agent.records.ledger import Entry
from kybernate.agent.serving.status_text import Failed, again_at, failing, standing, unstarted
from kybernate.agent.serving.workload_stats import Stats
from kybernate.model.types import EndedBy, WorkloadName, WorkloadState
from kybernate.policy.schedule import parse_schedule
from kybernate.settings.specs import Served

pytestmark = pytest.mark.unit

NOON = datetime(2025, 1, 6, 12, tzinfo=UTC).timestamp()
"""A Monday."""


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Times of day are the machine's own."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def ended(**given: Any) -> Entry:
    return entry("a", WorkloadState.EXITED, **({"since": NOON - 60} | given))


def said(served: Served, one: Entry | None, **given: Any) -> str:
    defaults: dict[str, Any] = {
        "stats": Stats(fingerprint="f"),
        "planned": "",
        "refused": "",
        "failed": None,
        "now": NOON,
    }
    return standing(served, one, **(defaults | given))


# -- nothing to say ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("served", "one"),
    [
        pytest.param(model(), None, id="a model that was never asked for"),
        pytest.param(model(), entry(), id="one that runs"),
        pytest.param(model(), paused(), id="one that is away"),
        pytest.param(model(), ended(ended_by=EndedBy.ITSELF), id="one that ended and did not fail"),
        pytest.param(job(), entry("j"), id="a job that runs"),
        pytest.param(job(), None, id="a job that is about to be started"),
    ],
)
def test_where_all_is_as_it_should_be_nothing_is_said(served: Served, one: Entry | None) -> None:
    assert said(served, one) == ""


# -- failures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("served", "how"),
    [
        pytest.param(model(), "a request starts it again from 12:00:30 on", id="a model"),
        pytest.param(job(), "starts again at 12:00:30", id="a job"),
    ],
)
def test_a_failure_says_when_it_starts_again(served: Served, how: str) -> None:
    failed = Failed(NOON - 30, "ended with status 1", until=NOON + 30)
    assert said(served, ended(), failed=failed, planned="waits") == f"ended with status 1; {how}"


def test_a_failure_whose_time_is_over_is_still_the_reason_but_for_what_the_policy_says() -> None:
    failed = Failed(NOON - 30, "ended with status 1", until=NOON - 1)
    assert said(model(), ended(), failed=failed) == "ended with status 1"
    assert said(model(), ended(), failed=failed, planned="needs 3 GiB more") == "needs 3 GiB more"


def test_a_failure_before_its_last_life_is_no_reason() -> None:
    failed = Failed(NOON - 100, "ended with status 1", until=NOON + 30)
    assert not failing(ended(since=NOON - 60), failed)
    assert said(model(), ended(since=NOON - 60), failed=failed) == ""


@pytest.mark.parametrize(
    ("one", "failed", "is_failing"),
    [
        pytest.param(None, None, False, id="never failed"),
        pytest.param(None, Failed(NOON, "no"), True, id="could never be started"),
        pytest.param(entry(), Failed(NOON, "no"), False, id="it runs"),
        pytest.param(ended(), Failed(NOON - 60, "no"), True, id="it failed at the moment of its end"),
        pytest.param(ended(), None, False, id="it ended and did not fail"),
    ],
)
def test_who_is_failing(one: Entry | None, failed: Failed | None, *, is_failing: bool) -> None:
    assert failing(one, failed) is is_failing


@pytest.mark.parametrize(
    ("until", "done", "when"),
    [
        pytest.param(NOON + 5, False, NOON + 5, id="it is left alone until then"),
        pytest.param(NOON, False, None, id="the time is over: now"),
        pytest.param(NOON + 5, True, None, id="a job that is done isn't started again"),
    ],
)
def test_when_it_starts_again(until: float, when: float | None, *, done: bool) -> None:
    failed = Failed(NOON - 1, "no", until=until)
    assert again_at(None, stats=Stats(done=done), failed=failed, now=NOON) == when


# -- what the policy and the workers say ---------------------------------------------------------------------------------


def test_what_the_policy_says_comes_before_what_requests_are_answered() -> None:
    assert said(model(), paused(), planned="b answers", refused="no room") == "b answers"
    assert said(model(), paused(), refused="no room") == "no room"


# -- jobs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "how"),
    [
        pytest.param(ended(exit_status=0), "ended with status 0", id="with its status"),
        pytest.param(ended(exit_status=137), "ended with status 137", id="by a signal, as a shell says it"),
        pytest.param(ended(), "has ended", id="of which nobody knows how"),
        pytest.param(None, "was stopped", id="that isn't in the ledger any more"),
    ],
)
def test_a_job_that_is_done_says_how_it_ended_and_how_it_is_run_again(one: Entry | None, how: str) -> None:
    assert said(job(), one, stats=Stats(fingerprint="f", done=True)) == f"{how}; `kybernate start j` runs it again"


def test_a_job_whose_program_was_changed_is_not_done() -> None:
    assert said(job(), None, stats=Stats(fingerprint="another", done=True)) == ""


@pytest.mark.parametrize(
    ("windows", "words"),
    [
        pytest.param(["22:00-06:00"], "outside its hours until 22:00", id="today"),
        pytest.param(["sat 08:00-12:00"], "outside its hours until Sat 08:00", id="another day is named"),
        pytest.param(["10:00-14:00"], "", id="inside them"),
    ],
)
def test_a_job_outside_its_hours_says_until_when(windows: list[str], words: str) -> None:
    assert said(job(schedule=parse_schedule(windows, zone="UTC")), None) == words


def test_a_model_that_a_person_stopped_says_what_starts_it() -> None:
    assert said(model(), ended(ended_by=EndedBy.ORDER)) == "stopped by order; its next request starts it"


# -- never started -------------------------------------------------------------------------------------------------------

A, J = WorkloadName("a"), WorkloadName("j")


def test_a_model_that_was_never_started_says_what_starts_it() -> None:
    found = unstarted(A, model(), "", for_good=False)
    assert found.text == "a is a model of the configuration and has not been started yet."
    assert found.next_step == "its first request starts it; `kybernate start a` does so now"
    assert (found.state, found.events) == (None, [])


def test_a_job_is_started_by_no_request() -> None:
    assert unstarted(J, job(), "b uses the GPU", for_good=False).next_step == "`kybernate start j` does so now"
    assert unstarted(J, job(), "b uses the GPU", for_good=False).text.endswith("yet. Now: b uses the GPU.")


def test_what_can_not_be_started_as_things_are_sends_to_the_file() -> None:
    found = unstarted(A, model(), "it needs more than there is", for_good=True)
    assert found.next_step == "mend the file, or what hinders it; then `kybernate reload`"
