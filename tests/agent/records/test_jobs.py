"""The store's long steps under way: how far, how fast, and who may stop which."""

from __future__ import annotations

import contextlib

import pytest

from kybernate.agent.records.jobs import Job, Jobs
from kybernate.model.errors import Cancelled
from kybernate.model.progress import Progress

pytestmark = pytest.mark.unit


def part(what: str, done: int, total: int | None, seconds: float = 2.0) -> Progress:
    return Progress(what, done, total, stored=0, seconds=seconds)


def stopped(job: Job) -> bool:
    try:
        job.stop.check("it")
    except Cancelled:
        return True
    return False


def test_before_the_first_byte_only_its_name_and_age_are_known() -> None:
    view = Job("park", "a").view()
    assert (view.kind, view.subject, view.step, view.bytes_done, view.bytes_total) == ("park", "a", None, None, None)
    assert 0 <= view.seconds < 60


def test_parts_that_go_on_side_by_side_are_one_number() -> None:
    job = Job("move", "a")
    job.tell(part("reading", 100, 400, seconds=1.0))
    job.tell(part("writing", 60, 600, seconds=2.0))
    view = job.view()
    assert (view.step, view.bytes_done, view.bytes_total) == ("reading and writing", 160, 1000)
    assert view.bytes_per_s == 80.0, "since the longest of them began"
    assert view.seconds_left == 840 / 80


def test_the_newest_word_of_a_part_replaces_the_one_before() -> None:
    job = Job("park", "a")
    job.tell(part("writing", 10, 100))
    job.tell(part("writing", 30, 100))
    assert job.view().bytes_done == 30


def test_a_total_that_one_part_does_not_know_is_not_known() -> None:
    job = Job("move", "a")
    job.tell(part("reading", 10, 100))
    job.tell(part("writing", 10, None))
    view = job.view()
    assert (view.bytes_done, view.bytes_total, view.seconds_left) == (20, None, None)


def test_before_a_byte_is_done_there_is_no_rate_to_guess_by() -> None:
    job = Job("park", "a")
    job.tell(part("writing", 0, 100))
    assert (job.view().bytes_per_s, job.view().seconds_left) == (0.0, None)


def test_more_than_was_expected_leaves_nothing_to_wait_for() -> None:
    job = Job("park", "a")
    job.tell(part("writing", 120, 100))
    assert job.view().seconds_left == 0


def test_a_step_is_listed_while_it_is_under_way_even_if_it_fails() -> None:
    jobs = Jobs()
    with contextlib.suppress(RuntimeError), jobs.begin("park", "a"):
        assert [view.kind for view in jobs.views()] == ["park"]
        raise RuntimeError
    assert jobs.views() == []


def test_of_two_about_one_subject_the_newest_is_shown() -> None:
    jobs = Jobs()
    with jobs.begin("stage", "a") as old, jobs.begin("move", "a") as new, jobs.begin("park", "b"):
        assert jobs.of("a") is new
        assert jobs.of("a") is not old
    assert jobs.of("a") is None


def test_an_order_makes_only_the_agents_own_idea_about_its_subject_give_way() -> None:
    jobs = Jobs()
    with (
        jobs.begin("stage", "a", yielding=True) as own,
        jobs.begin("park", "a") as ordered,
        jobs.begin("stage", "b", yielding=True) as elsewhere,
    ):
        jobs.make_way("a")
        assert [stopped(job) for job in (own, ordered, elsewhere)] == [True, False, False]


def test_what_a_person_asked_for_is_never_needless() -> None:
    jobs = Jobs()
    with (
        jobs.begin("stage", "a") as own,
        jobs.begin("stage", "a", by_person=True) as asked,
        jobs.begin("park", "a") as other,
    ):
        jobs.cancel("stage", "a")
        assert [stopped(job) for job in (own, asked, other)] == [True, False, False]


def test_an_agent_that_goes_down_stops_everything() -> None:
    jobs = Jobs()
    with jobs.begin("stage", "a", by_person=True) as one, jobs.begin("park", "b") as two:
        jobs.cancel_all()
        assert stopped(one)
        assert stopped(two)
