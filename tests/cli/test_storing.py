"""What the commands about stored state ask, and what they say of each answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.answering import AnsweringAgent, answering

from kybernate.cli.commands import storing
from kybernate.cli.common import Common
from kybernate.model.api import (
    CloneList,
    CloneView,
    CollectedList,
    CollectedView,
    JobView,
    OperationView,
    ProblemView,
    SnapshotList,
    SnapshotView,
    StoredView,
    VerifiedList,
    VerifiedView,
    WorkloadList,
)
from kybernate.model.errors import BadInput
from kybernate.model.types import GIB, TierName, WorkloadState

Read = Any


@pytest.fixture
def agent() -> Iterator[AnsweringAgent]:
    with answering() as made:
        yield made


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Read:
    def read() -> str:
        captured = capsys.readouterr()
        return captured.out + captured.err

    return read


def common(agent: AnsweringAgent, *, json: bool = False) -> Common:
    return Common(json=json, state_dir=agent.state)


def stored(operation: str, **given: Any) -> StoredView:
    defaults: dict[str, Any] = {"subject": "a", "seconds": 2.5, "bytes_total": 10 * GIB, "bytes_stored": GIB}
    return StoredView(operation=operation, **(defaults | given))


# -- snapshot, snapshots, clone ------------------------------------------------------------------------------------------


def test_an_image_is_told_with_what_was_really_written(agent: AnsweringAgent, said: Read) -> None:
    agent.answer(
        "/v1/workloads/a/snapshot",
        stored("snapshot", tier=TierName.NVME, note="it was ready", notes=["no NUMA policy"]),
    )
    storing.snapshot("a", as_="gold", ready_command="curl 'a b'", ready_timeout=7.0, common=common(agent))
    assert said() == (
        "a: image gold in nvme, 10.0 GiB in 2.50 s, 1.0 GiB written; it was ready\nkybernate: a: no NUMA policy\n"
    )
    ((_, path, body),) = agent.asked
    assert path == "/v1/workloads/a/snapshot"
    assert (body["image"], body["ready_command"], body["ready_timeout_s"]) == ("gold", ["curl", "a b"], 7.0)


def test_quotes_that_do_not_close_are_said_before_anything_is_asked(agent: AnsweringAgent) -> None:
    with pytest.raises(BadInput, match="--ready-command: No closing quotation"):
        storing.snapshot("a", as_="gold", ready_command="curl 'a", common=common(agent))
    assert agent.asked == []


def test_what_is_stored_is_a_table_and_tiers_that_do_not_answer_a_remark(agent: AnsweringAgent, said: Read) -> None:
    view = SnapshotView(
        name="gold",
        kind="image",
        workload="a",
        tiers=[TierName.NVME, TierName.OBJECT],
        uid=0,
        created=0.0,
        size_bytes=GIB,
    )
    agent.answer("/v1/snapshots", SnapshotList(snapshots=[view], problems=["object: no route"]))
    storing.snapshots(common=common(agent))
    lines = said().splitlines()
    assert lines[0].split() == ["SNAPSHOT", "KIND", "WORKLOAD", "TIER", "SIZE", "AGE"]
    assert lines[1].startswith("gold      image  a         nvme, object  1.0 GiB")
    assert lines[2] == "kybernate: object: no route"


@pytest.mark.parametrize(
    ("states", "status"),
    [
        pytest.param([WorkloadState.RUNNING, WorkloadState.PAUSED], 0, id="one has to wait for room"),
        pytest.param([WorkloadState.RUNNING, WorkloadState.EXITED], 1, id="one could not be started"),
        pytest.param([WorkloadState.LOST], 1, id="it was lost"),
    ],
)
def test_clones_are_told_one_by_one_and_a_failure_is_an_exit_status(
    agent: AnsweringAgent, said: Read, states: list[WorkloadState], status: int
) -> None:
    clones = [CloneView(workload=f"n-{k}", state=state, seconds=1.5) for k, state in enumerate(states)]
    clones[0] = clones[0].model_copy(update={"note": "b made room"})
    agent.answer("/v1/snapshots/gold/clone", CloneList(image="gold", seconds=2.0, clones=clones))
    assert storing.clone("gold", "n", count=len(states), common=common(agent)) == status
    assert said().splitlines()[0] == f"n-0: {states[0]} after 1.50 s; b made room"


# -- prefetch, move, rm-snapshot -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (stored("prefetch"), "a: 10.0 GiB read into host memory in 2.50 s\n"),
        (stored("prefetch", already=True), "a: is in RAM already\n"),
        (stored("prefetch", already=True, note="runs"), "a: runs\n"),
    ],
)
def test_prefetch(agent: AnsweringAgent, said: Read, view: StoredView, words: str) -> None:
    agent.answer("/v1/workloads/a/prefetch", view)
    assert storing.prefetch("a", common=common(agent)) == 0
    assert said() == words


@pytest.mark.parametrize(
    ("tier", "view", "words"),
    [
        (TierName.OBJECT, stored("move"), "a: lies in object, 10.0 GiB in 2.50 s, 1.0 GiB written\n"),
        (TierName.OBJECT, stored("move", bytes_stored=0), "a: lies in object, 10.0 GiB in 2.50 s\n"),
        (TierName.NVME, stored("move", already=True), "a: lies in nvme already\n"),
        (TierName.RAM, stored("prefetch"), "a: 10.0 GiB read into host memory in 2.50 s\n"),
        (TierName.NVME, stored("move", already=True, notes=["x"]), "a: lies in nvme already\nkybernate: a: x\n"),
    ],
)
def test_move(agent: AnsweringAgent, said: Read, tier: TierName, view: StoredView, words: str) -> None:
    agent.answer("/v1/snapshots/a/move", view)
    assert storing.move("a", tier=tier, keep=True, common=common(agent)) == 0
    assert said() == words
    assert agent.asked[-1][2]["keep"] is True


def test_all_that_lie_elsewhere_are_moved_and_none_is_said(agent: AnsweringAgent, said: Read) -> None:
    agent.answer("/v1/workloads", WorkloadList(workloads=[]))
    assert storing.move(all_=True, tier=TierName.NVME, common=common(agent)) == 0
    assert said() == "there is none\n"


@pytest.mark.parametrize("names", [(), ("a",)])
def test_names_or_all_and_not_both(agent: AnsweringAgent, names: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="give names of workloads, or --all, one of them"):
        storing.prefetch(*names, all_=bool(names), common=common(agent))


def test_one_copy_of_an_image_is_removed(agent: AnsweringAgent, said: Read) -> None:
    agent.answer("/v1/snapshots/gold", stored("remove"))
    storing.rm_snapshot("gold", tier="object", common=common(agent))
    assert said() == "gold: removed\n"
    assert agent.asked == [("DELETE", "/v1/snapshots/gold?tier=object", None)]


# -- verify, gc ----------------------------------------------------------------------------------------------------------


def verified(*problems: ProblemView) -> VerifiedList:
    view = VerifiedView(tier=TierName.NVME, snapshots=2, packs=3, chunks=40, bytes_read=GIB, problems=list(problems))
    return VerifiedList(tiers=[view])


def test_what_is_sound_is_said_to_be_and_is_no_failure(agent: AnsweringAgent, said: Read) -> None:
    agent.answer("/v1/store/verify", verified())
    assert storing.verify("gold", quick=True, common=common(agent)) == 0
    assert said() == "nvme: 2 snapshots, 40 chunks in 3 packs, 1.0 GiB read: sound\n"
    assert agent.asked[-1][2] == {"names": ["gold"], "tier": None, "content": False}


def test_damage_is_told_with_who_suffers_and_is_an_exit_status(agent: AnsweringAgent, said: Read) -> None:
    problems = (
        ProblemView(text="pack x has gone", snapshots=["gold", "a-3"]),
        ProblemView(text="a stray file", snapshots=[]),
    )
    agent.answer("/v1/store/verify", verified(*problems))
    assert storing.verify(common=common(agent)) == 1
    assert said().splitlines() == [
        "nvme: 2 snapshots, 40 chunks in 3 packs, 1.0 GiB read: 2 PROBLEMS",
        "  pack x has gone (can't be restored: gold, a-3)",
        "  a stray file",
    ]
    assert storing.verify(common=common(agent, json=True)) == 1
    assert json.loads(said())[0]["problems"][1]["text"] == "a stray file"


def test_where_nothing_is_stored_both_say_so(agent: AnsweringAgent, said: Read) -> None:
    agent.answer("/v1/store/verify", VerifiedList(tiers=[]))
    agent.answer("/v1/store/gc", CollectedList(tiers=[], dry_run=False))
    assert storing.verify(common=common(agent)) == 0
    storing.gc(common=common(agent))
    assert said() == "nothing is stored\nnothing is stored\n"


@pytest.mark.parametrize(("dry_run", "would"), [(False, ""), (True, "would be ")])
def test_what_gc_freed_or_would_free(agent: AnsweringAgent, said: Read, would: str, *, dry_run: bool) -> None:
    view = CollectedView(
        tier=TierName.OBJECT, packs=9, removed=4, compacted=2, bytes_freed=GIB, left=["pack y is young"]
    )
    agent.answer("/v1/store/gc", CollectedList(tiers=[view], dry_run=dry_run))
    storing.gc(tier="object", dry_run=dry_run, common=common(agent))
    assert said().splitlines() == [
        f"object: 1.0 GiB {would}freed, 4 of 9 packs {would}removed, 2 {would}rewritten",
        "  pack y is young",
    ]
    assert agent.asked[-1][2] == {"tier": "object", "dry_run": dry_run, "accept_loss": False}


# -- how far it is -------------------------------------------------------------------------------------------------------


def job(subject: str = "a", **given: Any) -> JobView:
    return JobView(kind="move", subject=subject, seconds=1.0, **given)


@pytest.mark.unit
def test_several_steps_are_one_and_what_knows_no_bytes_is_left_out() -> None:
    one = job(bytes_done=10, bytes_total=100, bytes_per_s=5.0, seconds_left=18.0)
    other = job(bytes_done=30, bytes_total=60, bytes_per_s=15.0, seconds_left=2.0)
    both = storing.together([one, job(), other])
    assert both is not None
    assert (both.bytes_done, both.bytes_total, both.bytes_per_s, both.seconds_left) == (40, 160, 20.0, 6.0)
    assert storing.together([]) is None
    assert storing.together([job(), one]) == one
    assert storing.together([job("x"), job("y")]) == job("x")


@pytest.mark.unit
@given(
    st.lists(
        st.builds(
            job,
            bytes_done=st.none() | st.integers(0, 100),
            bytes_total=st.none() | st.integers(0, 100),
            bytes_per_s=st.none() | st.floats(0, 100),
        ),
        max_size=5,
    )
)
def test_of_any_steps_together_nothing_is_left_below_nought(jobs: list[OperationView]) -> None:
    found = storing.together(jobs)
    assert found is None or found.seconds_left is None or found.seconds_left >= 0
