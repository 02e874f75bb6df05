"""Why a workload is in its state and what comes next, in the words that a person reads."""

from __future__ import annotations

from typing import Any

import pytest
from tests.agent.building import GPU, NOW, OTHER_GPU, entry, paused, report

from kybernate.agent.api.explain import explain
from kybernate.agent.records.ledger import ARBITER, RECOVERY, USER, Entry
from kybernate.model.api import EventView, ExplainView
from kybernate.model.types import GIB, MIB, Backend, TierName, WorkloadState

pytestmark = pytest.mark.unit

S = WorkloadState


def said(of: Entry, *events: EventView, resident: int = 0, **given: Any) -> ExplainView:
    return explain(of, events=events, resident_bytes=resident, now=NOW, **given)


def event(kind: str, text: str = "", ago: float = 10.0, **data: Any) -> EventView:
    return EventView(id=1, time=NOW - ago, workload="a", kind=kind, text=text, data=data)


def test_a_running_one_says_what_it_holds() -> None:
    found = said(entry(), resident=3 * GIB // 2)
    assert found.text == "a has been running for 1 min 40 s. It holds 1.5 GiB of VRAM in extents."
    assert found.next_step == "`kybernate pause a` gives its VRAM back"
    assert (found.workload, found.state) == ("a", S.RUNNING)


def test_one_that_holds_nothing_says_no_size() -> None:
    assert said(entry()).text.endswith("It holds no VRAM in extents.")


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        pytest.param(Backend.DRIVER, "as its backend says", id="by choice"),
        pytest.param(Backend.BROKER, "by a command that drops LD_PRELOAD", id="by accident"),
    ],
)
def test_vram_without_the_library_is_told_apart_and_its_price_named(backend: Backend, why: str) -> None:
    one = entry(backend=backend, unmanaged={GPU: 512 * MIB, OTHER_GPU: 512 * MIB})
    assert said(one, resident=4 * GIB).text.endswith(
        f"It holds 4.0 GiB of VRAM, 1.0 GiB of that without Kybernate's library, {why}: "
        "it is paused and resumed by the driver's checkpoint alone, which is slow."
    )


def test_the_reason_of_its_state_comes_first() -> None:
    one = paused(reason="paused for b", paused_by=ARBITER)
    assert said(one).text.startswith("a has been paused for 1 min 40 s: paused for b. It needs 10.0 GiB")


def test_a_paused_one_says_what_it_needs_what_the_pause_took_and_what_is_not_free_all_the_same() -> None:
    one = paused(gib={GPU: 10, OTHER_GPU: 2}, last_pause=report(seconds=0.84), held={GPU: 512 * MIB})
    assert said(one).text == (
        "a has been paused for 1 min 40 s. It needs 12.0 GiB of VRAM to go on. The pause took 0.84 s. "
        "512.0 MiB of what it gave up are not free."
    )


def test_an_ended_one_says_since_when_and_what_is_kept_of_it() -> None:
    one = entry(state=S.EXITED, reason="ended with status 1", kept=("a-20", "a-21"))
    assert said(one).text == (
        "a ended 1 min 40 s ago: ended with status 1. Kept of what it was: a-20, a-21; `kybernate clone a-21 NEW` makes "
        "a workload of it, `kybernate stop --remove a` deletes it."
    )


def test_a_clock_that_was_set_back_makes_no_negative_time() -> None:
    assert said(entry(since=NOW + 60)).text.startswith("a has been running for 0.00 s.")


# -- where it lies -------------------------------------------------------------------------------------------------------


def test_below_ram_it_says_where_it_lies_and_what_a_resume_cost_the_last_time() -> None:
    events = [event("parked", bytes_total=GIB), event("restored", seconds=9.0), event("parked", bytes_total=20 * GIB)]
    assert said(paused(tier=TierName.NVME), *events).text.endswith(
        "It lies in nvme (20.0 GiB), no process of it is left: a resume reads it from there; the last time that took 9.00 s."
    ), "the newest parking counts"


def test_numbers_that_nobody_recorded_are_left_out() -> None:
    events = [event("parked", bytes_total="much"), event("restored")]
    assert said(paused(tier=TierName.OBJECT), *events).text.endswith(
        "It lies in object, no process of it is left: a resume reads it from there."
    )


def test_what_is_staged_is_said_to_be_half_way_back() -> None:
    assert said(paused(tier=TierName.NVME), prefetched=True).text.endswith(
        "It lies in nvme; its GPU content is in host memory again, its processes come with the resume."
    )


def test_in_ram_nothing_is_said_of_where_it_lies() -> None:
    assert "It lies in" not in said(paused(), event("parked", bytes_total=GIB)).text


# -- refusals and waiting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pause-refused", "resume-refused", "out-of-memory"])
def test_the_last_refusal_is_told_with_its_age(kind: str) -> None:
    events = [event(kind, "an old one", ago=500), event("paused"), event(kind, "requests are in flight", ago=5)]
    assert said(entry(), *events).text.endswith(" Last refusal, 5.00 s ago: requests are in flight.")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        pytest.param("pause-refused", False, id="what an ended one was refused matters no more"),
        pytest.param("out-of-memory", True, id="but this may be why it ended"),
    ],
)
def test_of_an_ended_one_only_the_refusal_that_may_have_ended_it(kind: str, *, told: bool) -> None:
    assert ("Last refusal" in said(entry(state=S.EXITED), event(kind, "no")).text) is told


def test_why_the_policy_waits_is_said_once() -> None:
    one = paused(reason="paused for b")
    assert said(one, waits_for="b answers").text.endswith(" Now: b answers.")
    assert "Now:" not in said(one, waits_for="paused for b").text


def test_the_events_are_handed_on_as_they_are() -> None:
    events = [event("paused"), event("resumed")]
    assert said(entry(), *events).events == events


# -- what can be done ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "is_model", "words"),
    [
        pytest.param(entry(), False, "`kybernate pause a` gives its VRAM back", id="running"),
        pytest.param(
            entry("pid-7", external=True),
            False,
            "`kybernate pause --pid 7` gives its VRAM back",
            id="not ours, running",
        ),
        pytest.param(paused(paused_by=USER), False, "`kybernate resume a` lets it go on", id="by a person"),
        pytest.param(
            paused("pid-7", external=True, paused_by=USER),
            False,
            "`kybernate resume --pid 7` lets it go on",
            id="not ours, paused",
        ),
        pytest.param(
            paused(paused_by=RECOVERY),
            False,
            "it is tried again by itself, and by `kybernate resume a`",
            id="its switch failed",
        ),
        pytest.param(
            paused(paused_by=ARBITER),
            False,
            "it resumes by itself when its VRAM is free; `kybernate resume a` does it now and pauses another",
            id="for another one",
        ),
        pytest.param(
            paused(paused_by=ARBITER),
            True,
            "its next request brings it back; `kybernate resume a` does it now and may pause another",
            id="a model, for another one",
        ),
        pytest.param(
            paused(paused_by=USER, tier=TierName.NVME),
            False,
            "`kybernate resume a` brings it back; `kybernate prefetch a` makes that quicker",
            id="below RAM",
        ),
        pytest.param(
            entry(state=S.EXITED),
            False,
            "`kybernate logs a` shows its output; `kybernate rm a` removes it, a new run takes its place",
            id="ended",
        ),
        pytest.param(
            entry(state=S.EXITED),
            True,
            "`kybernate logs a` shows its output; its next request starts it again",
            id="a model that ended",
        ),
        pytest.param(
            entry(state=S.LOST),
            False,
            "`kybernate events a` shows the step that lost it; `kybernate stop --remove a`, then run it again",
            id="lost",
        ),
        *(
            pytest.param(
                entry(state=state), False, "wait; `kybernate events a -f` shows how it goes on", id=f"while {state}"
            )
            for state in (S.STARTING, S.PAUSING, S.RESUMING, S.STOPPING)
        ),
    ],
)
def test_the_next_step_is_one_that_this_state_allows(one: Entry, *, is_model: bool, words: str) -> None:
    assert said(one, is_model=is_model).next_step == words


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("is_model", [False, True])
def test_every_state_has_a_sentence_and_a_next_step(state: S, *, is_model: bool) -> None:
    found = said(entry(state=state), is_model=is_model)
    assert found.next_step
    assert found.text.endswith(".")
    assert "  " not in found.text
