"""What a workload finds in its environment: its caller's words, with the library in front."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kybernate.agent.workloads.environment import Simulation, workload_environment
from kybernate.model.types import WorkloadName

pytestmark = pytest.mark.unit

PRELOAD = Path("/opt/kybernate/libkybernate-preload.so")
RUN = Path("/run/kybernate/workloads/a")
SIMULATED = Simulation(Path("/opt/simulated"), "/tmp/gpu0")


def made(
    caller: Mapping[str, str], *, preload: Path | None = PRELOAD, simulation: Simulation | None = None
) -> dict[str, str]:
    return workload_environment(
        caller, name=WorkloadName("a"), run_directory=RUN, preload=preload, simulation=simulation
    )


def test_it_is_told_its_name_and_where_its_agent_is() -> None:
    found = made({"PATH": "/bin"})
    assert found == {
        "PATH": "/bin",
        "KYBERNATE_WORKLOAD": "a",
        "KYBERNATE_RUN_DIRECTORY": str(RUN),
        "LD_PRELOAD": str(PRELOAD),
    }


@pytest.mark.parametrize(
    ("given_", "left"),
    [
        pytest.param("", f"{PRELOAD}", id="nothing there"),
        pytest.param(
            "/usr/lib/libjemalloc.so", f"{PRELOAD}:/usr/lib/libjemalloc.so", id="another's library comes after"
        ),
        pytest.param(f"/x.so:{PRELOAD}:/y.so", f"{PRELOAD}:/x.so:/y.so", id="ours is there once"),
        pytest.param(":/x.so::", f"{PRELOAD}:/x.so", id="empty entries go"),
    ],
)
def test_the_library_stands_in_front_of_what_is_preloaded(given_: str, left: str) -> None:
    assert made({"LD_PRELOAD": given_})["LD_PRELOAD"] == left


def test_one_that_is_left_to_the_driver_gets_no_library_and_no_way_to_an_agent() -> None:
    found = made({"LD_PRELOAD": "/x.so", "KYBERNATE_RUN_DIRECTORY": "/of/another"}, preload=None)
    assert found == {"LD_PRELOAD": "/x.so", "KYBERNATE_WORKLOAD": "a"}


def test_started_from_inside_another_workload_it_is_itself() -> None:
    found = made({"KYBERNATE_WORKLOAD": "outer", "KYBERNATE_RUN_DIRECTORY": "/outer"})
    assert (found["KYBERNATE_WORKLOAD"], found["KYBERNATE_RUN_DIRECTORY"]) == ("a", str(RUN))


def test_on_a_simulated_gpu_it_finds_the_agents_own_driver_before_any_other() -> None:
    found = made({"LD_LIBRARY_PATH": "/usr/lib/nvidia", "KYBERNATE_SIMULATED_GPU": "/other"}, simulation=SIMULATED)
    assert found["LD_LIBRARY_PATH"] == "/opt/simulated:/usr/lib/nvidia"
    assert found["KYBERNATE_SIMULATED_GPU"] == "/tmp/gpu0"


def test_names_that_no_environment_can_hold_are_left_out() -> None:
    assert "A=B" not in made({"A=B": "c", "": "d", "E": "f"})
    assert "" not in made({"": "d"})


@given(st.dictionaries(st.text("ABCDEFGH_", min_size=1), st.text()))
def test_the_caller_wins_in_all_that_is_not_the_librarys(caller: dict[str, str]) -> None:
    found = made(caller, simulation=SIMULATED)
    assert {name: value for name, value in found.items() if name in caller} == caller
    assert set(found) - set(caller) == {
        "KYBERNATE_WORKLOAD",
        "KYBERNATE_RUN_DIRECTORY",
        "LD_PRELOAD",
        "KYBERNATE_SIMULATED_GPU",
        "LD_LIBRARY_PATH",
    }
