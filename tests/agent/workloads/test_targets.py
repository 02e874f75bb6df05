"""Names of processes that aren't ours, and what the engine sees of one."""

from __future__ import annotations

import pytest
from tests.agent.building import entry

from kybernate.agent.workloads.targets import ExternalProcess, external_name, external_pid, is_external_name, target_of
from kybernate.model.types import Backend, HostPid

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("pid", [1, 4242, (1 << 22) - 1])
def test_a_pid_makes_a_name_and_the_name_says_the_pid(pid: int) -> None:
    name = external_name(pid)
    assert is_external_name(name)
    assert external_pid(name) == pid


@pytest.mark.parametrize("name", ["pid-", "pid-a", "pid-1a", "apid-1", "pid-1\n", "pid--1", ""])
def test_other_names_are_free_for_workloads(name: str) -> None:
    assert not is_external_name(name)


def test_an_external_process_is_one_process_that_nobody_freezes() -> None:
    process = ExternalProcess(HostPid(7))
    process.freeze(1.0)
    assert (process.pids(), process.frozen) == ([7], False)
    process.thaw()


@pytest.mark.parametrize("backend", list(Backend))
def test_the_engine_moves_it_by_the_driver_alone(backend: Backend) -> None:
    target = target_of(entry("pid-7", external=True, backend=backend), None)
    assert (target.name, target.tree.pids(), list(target.processes)) == ("pid-7", [7], [])
