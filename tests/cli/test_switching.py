"""pause, resume, stop and rm: what is asked, what is said of it, and whom `--all` means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.answering import AnsweringAgent, answering
from tests.cli.views import workload

from kybernate.cli.commands import ending, switching
from kybernate.cli.common import Common
from kybernate.model.api import StoppedView, SwitchView, WorkloadList
from kybernate.model.errors import BadInput, NotFound
from kybernate.model.types import GIB, Backend, Depth, TierName, WorkloadState


@pytest.fixture
def agent() -> Iterator[AnsweringAgent]:
    with answering() as made:
        yield made


def common(agent: AnsweringAgent, *, json: bool = False) -> Common:
    return Common(json=json, state_dir=agent.state)


def switch(operation: str, name: str = "a", **given: Any) -> SwitchView:
    defaults: dict[str, Any] = {"depth": Depth.ZERO, "backend": Backend.BROKER, "seconds": 0.5}
    return SwitchView(workload=name, operation=operation, **(defaults | given))


def test_a_pause_says_what_it_took_and_what_was_not_copied(
    agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    done = switch("pause", bytes_total=10 * GIB, bytes_copied=6 * GIB, bytes_clean=3 * GIB, bytes_zero=GIB)
    agent.answer("/v1/workloads/a/pause", done)
    assert switching.pause("a", depth=Depth.WARM, timeout=7.0, connections="close", common=common(agent)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("a: paused (zero) in 0.50 s")
    assert "10.0 GiB: 6.0 GiB copied, 3.0 GiB clean, 1.0 GiB zero" in shown
    assert agent.asked[-1][2] == {
        "depth": "warm",
        "timeout_s": 7.0,
        "tier": "ram",
        "connections": "close",
        "allow_changes": None,
    }


def test_what_was_so_already_is_said_by_the_agents_note(
    agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.answer("/v1/workloads/a/resume", switch("resume", already=True, note="runs already"))
    assert switching.resume("a", common=common(agent)) == 0
    assert capsys.readouterr().out == "a: runs already\n"


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(((), {}), id="nobody"),
        pytest.param((("a",), {"all_": True}), id="a name and all"),
        pytest.param((("a",), {"pid": 7}), id="a name and a process"),
        pytest.param(((), {"pid": 7, "all_": True}), id="a process and all"),
    ],
)
def test_names_all_or_a_process_and_one_of_them_only(agent: AnsweringAgent, given: tuple[Any, Any]) -> None:
    names, options = given
    for command in (switching.pause, switching.resume):
        with pytest.raises(BadInput, match="one of them"):
            command(*names, **options, common=common(agent))
    assert agent.asked == []


def test_a_process_of_others_stays_in_ram(agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="stays in RAM"):
        switching.pause(pid=4242, tier=TierName.NVME, common=common(agent))
    agent.answer("/v1/external/pause", switch("pause", "pid-4242", backend=Backend.DRIVER))
    agent.answer("/v1/external/resume", switch("resume", "pid-4242", backend=Backend.DRIVER))
    assert switching.pause(pid=4242, timeout=5.0, common=common(agent)) == 0
    assert switching.resume(pid=4242, common=common(agent)) == 0
    assert [line.split(" in ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "pid-4242: paused (zero)",
        "pid-4242: resumed (zero)",
    ]
    assert [asked[2] for asked in agent.asked] == [{"pid": 4242, "timeout_s": 5.0}, {"pid": 4242}]


WORKLOADS = WorkloadList(
    workloads=[
        workload("runs"),
        workload("in-ram", state=WorkloadState.PAUSED, tier="ram"),
        workload("on-disk", state=WorkloadState.PAUSED, tier="nvme"),
        workload("over", state=WorkloadState.EXITED, tier=None),
        workload("pid-7", external=True),
    ]
)


def asked_of(agent: AnsweringAgent) -> list[str]:
    return [path.split("/")[3] for method, path, _ in agent.asked if method in ("POST", "DELETE")]


@pytest.mark.parametrize(
    ("tier", "meant"),
    [
        pytest.param(TierName.RAM, ["runs"], id="those that hold VRAM"),
        pytest.param(TierName.NVME, ["runs", "in-ram"], id="and those in a faster tier"),
        pytest.param(TierName.OBJECT, ["runs", "in-ram", "on-disk"], id="down to the bucket"),
    ],
)
def test_whom_a_pause_of_all_means(agent: AnsweringAgent, tier: TierName, meant: list[str]) -> None:
    agent.answer("/v1/workloads", WORKLOADS)
    assert switching.pause(all_=True, tier=tier, common=common(agent)) == NotFound.exit_status, "nobody answered so"
    assert asked_of(agent) == meant


def test_of_several_each_is_told_and_who_had_to_leave_again_at_the_end(
    agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.answer("/v1/workloads", WORKLOADS)
    for name in ("in-ram", "on-disk"):
        agent.answer(f"/v1/workloads/{name}/resume", switch("resume", name))
    assert switching.resume(all_=True, common=common(agent)) == 0
    captured = capsys.readouterr()
    assert [line.split(":")[0] for line in captured.out.splitlines()] == ["in-ram", "on-disk"]
    assert captured.err == "kybernate: not all of them fit into VRAM: in-ram, on-disk paused again\n"


def test_one_that_fails_is_said_with_its_name_and_the_others_go_on(
    agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.answer("/v1/workloads/b/pause", switch("pause", "b"))
    assert switching.pause("a", "b", "a", common=common(agent)) == NotFound.exit_status
    captured = capsys.readouterr()
    assert captured.err == "kybernate: a: nobody knows that\n"
    assert captured.out.startswith("b: paused")
    switching.pause("a", "b", common=common(agent, json=True))
    first, second = json.loads(capsys.readouterr().out)
    assert first == {"workload": "a", "code": "not_found", "message": "nobody knows that", "hint": None}
    assert second["workload"] == "b"


def test_alone_an_error_is_raised(agent: AnsweringAgent) -> None:
    with pytest.raises(NotFound):
        switching.resume("a", common=common(agent))


# -- ends ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "lines"),
    [
        (StoppedView(workload="a", exit_status=None, removed=False), ["a: stopped"]),
        (StoppedView(workload="a", exit_status=143, removed=True), ["a: removed, exit status 143"]),
        (
            StoppedView(workload="a", exit_status=None, removed=False, stays=TierName.NVME),
            ["a: lies in nvme and stays there"],
        ),
        (
            StoppedView(workload="a", exit_status=137, removed=False, note="it had no VRAM to save its work"),
            ["a: stopped, exit status 137", "a: it had no VRAM to save its work"],
        ),
    ],
)
def test_what_is_said_of_an_end(
    agent: AnsweringAgent, capsys: pytest.CaptureFixture[str], view: StoppedView, lines: list[str]
) -> None:
    agent.answer("/v1/workloads/a/stop", view)
    assert ending.stop("a", grace=3.0, common=common(agent)) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert agent.asked[-1][2] == {"grace_s": 3.0, "remove": False}


def test_whom_stop_and_rm_of_all_mean(agent: AnsweringAgent) -> None:
    agent.answer("/v1/workloads", WORKLOADS)
    ending.stop(all_=True, common=common(agent))
    assert sorted(asked_of(agent)) == ["in-ram", "on-disk", "runs"], "not what has ended, nor what isn't ours"
    agent.asked.clear()
    ending.rm(all_=True, common=common(agent))
    assert asked_of(agent) == ["over"]


def test_rm_says_what_it_removed(agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]) -> None:
    agent.answer("/v1/workloads/a", StoppedView(workload="a", exit_status=0, removed=True))
    assert ending.rm("a", common=common(agent)) == 0
    assert capsys.readouterr().out == "a: removed\n"
