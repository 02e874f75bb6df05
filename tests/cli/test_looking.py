"""ps, events, explain: what a row, a header and an event look like, and what commands print of an agent's answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.answering import AnsweringAgent, answering
from tests.cli.views import workload

from kybernate.cli.commands.looking import COLUMNS, event_line, events, explain, header, logs, ps, row
from kybernate.cli.common import Common
from kybernate.model.api import (
    EventList,
    EventView,
    ExplainView,
    GpuView,
    NodeView,
    OperationView,
    PoolView,
    SwitchView,
    TierView,
    WorkloadList,
    WorkloadView,
)
from kybernate.model.api_serving import ServingView, StagingView
from kybernate.model.types import GIB, Backend, Depth, TierName, WorkloadState

NODE = NodeView(
    version="1.2",
    pid=77,
    started=0.0,
    state_directory="/run/k",
    simulated=False,
    driver_version=None,
    gpus=[],
    pool=None,
    notes=[],
    workloads={},
)


def node(**given: Any) -> NodeView:
    return NODE.model_copy(update=given)


def cells(one: WorkloadView, **given: Any) -> dict[str, str]:
    return dict(zip(COLUMNS, row(one, **given), strict=True))


# -- a row ---------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_one_that_runs() -> None:
    found = cells(workload())
    assert found == {
        "NAME": "a",
        "STATE": "running",
        "TIER": "vram",
        "DEPTH": "-",
        "BACKEND": "broker",
        "VRAM": "3.0 GiB",
        "HOST COPY": "0 B",
        "FOR": "1 min 5 s",
        "PAUSE": "-",
        "RESUME": "-",
        "EXIT": "-",
        "COMMAND": "python serve.py",
    }


@pytest.mark.unit
@pytest.mark.parametrize(
    ("given", "state"),
    [
        pytest.param(
            {"state": WorkloadState.PAUSING, "operation": OperationView(kind="pause", seconds=1.26)},
            "pausing (1.3 s)",
            id="under way",
        ),
        pytest.param(
            {
                "state": WorkloadState.RESUMING,
                "operation": OperationView(kind="resume", seconds=2.0, bytes_done=1, bytes_total=3),
            },
            "resuming (2.0 s, 33 %)",
            id="with what has moved",
        ),
        pytest.param({"operation": OperationView(kind="look", seconds=2.0)}, "running", id="what can't be seen of it"),
        pytest.param(
            {
                "state": WorkloadState.PAUSED,
                "operation": OperationView(kind="stage", seconds=2.0, bytes_done=0, bytes_total=5),
            },
            "paused (2.0 s, 0 %)",
            id="a long step of one that stands still",
        ),
    ],
)
def test_what_is_being_done_to_it_stands_beside_its_state(given: dict[str, Any], state: str) -> None:
    assert cells(workload(**given))["STATE"] == state


@pytest.mark.unit
def test_one_that_ended_says_when_it_starts_again() -> None:
    ended = workload(state=WorkloadState.EXITED, exit_status=137, tier=None)
    assert cells(ended, again_at=time.time() + 30.2)["STATE"] == "exited (again in 30 s)"
    assert cells(ended, again_at=time.time() - 5)["STATE"] == "exited (again in 0 s)"
    assert cells(ended)["EXIT"] == "137"
    assert cells(ended)["TIER"] == "-"
    assert cells(workload(), again_at=time.time() + 30)["STATE"] == "running"


@pytest.mark.unit
def test_what_stands_out_of_a_workload() -> None:
    switch = SwitchView(workload="a", operation="pause", depth=Depth.ZERO, backend=Backend.BROKER, seconds=0.847)
    assert cells(workload(tier="nvme", staged=True))["TIER"] == "nvme (staged)"
    assert cells(workload(unmanaged_bytes=1))["BACKEND"] == "no library"
    assert cells(workload(unmanaged_bytes=1, backend=Backend.DRIVER))["BACKEND"] == "driver", "by choice"
    assert cells(workload(last_pause=switch))["PAUSE"] == "0.85 s"
    assert len(cells(workload(argv=["x" * 500]))["COMMAND"]) == 60


# -- the node ------------------------------------------------------------------------------------------------------------

GPU = GpuView(
    index=0,
    uuid="GPU-0",
    name="NVIDIA H200",
    total_bytes=100 * GIB,
    free_bytes=40 * GIB,
    limit_bytes=98 * GIB,
    resident_bytes=50 * GIB,
    simulated=False,
)


@pytest.mark.unit
def test_the_header_says_what_there_is_of_each_kind_of_memory() -> None:
    tiers = [
        TierView(tier=TierName.NVME, where="/x", state="ready", used_bytes=GIB, snapshots=2),
        TierView(tier=TierName.OBJECT, where="s3://x", state="away", problem="no route"),
    ]
    pool = PoolView(size_bytes=8 * GIB, ready_bytes=2 * GIB, free_bytes=GIB)
    assert header(node(gpus=[GPU], pool=pool, tiers=tiers)) == [
        "agent 1.2, pid 77",
        "GPU 0 NVIDIA H200: 50.0 GiB in workloads, 40.0 GiB of 100.0 GiB free",
        "host pool: 1.0 GiB of 8.0 GiB free, 2.0 GiB made so far",
        "tier nvme: 1.0 GiB, snapshots: 2",
        "tier object can't be used: no route",
    ]


@pytest.mark.unit
def test_a_node_without_a_gpu_says_so_and_unused_tiers_say_nothing() -> None:
    unused = TierView(tier=TierName.NVME, where="/x", state="unused")
    full = PoolView(size_bytes=GIB, ready_bytes=GIB, free_bytes=GIB)
    assert header(node(tiers=[unused], pool=full)) == [
        "agent 1.2, pid 77",
        "no GPU: plain processes only",
        "host pool: 1.0 GiB of 1.0 GiB free",
    ]
    assert "(simulated)" in header(node(gpus=[GPU.model_copy(update={"simulated": True})]))[1]


EVENT = EventView(id=1, time=1_764_000_000.0675, workload="a", kind="paused", text="paused in 0.84 s")


@pytest.mark.unit
def test_an_event_is_a_line_with_its_time_to_the_millisecond() -> None:
    clock = time.strftime("%H:%M:%S", time.localtime(EVENT.time))
    assert event_line(EVENT) == f"{clock}.067  a  paused in 0.84 s"
    of_the_node = EVENT.model_copy(update={"workload": None, "kind": "started", "text": "1.2"})
    assert event_line(of_the_node) == f"{clock}.067  -  started: 1.2"


# -- commands ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def agent() -> Iterator[AnsweringAgent]:
    with answering() as made:
        yield made


def common(agent: AnsweringAgent, *, json: bool = False) -> Common:
    return Common(json=json, state_dir=agent.state)


def ready_for_ps(agent: AnsweringAgent, *workloads: WorkloadView, **given: Any) -> None:
    serving = ServingView(
        time=0.0,
        listen=None,
        policy="balanced",
        served=[],
        classes=[],
        workers=[],
        staging=StagingView(budget_bytes=0, used_bytes=0, hits=0, misses=0),
        notes=[],
    )
    agent.answer("/v1/node", node(**given))
    agent.answer("/v1/workloads", WorkloadList(workloads=list(workloads)))
    agent.answer("/v1/serving", serving)


def test_ps_in_a_pipe_is_a_header_and_a_table(agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]) -> None:
    ready_for_ps(agent, workload("evil", argv=["x\x1b[2J\ny"]), without_library=["evil"])
    ps(common=common(agent))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "agent 1.2, pid 77 | no GPU: plain processes only"
    assert lines[1].split()[:3] == ["NAME", "STATE", "TIER"]
    assert lines[2].startswith("evil")
    assert lines[2].endswith("x·[2J·y")
    assert lines[3].startswith("evil uses the GPU without Kybernate's library")
    assert len(lines) == 4


def test_ps_as_json_is_all_that_the_agent_said(agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]) -> None:
    ready_for_ps(agent, workload())
    ps(common=common(agent, json=True))
    found = json.loads(capsys.readouterr().out)
    assert (found["node"]["version"], [each["name"] for each in found["workloads"]]) == ("1.2", ["a"])


def test_events_of_one_and_of_all(agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]) -> None:
    listed = EventList(events=[EVENT, EVENT.model_copy(update={"text": "paused\nand more"})])
    agent.answer("/v1/workloads/a/events", listed)
    events("a", count=2, common=common(agent))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[2] for line in lines] == ["a  paused in 0.84 s", "a  paused: paused·and more"]
    assert agent.asked == [("GET", "/v1/workloads/a/events?count=2&after=0", None)]
    agent.answer("/v1/events", EventList(events=[]))
    events(common=common(agent, json=True))
    assert json.loads(capsys.readouterr().out) == []


def test_events_that_are_followed_come_one_by_one(agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]) -> None:
    agent.answers["/v1/events"] = f"event: event\ndata: {EVENT.model_dump_json()}\n\n".encode()
    events(follow=True, common=common(agent))
    assert capsys.readouterr().out.endswith("a  paused in 0.84 s\n")


def test_explain_is_the_text_the_next_step_and_the_last_events(
    agent: AnsweringAgent, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [EVENT.model_copy(update={"id": number, "text": f"paused {number}"}) for number in range(20)]
    view = ExplainView(
        workload="a", state=WorkloadState.PAUSED, text="a is paused.", next_step="`kybernate resume a`", events=many
    )
    agent.answer("/v1/workloads/a/explain", view)
    explain("a", common=common(agent))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["a is paused.", "Next: `kybernate resume a`.", "", "Last events:"]
    assert [line.split()[-1] for line in lines[4:]] == [str(number) for number in range(12, 20)]


def test_logs_are_bytes_and_as_json_texts(agent: AnsweringAgent, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    agent.answers["/v1/workloads/a/logs"] = b"\xffout\n"
    logs("a", lines=3, common=common(agent))
    logs("a", common=common(agent, json=True))
    raw, line = capfdbinary.readouterr().out.split(b"\n")[:2]
    assert raw == b"\xffout"
    assert json.loads(line) == {"output": "\ufffdout\n"}
    assert agent.asked[0] == ("GET", "/v1/workloads/a/logs?lines=3", None)
