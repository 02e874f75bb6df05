"""What becomes of a stored workload where its resume fails, its processes die, or another agent has had it: nothing that is good
is deleted, nothing that is old comes back, and nothing wrong ever runs. The GPU is simulated, CRIU and the bucket are real."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.agent.conftest import AgentProcess, MakeAgent, goes_on, kybernate, started
from tests.conftest import SLOWER, Eventually

from kybernate.agent.tiers import claims
from kybernate.engine.faults import VARIABLE
from kybernate.model.api import SnapshotRequest
from kybernate.model.errors import Busy, Conflict, KybernateError
from kybernate.model.types import CHUNK_BYTES, MIB, TierName, WorkloadState
from kybernate.store import Catalog, ObjectMedium, Tier, keys_of, tenant_name

pytestmark = [pytest.mark.root, pytest.mark.timeout(300 * SLOWER)]

BENCH = [sys.executable, "-m", "kybernate.benchmarks.workload", "--seed", "7", "--loop", "0.25", "--pace", "0.02"]


def kinds(agent: AgentProcess, name: str) -> list[str]:
    return [event.kind for event in agent.client.events(name)]


def names(agent: AgentProcess) -> list[str]:
    return [view.name for view in agent.client.snapshots().snapshots]


def lies(agent: AgentProcess, name: str) -> tuple[WorkloadState, str | None]:
    view = agent.client.workload(name)
    return view.state, view.tier


def flip_the_pool(agent: AgentProcess) -> int:
    """A bit in each chunk of the host pool that holds anything. Returns how many."""
    flipped = 0
    for path in agent.state.pool_mount.iterdir():
        if not path.is_file() or path.stat().st_size < CHUNK_BYTES:
            continue
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pool:
            for at in range(0, len(pool), CHUNK_BYTES):
                if any(pool[at : at + 4096]):
                    pool[at + 100] ^= 1
                    flipped += 1
    return flipped


def test_full_connections_go_to_the_disk_and_back_with_every_byte(
    make_agent: MakeAgent, eventually: Eventually
) -> None:
    """The program compares all it sent with all it got, and ends with 0 where nothing is wrong or missing."""
    agent = make_agent()
    program = Path(__file__).parents[2] / "process" / "features" / "saturated.py"
    agent.run("full", sys.executable, "-S", str(program))
    eventually(lambda: "ready" in agent.output("full"), timeout_s=60, what="its connections are full")
    for _ in range(2):
        agent.client.pause("full", tier=TierName.NVME)
        agent.client.resume("full")
    (agent.state.root / "workloads" / "full" / "control" / "go").touch()
    eventually(
        lambda: agent.client.workload("full").state is WorkloadState.EXITED, timeout_s=90, what="it reads to its end"
    )
    assert agent.client.workload("full").exit_status == 0, agent.output("full")
    assert "restore-failed" not in kinds(agent, "full")


def test_a_restore_that_fails_once_is_not_noticed(make_agent: MakeAgent, eventually: Eventually) -> None:
    """For want of memory or time, say: it is tried again."""
    agent = make_agent()
    started(agent, eventually, "one")
    agent.client.pause("one", tier=TierName.NVME)
    agent.kill()
    agent.start(**{VARIABLE: "revive.restored:once"})
    assert agent.client.resume("one").note == "restored from nvme"
    goes_on(agent, eventually, "one")
    assert kinds(agent, "one").count("restore-failed") == 1
    agent.client.stop("one", remove=True)


def test_however_often_its_restore_fails_a_sound_snapshot_stays_and_nothing_is_started_anew(
    make_agent: MakeAgent, eventually: Eventually
) -> None:
    """Though it may be started anew where its state is lost: it isn't."""
    agent = make_agent()
    agent.run("one", *BENCH, "--bytes", str(8 * MIB), cold_start=True)
    eventually(lambda: agent.steps("one") > 2, timeout_s=60, what="it computes")
    agent.client.pause("one", tier=TierName.NVME)
    [snapshot] = names(agent)
    steps = agent.steps("one")
    agent.kill()
    agent.start(**{VARIABLE: "revive.restored:error"})
    for time in (1, 2, 3):
        done = kybernate(agent, "resume", "one")
        assert (done.returncode, done.stderr.count("\n")) == (Busy.exit_status, 1), done.stderr
        assert f"its snapshot {snapshot} stays in nvme: try again" in done.stderr
        assert lies(agent, "one") == (WorkloadState.PAUSED, "nvme")
        assert kinds(agent, "one").count("restore-failed") == 3 * time, "three attempts each time"
    assert names(agent) == [snapshot]
    assert not {"cold-start", "lost"} & set(kinds(agent, "one"))
    assert agent.client.verify(snapshot)[0].problems == []
    agent.kill()
    agent.start()
    assert agent.client.resume("one").note == "restored from nvme"
    goes_on(agent, eventually, "one")
    assert agent.steps("one") > steps, "where it was"
    agent.client.stop("one", remove=True)


def test_a_snapshot_is_given_up_by_order_alone(make_agent: MakeAgent, eventually: Eventually) -> None:
    agent = make_agent()
    agent.run("one", *BENCH, "--bytes", str(8 * MIB), cold_start=True)
    eventually(lambda: agent.steps("one") > 2, timeout_s=60, what="it computes")
    agent.client.pause("one", tier=TierName.NVME)
    agent.kill()
    agent.start(**{VARIABLE: "revive.restored:error"})
    with pytest.raises(Busy) as refused:
        agent.client.resume("one")
    assert "`kybernate stop --remove one` gives it up" in (refused.value.hint or "")
    agent.client.stop("one", remove=True)
    assert names(agent) == []
    agent.run("one", *BENCH, "--bytes", str(8 * MIB))
    eventually(lambda: agent.steps("one") > 2, timeout_s=60, what="it begins anew")


def test_processes_that_die_while_they_come_back_are_not_the_workload_s_end(
    make_agent: MakeAgent, eventually: Eventually
) -> None:
    """Brought back from the disk, and killed by whomever before their content is there: the snapshot is the workload."""
    agent = make_agent()
    started(agent, eventually, "one")
    agent.client.pause("one", tier=TierName.NVME)
    [snapshot] = names(agent)
    agent.kill()
    agent.start(KYBERNATE_SIMULATED_LINK_GIB_S="0.01")  # else it may be there before we look
    with ThreadPoolExecutor(1) as pool:
        order = pool.submit(kybernate, agent, "resume", "one")
        [*pids] = eventually(
            lambda: [
                pid
                for pid in agent.client.workload("one").pids
                if agent.client.workload("one").state is WorkloadState.RESUMING
            ],
            timeout_s=60,
            what="it is on its way",
        )
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        done = order.result()
    assert (done.returncode, done.stderr.count("\n")) == (Busy.exit_status, 1), done.stderr
    assert f"its snapshot {snapshot} stays in the store: try again" in done.stderr
    eventually(lambda: lies(agent, "one") == (WorkloadState.PAUSED, "nvme"), what="its copy takes their place")
    assert "lost" not in kinds(agent, "one")
    assert names(agent) == [snapshot]
    agent.client.resume("one")
    goes_on(agent, eventually, "one")
    agent.client.stop("one", remove=True)


def damage(agent: AgentProcess) -> None:
    """What lies on the disk."""
    for path in agent.state.root.with_name("s-store").glob("default/packs/*"):
        content = bytearray(path.read_bytes())
        for at in range(4096, len(content) - 4096, 4096):
            content[at] ^= 1
        path.write_bytes(content)


def test_a_damaged_snapshot_is_kept_beside_the_new_life_and_never_comes_back(
    make_agent: MakeAgent, eventually: Eventually
) -> None:
    agent = make_agent()
    agent.run("one", *BENCH, "--bytes", str(8 * MIB), cold_start=True)
    eventually(lambda: agent.steps("one") > 2, timeout_s=60, what="it computes")
    agent.client.pause("one", tier=TierName.NVME)
    [snapshot] = kept = names(agent)
    damage(agent)
    report = agent.client.resume("one")
    assert f"its snapshot {snapshot} is kept" in (report.note or "")
    eventually(lambda: agent.steps("one") > 2, timeout_s=60, what="it computes again")
    assert [event.data["kept"] for event in agent.client.events("one") if event.kind == "cold-start"] == [snapshot]
    assert kinds(agent, "one").count("restore-failed") == 1, "the same bytes are not read again"
    agent.client.pause("one")
    agent.kill()
    [manifest] = agent.state.root.glob("**/one.manifest")
    manifest.unlink()
    agent.start()
    assert agent.client.workload("one").state is WorkloadState.LOST
    with pytest.raises(Conflict):
        agent.client.resume("one")
    assert agent.client.workload("one").state is WorkloadState.LOST
    assert names(agent) == kept
    agent.client.remove_snapshot(kept[0])
    assert "clone" not in agent.client.explain("one").text


@pytest.mark.parametrize("tier", [TierName.NVME, TierName.OBJECT])
def test_content_that_was_changed_never_runs(
    make_agent: MakeAgent, bucket: Callable[..., str], eventually: Eventually, tier: TierName
) -> None:
    """From the store into host memory every chunk is checked; a bit that flips there is found on the GPU, before the gates open.
    The next resume reads it anew."""
    agent = make_agent(store=bucket())
    started(agent, eventually, "one")
    agent.client.pause("one", tier=tier)
    [snapshot] = names(agent)
    steps = agent.steps("one")
    assert not agent.client.prefetch("one").already
    assert flip_the_pool(agent) > 0
    with pytest.raises(KybernateError, match=r"chunks of one differ from what was paused"):
        agent.client.resume("one")
    assert lies(agent, "one") == (WorkloadState.PAUSED, tier)
    assert names(agent) == [snapshot]
    assert agent.steps("one") == steps, "it has not run"
    assert "resume-failed" in kinds(agent, "one")
    assert agent.client.node().gpus[0].resident_bytes == 0
    agent.client.resume("one")
    goes_on(agent, eventually, "one")
    agent.client.stop("one", remove=True)
    node = agent.client.node()
    assert node.pool is not None
    assert node.pool.free_bytes == node.pool.size_bytes


def test_a_changed_image_in_host_memory_is_read_anew_for_the_next_clone(
    make_agent: MakeAgent, eventually: Eventually
) -> None:
    agent = make_agent()
    started(agent, eventually, "one")
    agent.client.snapshot("one", SnapshotRequest(image="gold"))
    agent.client.stop("one", remove=True)
    agent.client.move("gold", TierName.RAM)
    assert flip_the_pool(agent) > 0
    with pytest.raises(KybernateError, match="differ from what was paused"):
        agent.client.clone("gold", "bad")
    assert agent.client.workload("bad").state is not WorkloadState.RUNNING
    agent.client.stop("bad", remove=True)
    agent.client.clone("gold", "good")
    eventually(lambda: agent.steps("good") > 2, timeout_s=60, what="the clone computes")


def test_processes_that_die_before_the_gates_open_do_not_take_the_snapshot_along(
    make_agent: MakeAgent, eventually: Eventually
) -> None:
    """Brought back into RAM, paused there as something of its resume failed, and then killed by whomever."""
    agent = make_agent()
    started(agent, eventually, "one")
    agent.client.pause("one", tier=TierName.NVME)
    snapshot = names(agent)
    agent.kill()
    agent.start(**{VARIABLE: "resume.created:error"})
    with pytest.raises(KybernateError):
        agent.client.resume("one")
    assert lies(agent, "one") == (WorkloadState.PAUSED, "ram")
    for pid in agent.client.workload("one").pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: lies(agent, "one") == (WorkloadState.PAUSED, "nvme"), what="its copy takes their place")
    eventually(lambda: "fell-back" in kinds(agent, "one"), what="it is told")
    assert names(agent) == snapshot
    agent.kill()
    agent.start()
    agent.client.resume("one")
    goes_on(agent, eventually, "one")
    agent.client.stop("one", remove=True)


@pytest.mark.parametrize("step", ["resume.created", "resume.mapped"])
def test_a_machine_that_goes_down_in_the_middle_of_a_resume(
    make_agent: MakeAgent, eventually: Eventually, step: str
) -> None:
    agent = make_agent()
    started(agent, eventually, "one")
    agent.client.pause("one", tier=TierName.NVME)
    agent.kill()
    agent.start(**{VARIABLE: f"{step}:kill"})
    with pytest.raises(KybernateError):
        agent.client.resume("one")
    agent.kill()
    [record] = (agent.state.root / "records").glob("one.json")
    for pid in pids_below(record):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids_below(record)), what="its end")
    record.unlink()  # as a boot leaves a state directory of which only the database is on a disk
    agent.start()
    assert lies(agent, "one") == (WorkloadState.PAUSED, "nvme")
    agent.client.resume("one")
    goes_on(agent, eventually, "one")
    agent.client.stop("one", remove=True)


def pids_below(record: Path) -> list[int]:
    """The supervisor's, with which all others go."""
    pid = int(json.loads(record.read_text())["pid"])
    return [pid] if Path(f"/proc/{pid}").exists() else []


def test_a_state_that_another_agent_left_later_is_found(
    first: AgentProcess, make_second: Callable[[], AgentProcess], eventually: Eventually
) -> None:
    """It lay in the bucket, another agent had it meanwhile and parked it again: that is it now, where it got to there."""
    first.client.pause("one", tier=TierName.OBJECT)
    second = make_second()
    second.client.resume("one")
    eventually(lambda: second.steps("one") > 20, timeout_s=60, what="it comes further there")
    eventually(lambda: not names(second), what="the older snapshot is deleted")
    with pytest.raises(KybernateError, match="has gone from every tier"):
        first.client.resume("one")
    second.client.pause("one", tier=TierName.OBJECT)
    [snapshot] = names(second)
    assert first.client.resume("one").tier is TierName.OBJECT
    assert [e.data["snapshot"] for e in first.client.events("one") if e.kind == "found"] == [snapshot]
    goes_on(first, eventually, "one")
    eventually(lambda: not names(first), what="its snapshot is deleted")
    first.client.stop("one", remove=True)
    second.client.stop("one", remove=True)


def test_a_copy_on_the_disk_is_not_resumed_while_another_agent_has_the_one_in_the_bucket(
    first: AgentProcess, make_second: Callable[[], AgentProcess], eventually: Eventually
) -> None:
    first.client.pause("one", tier=TierName.NVME)
    first.client.move("one", TierName.OBJECT, keep=True)
    second = make_second()
    second.client.resume("one")
    eventually(lambda: not names(second), what="it is the second agent's alone")
    with pytest.raises(Conflict, match="the copy of workload one in object has gone") as caught:
        first.client.resume("one")
    assert "--take-over" in (caught.value.hint or "")
    with pytest.raises(Conflict, match="has gone"):
        first.client.move("one", TierName.OBJECT)
    assert lies(first, "one") == (WorkloadState.PAUSED, "nvme")
    second.client.pause("one", tier=TierName.OBJECT)
    assert first.client.resume("one").tier is TierName.OBJECT
    goes_on(first, eventually, "one")
    first.client.stop("one", remove=True)
    second.client.stop("one", remove=True)


def test_one_that_is_claimed_is_not_moved_out_of_the_bucket(
    first: AgentProcess, make_second: Callable[[], AgentProcess], eventually: Eventually
) -> None:
    first.client.pause("one", tier=TierName.OBJECT)
    [snapshot] = names(first)
    first.kill()
    first.start(**{VARIABLE: "revive.restored:kill"})
    with pytest.raises(KybernateError):
        first.client.resume("one")
    second = make_second()
    with pytest.raises(Busy, match="claimed by the agent"):
        second.client.move(snapshot, TierName.NVME)
    assert [view.tiers for view in second.client.snapshots().snapshots] == [[TierName.OBJECT]]
    first.kill()
    first.start()
    first.client.move("one", TierName.NVME)
    first.client.resume("one")
    goes_on(first, eventually, "one")
    first.client.stop("one", remove=True)


def test_a_claim_that_another_agent_took_over_is_not_taken_away(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    with contextlib.closing(Catalog(tmp_path / "db")) as catalog:
        tier = Tier(ObjectMedium(f"file://{tmp_path}/far"), catalog)
        tier.open()
        space = tier.space(keys_of(tenant_name("default")))
        claims.take(space, "one", by="first")
        claims.take(space, "one", by="second", take_over=True)
        claims.release(space, "one", by="first")
        with pytest.raises(Busy, match="claimed by the agent second"):
            claims.take(space, "one", by="first")
        claims.release(space, "one", by="second")
        claims.take(space, "one", by="first")
        tier.close()


def test_machines_of_one_name_are_two_agents(tmp_path: Path) -> None:
    numbers = [tmp_path / "a", tmp_path / "b"]
    for number, path in enumerate(numbers):
        path.write_text(f"{number}" * 32 + "\n")
    assert len({claims.agent_id(Path("/run/kybernate"), path) for path in numbers}) == 2
    assert claims.agent_id(Path("/run/kybernate"), tmp_path / "none").endswith(":/run/kybernate")
