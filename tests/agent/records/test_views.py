"""What the API says of a workload, a switch and a GPU: which numbers are shown when, and what strangers may see."""

from __future__ import annotations

from typing import Any

import pytest
from tests.agent.building import GPU, NOW, OTHER_GPU, entry, gpu, paused, report

from kybernate.agent.records.ledger import ARBITER, Entry
from kybernate.agent.records.views import for_strangers, gpu_view, program, switch_view, workload_view
from kybernate.model.api import WorkloadView
from kybernate.model.types import GIB, TierName, WorkloadState

pytestmark = pytest.mark.unit

S = WorkloadState


def view(one: Entry, **given: Any) -> WorkloadView:
    defaults: dict[str, Any] = {"resident_bytes": 0, "pids": [], "current": None}
    return workload_view(one, **(defaults | given))


def test_a_switch_is_told_in_full_with_its_steps_in_order() -> None:
    told = switch_view(report(), already=True, note="b made room", tier=TierName.RAM)
    assert (told.bytes_total, told.bytes_copied, told.bytes_clean, told.bytes_zero) == (10 * GIB, 6 * GIB, 3 * GIB, GIB)
    assert [(step.step, step.seconds) for step in told.steps] == [("freeze", 0.1), ("copy", 0.4)]
    assert (told.already, told.note, told.tier, told.bytes_stored) == (True, "b made room", TierName.RAM, 0)


def test_every_fact_of_the_entry_reaches_its_view() -> None:
    one = entry(
        state=S.EXITED,
        reason="ended",
        exit_status=137,
        ended_by="order",
        paused_by=ARBITER,
        image="gold",
        external=True,
    )
    told = view(one, resident_bytes=5, pids=[7, 8])
    assert (told.name, told.state, told.reason, told.since, told.uid) == ("a", S.EXITED, "ended", NOW - 100, 1000)
    assert (told.exit_status, told.ended_by, told.paused_by, told.image, told.external) == (
        137,
        "order",
        ARBITER,
        "gold",
        True,
    )
    assert (told.resident_bytes, told.pids, told.argv, told.directory) == (5, [7, 8], list(one.argv), "/srv")


@pytest.mark.parametrize(
    ("one", "tier"),
    [
        pytest.param(entry(), "vram", id="running"),
        pytest.param(entry(state=S.PAUSING), "vram", id="on its way out it still counts as there"),
        pytest.param(paused(), "ram", id="paused"),
        pytest.param(paused(tier=TierName.OBJECT), "object", id="parked"),
        pytest.param(entry(state=S.EXITED, tier=TierName.NVME), None, id="ended"),
        pytest.param(entry(state=S.LOST), None, id="lost"),
    ],
)
def test_where_it_lies(one: Entry, tier: str | None) -> None:
    assert view(one).tier == tier


@pytest.mark.parametrize(
    ("one", "staged", "host_copy"),
    [
        pytest.param(paused(last_pause=report()), False, 9 * GIB, id="in RAM: all but its zeros"),
        pytest.param(entry(last_pause=report()), False, 9 * GIB, id="running, with its copy left"),
        pytest.param(paused(tier=TierName.NVME, last_pause=report()), False, 0, id="below RAM"),
        pytest.param(paused(tier=TierName.NVME, last_pause=report()), True, 9 * GIB, id="below RAM, staged"),
        pytest.param(entry(state=S.EXITED, last_pause=report()), False, 0, id="ended"),
        pytest.param(paused(), False, 0, id="never paused by this agent"),
    ],
)
def test_what_lies_in_host_memory(one: Entry, *, staged: bool, host_copy: int) -> None:
    assert view(one, staged=staged).host_copy_bytes == host_copy


def test_a_snapshot_is_named_only_where_it_is_the_state() -> None:
    assert view(paused(tier=TierName.NVME, snapshot="a-3")).snapshot == "a-3"
    assert view(paused(snapshot="a-3")).snapshot is None


def test_sizes_are_sums_over_gpus_and_an_ended_one_holds_nothing() -> None:
    sizes = {GPU: 3, OTHER_GPU: 4}
    told = view(paused(held=sizes, unmanaged=sizes, last_pause=report()))
    assert (told.held_bytes, told.unmanaged_bytes, told.dirty_bytes) == (7, 7, 6 * GIB)
    assert view(entry(state=S.EXITED, unmanaged=sizes)).unmanaged_bytes == 0


def test_the_last_switches_are_shown_where_there_were_any() -> None:
    told = view(paused(last_pause=report("pause", 0.5), last_resume=report("resume", 0.7)))
    assert told.last_pause is not None
    assert told.last_resume is not None
    assert (told.last_pause.operation, told.last_pause.seconds) == ("pause", 0.5)
    assert (told.last_resume.operation, told.last_resume.seconds) == ("resume", 0.7)
    assert (view(entry()).last_pause, view(entry()).last_resume, view(entry()).operation) == (None, None, None)


# -- what strangers see --------------------------------------------------------------------------------------------------


def test_strangers_see_the_program_and_neither_its_arguments_nor_its_directory() -> None:
    told = for_strangers(view(entry()))
    assert (told.argv, told.directory) == (["python3"], "")
    assert "secret" not in told.model_dump_json()
    assert told.name == "a"


def test_of_a_process_whose_command_nobody_knows_there_is_nothing_to_hide() -> None:
    assert for_strangers(view(entry(argv=()))).argv == []


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/usr/bin/python3", "-c", "x"], "python3"),
        (["vllm"], "vllm"),
        (["./serve"], "serve"),
        (["x" * 5000], "x" * 100),
    ],
)
def test_a_program_is_called_by_its_file_without_arguments_and_short(argv: list[str], name: str) -> None:
    assert program(argv) == name


# -- GPUs ----------------------------------------------------------------------------------------------------------------


def test_a_gpu_is_told_with_what_is_free_handed_out_and_held() -> None:
    one = gpu(total=100 * GIB, free=30 * GIB, index=3)
    told = gpu_view(one, limit_bytes=80 * GIB, resident_bytes=60 * GIB)
    assert (told.index, told.uuid, told.name, told.simulated) == (3, GPU, "NVIDIA H200", False)
    assert (told.total_bytes, told.free_bytes, told.limit_bytes, told.resident_bytes) == (
        100 * GIB,
        30 * GIB,
        80 * GIB,
        60 * GIB,
    )
