"""The pure parts of serving: loads of many workers, shares, keys, the dry run."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.agent.records.database import Database
from kybernate.agent.records.ledger import ARBITER, Entry
from kybernate.agent.serving.address import answered_hosts
from kybernate.agent.serving.build_state import Seen, member_of
from kybernate.agent.serving.dryrun import rehearse
from kybernate.agent.serving.gpu_usage import GpuUsage, Resident
from kybernate.agent.serving.keys import load_keys
from kybernate.agent.serving.running import run_request
from kybernate.agent.serving.worker_load import WorkerLoads, shares
from kybernate.agent.serving.workload_stats import WorkloadStats
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput
from kybernate.model.messages import Load
from kybernate.model.types import GIB, Backend, GpuUuid, WorkloadName, WorkloadState
from kybernate.policy.costs import Costs
from kybernate.policy.registry import policy_named
from kybernate.policy.settings import PolicySettings
from kybernate.settings import parse
from kybernate.settings.specs import served_of
from kybernate.settings.vram_hints import hinted

pytestmark = pytest.mark.unit

A = WorkloadName("a")


def load(*, waiting: int = 0, in_flight: int = 0, begun: int = 0, ended: int = 0, oldest: float | None = None) -> Load:
    return Load("a", 1, waiting, oldest, in_flight, begun, ended)


def test_loads_of_two_workers_add_up() -> None:
    loads = WorkerLoads()
    loads.update(1, load(waiting=2, begun=2, oldest=3.0), now=100.0)
    loads.update(2, load(in_flight=1, waiting=1, begun=2, oldest=1.0), now=100.0)
    demand = loads.demand(A, 101.0)
    assert (demand.waiting, demand.in_flight, demand.begun, demand.oldest_wait) == (3, 1, 4, 97.0)
    loads.update(1, load(begun=5, ended=5), now=102.0)
    loads.on_disconnected(2)
    demand = loads.demand(A, 110.0)
    assert (demand.waiting, demand.in_flight, demand.begun, demand.ended, demand.last_use) == (0, 0, 7, 5, 102.0)
    assert loads.arrivals() == ((102.0, A),) * 3, "what was counted before the first word is no arrival of now"


def test_streams_that_are_only_open_are_no_use() -> None:
    loads = WorkerLoads()
    loads.update(1, load(in_flight=1, begun=1), now=100.0)
    loads.update(1, dataclasses.replace(load(in_flight=1, begun=1), still=1), now=220.0)
    demand = loads.demand(A, 300.0)
    assert (demand.in_flight, demand.last_use) == (0, 100.0)
    assert loads.by_worker(A)[1].in_flight == 1, "it is sent to the model all the same"
    loads.update(1, load(in_flight=1, begun=1), now=310.0)
    assert (loads.demand(A, 320.0).in_flight, loads.demand(A, 320.0).last_use) == (1, 320.0)


@given(
    limit=st.integers(1, 50),
    demands=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=6),
)
def test_shares_hand_out_the_limit_and_leave_what_flies(limit: int, demands: list[tuple[int, int]]) -> None:
    flying = [in_flight for _, in_flight in demands]
    said = {k: load(waiting=waiting, in_flight=in_flight) for k, (waiting, in_flight) in enumerate(demands)}
    found = shares(limit, said, dict.fromkeys(said, 0))
    if sum(flying) <= limit:
        assert sum(found.values()) == limit
        assert all(found[k] >= flying[k] for k in said) or len(said) == 1
        hungry = [k for k in said if said[k].waiting > found[k] - flying[k]]
        idle = [k for k in said if not said[k].waiting and found[k] > flying[k]]
        assert not (hungry and idle and len(said) > 1), "nobody waits while another has more than it uses"


def test_keys_leave_their_file_as_hashes_only(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"another-secret-of-mine").hexdigest()
    file.write_text(f"web: sk-0123456789abcdef\nbatch: {{sha256: {digest.upper()}, models: [a, b]}}\n")
    file.chmod(0o600)
    web, batch = load_keys(file)
    assert (web.name, web.sha256, web.models) == ("web", hashlib.sha256(b"sk-0123456789abcdef").hexdigest(), ())
    assert (batch.sha256, batch.models) == (digest, ("a", "b"))


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("web: sk-0123456789abcdef\n", 0o644, "open to others"),
        ("web: short\n", 0o600, "16 characters"),
        ("", 0o600, "no keys"),
        ("- a\n", 0o600, "no keys"),
        ("web: {key: sk-0123456789abcdef, model: a}\n", 0o600, "key"),
        ("web: {sha256: abc}\n", 0o600, "64"),
        ("a: sk-0123456789abcdef\nb: sk-0123456789abcdef\n", 0o600, "two clients"),
        ("a: [sk-0123456789abcdef", 0o600, "no YAML"),
        ("a: " + "[" * 3000 + "sk-0123456789abcdef", 0o600, "no YAML"),
        ("a: 2020-02-30\nb: sk-0123456789abcdef\n", 0o600, "no YAML"),
        ("a: sk-0123456789abcdef\na: sk-0123456789abcdeg\n", 0o600, "twice"),
    ],
)
def test_senseless_keys_are_refused_and_not_shown(tmp_path: Path, text: str, mode: int, words: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(BadInput, match=words) as caught:
        load_keys(file)
    assert "0123456789abcdef" not in str(caught.value)
    assert caught.value.__cause__ is None


YAML = """
models:
  a: {command: x, port: 1, vram: 24GiB}
  b: {command: x, port: 1, vram: 24GiB}
  c: {command: x, port: 1, vram: 40GiB}
  e: {command: x, port: 1, vram: 90GiB}
  unknown: {command: x, port: 1}
jobs:
  train: {command: x, vram: 30GiB}
"""


@pytest.mark.parametrize(
    ("activator", "names"),
    [
        pytest.param("{}", {"chat.example"}, id="left-out"),
        pytest.param("{listen: 'localhost:80'}", {"chat.example"}, id="localhost"),
        pytest.param("{listen: '[::1]:80'}", {"chat.example"}, id="v6"),
        pytest.param("{listen: '0.0.0.0:80'}", None, id="everywhere"),
        pytest.param("{listen: 'no.such.host.invalid:80'}", None, id="nowhere"),
        pytest.param("{keys_file: /k}", None, id="keys"),
        pytest.param("{tls: {certificate: /c, key: /k}}", None, id="tls"),
        pytest.param("{hosts: any}", None, id="any"),
        pytest.param("{hosts: []}", {"chat.example"}, id="none"),
        pytest.param("{hosts: [Box.Example], keys_file: /k}", {"box.example", "chat.example"}, id="names-and-keys"),
        pytest.param("{hosts: [box], listen: '0.0.0.0:80'}", {"box", "chat.example"}, id="names-everywhere"),
    ],
)
def test_names_that_are_answered(activator: str, names: set[str] | None) -> None:
    """Foreign pages get no further where a key is needed or a certificate must fit."""
    text = f"models: {{m: {{command: x, port: 1, hosts: [Chat.example]}}}}\nactivator: {activator}\n"
    settings = parse(text, origin="k.yaml")
    found = answered_hosts(settings)
    if names is None:
        assert found is None
    else:
        assert found is not None
        own = {settings.activator.listen.rpartition(":")[0], socket.gethostname().lower()}
        assert set(found) == names | own


def test_the_dry_run_says_who_would_be_paused_for_whom() -> None:
    served = served_of(parse(YAML, origin="k.yaml"))
    gpu = GpuUuid("GPU-0")
    needs = {name: hints for name, each in served.items() if (hints := hinted(each, [gpu], None))}
    steps = rehearse(
        served,
        policy=policy_named("lru"),
        numbers=PolicySettings(),
        capacity={gpu: 60 * GIB},
        needs=needs,
        now=1_700_000_000.0,
    )
    found = {
        step.asked: (step.came, [getattr(action, "victims", ()) for action in step.plan.actions]) for step in steps
    }
    assert found == {
        None: (True, [()]),
        "a": (True, [()]),
        "b": (True, [("train",)]),
        "c": (True, [("a", "b")]),
        "e": (False, []),
    }
    assert "more than this node" in steps[-1].plan.reasons[WorkloadName("e")]


def test_the_dry_run_begins_with_eager_models() -> None:
    text = (
        "models:\n"
        "  a: {command: x, port: 1, vram: 20GiB, start: eager}\n"
        "  b: {command: x, port: 1, vram: 20GiB}\n"
        "jobs:\n  train: {command: x, vram: 50GiB}\n"
    )
    gpu = GpuUuid("GPU-0")
    served = served_of(parse(text, origin="k.yaml"))
    steps = rehearse(
        served,
        policy=policy_named("balanced"),
        numbers=PolicySettings(),
        capacity={gpu: 60 * GIB},
        needs={name: hinted(each, [gpu], None) for name, each in served.items()},
        now=1_700_000_000.0,
    )
    first, asked_a, asked_b = steps
    assert [action.name for action in first.plan.actions] == ["a"]
    assert first.plan.reasons.keys() == {"train"}
    assert not asked_a.plan.actions, "it is there already"
    assert [action.name for action in asked_b.plan.actions] == ["b"]


GPUS = [GpuUuid(f"GPU-{letter}") for letter in "abc"]


@pytest.mark.parametrize(
    ("vram", "own", "agents", "laid"),
    [
        pytest.param("1GiB", None, None, {0: 1}, id="one size: the first GPU"),
        pytest.param("[1GiB, 2GiB]", None, None, {0: 1, 1: 2}, id="one for each"),
        pytest.param("[0, 2GiB]", None, None, {1: 2}, id="none of the first"),
        pytest.param("1GiB", "2", None, {2: 1}, id="the first that it sees"),
        pytest.param("[1GiB, 2GiB]", "2,0", None, {2: 1, 0: 2}, id="in its order"),
        pytest.param("1GiB", "GPU-b", None, {1: 1}, id="by its name"),
        pytest.param("1GiB", "7", "5,6,7", {2: 1}, id="by the numbers that the agent's variable has"),
        pytest.param("[1GiB, 2GiB]", "1", None, {1: 1, None: 2}, id="more than it sees"),
        pytest.param("1GiB", "9,0", None, {None: 1}, id="what comes after an unknown one isn't seen"),
    ],
)
def test_sizes_are_of_the_gpus_that_a_program_sees(
    vram: str, own: str | None, agents: str | None, laid: dict[int | None, int]
) -> None:
    environment = "" if own is None else f", environment: {{CUDA_VISIBLE_DEVICES: '{own}'}}"
    text = f"models:\n  a: {{command: x, port: 1, vram: {vram}{environment}}}\n"
    found = hinted(served_of(parse(text, origin="k.yaml"))[A], GPUS, agents)
    assert {GPUS.index(gpu) if gpu in GPUS else None: size // GIB for gpu, size in found.items()} == laid


def test_a_model_on_two_gpus_makes_room_on_both_and_one_for_three_fits_nowhere() -> None:
    text = """
models:
  left: {command: x, port: 1, vram: 40GiB}
  right: {command: x, port: 1, vram: [0, 40GiB]}
  both: {command: x, port: 1, vram: [30GiB, 30GiB]}
  three: {command: x, port: 1, vram: [1GiB, 1GiB, 1GiB]}
"""
    served = served_of(parse(text, origin="k.yaml"))
    steps = rehearse(
        served,
        policy=policy_named("lru"),
        numbers=PolicySettings(),
        capacity=dict.fromkeys(GPUS[:2], 60 * GIB),
        needs={name: hinted(each, GPUS[:2], None) for name, each in served.items()},
        now=1_700_000_000.0,
    )
    victims = {
        step.asked: [v for action in step.plan.actions for v in getattr(action, "victims", ())] for step in steps
    }
    assert (victims[WorkloadName("right")], sorted(victims[WorkloadName("both")])) == ([], ["left", "right"])
    assert [step.came for step in steps] == [True, True, True, True, False]


def test_a_program_gets_no_secret_of_the_agents() -> None:
    served = served_of(parse(YAML, origin="k.yaml"))[A]
    own = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "CUDA_VISIBLE_DEVICES": "1", "LD_PRELOAD": "/y", "LC_ALL": "C"}
    environment = run_request(served, Caller(pid=1, uid=0, gid=0), own).environment
    assert set(environment) == {"PATH", "CUDA_VISIBLE_DEVICES", "LC_ALL", "HOME", "USER", "LOGNAME"}


def test_another_program_has_another_fingerprint() -> None:
    one = served_of(parse(YAML, origin="k.yaml"))[A].fingerprint
    assert served_of(parse(YAML.replace("vram: 24GiB", "vram: 20GiB"), origin="k.yaml"))[A].fingerprint == one
    assert served_of(parse(YAML.replace("command: x", "command: y"), origin="k.yaml"))[A].fingerprint != one


def test_a_server_is_told_the_name_that_it_knows() -> None:
    """Its own, by whichever of its names it was asked for; another one, or what the client said, where the file says so."""
    text = "models:\n  a: {command: x, port: 1, names: [n], hidden_names: [h, a], limits: {first_byte: 60}%s}\n"
    for said, told in (("", "a"), (", rewrite_model: org/real", "org/real"), (", rewrite_model: off", None)):
        endpoint = served_of(parse(text % said, origin="k.yaml"))[A].endpoint
        assert endpoint is not None
        assert (endpoint.names, endpoint.hidden, endpoint.rewrite_model) == (("n", "h", "a"), ("h", "a"), told)
        assert endpoint.limits.first_byte_s == 60


def test_time_with_vram_is_counted_and_carried_on(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    database.open()
    try:
        stats = WorkloadStats(database)
        usage = GpuUsage(stats)
        running = [Resident(name=A, klass="batch", bytes=10, busy=True)]
        usage.tick(running, 100.0)
        usage.tick([Resident(name=A, klass="batch", bytes=20, busy=False)], 103.0)
        usage.tick([], 105.0)
        usage.tick([], 500.0)
        counted = usage.usage(A)
        assert (counted.resident_s, counted.busy_s, counted.byte_s) == (5.0, 3.0, 30.0 + 40.0)
        usage.tick(running, 600.0)
        usage.write(601.0)
        again = WorkloadStats(database)
        again.load()
        later = GpuUsage(again)
        later.tick(running, 611.0)
        assert later.usage(A).resident_s == 5.0 + 10.0, "no agent counted for ten seconds, and it held its VRAM"
        assert later.by_class()["batch"].resident_s == 15.0
    finally:
        database.close()


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
    runs = dataclasses.replace(away, state=WorkloadState.RUNNING, evicted={})
    assert needs(runs, resident={gpu: 30 * GIB}, reserved={gpu: 70 * GIB}) == 70 * GIB


def test_what_a_person_stopped_is_neither_wanted_nor_brought() -> None:
    name = WorkloadName("j")
    served = served_of(parse("jobs: {j: {command: 'true'}}", origin="here"))[name]
    for held in (False, True):
        seen = Seen(name=name, entry=None, served=served, stopped=held)
        member = member_of(seen, costs=Costs(), gpus=[], auto_resume=True, now=0.0)
        assert (member.wanted, member.pinned) == (not held, held)
    asked = member_of(
        dataclasses.replace(seen, stopped=False, requested=True), costs=Costs(), gpus=[], auto_resume=True, now=0.0
    )
    assert (asked.wanted, asked.pinned) == (True, False)
