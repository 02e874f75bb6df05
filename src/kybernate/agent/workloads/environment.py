"""The environment a workload gets: its caller's, plus what the preload library needs. Pure.

The caller's words win in everything but the library: LD_PRELOAD and LD_LIBRARY_PATH are put in front of what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kybernate.model.types import WorkloadName

RUN_DIRECTORY_VARIABLE = "KYBERNATE_RUN_DIRECTORY"
WORKLOAD_VARIABLE = "KYBERNATE_WORKLOAD"
SIMULATED_VARIABLE = "KYBERNATE_SIMULATED_GPU"


@dataclass(frozen=True, slots=True)
class Simulation:
    """The simulated driver, when the agent runs on it: its workloads must find the same one."""

    library_directory: Path
    setting: str
    """The agent's own value of KYBERNATE_SIMULATED_GPU."""

    @property
    def gpu_directories(self) -> list[str]:
        """The file systems that simulated GPUs are."""
        return [path for path in self.setting.split(":") if path]


def workload_environment(
    caller: Mapping[str, str],
    *,
    name: WorkloadName,
    run_directory: Path,
    preload: Path | None,
    simulation: Simulation | None,
) -> dict[str, str]:
    """`preload` is None for workloads that are moved by the driver alone."""
    environment = {key: value for key, value in caller.items() if key and "=" not in key}
    environment[WORKLOAD_VARIABLE] = name
    environment.pop(RUN_DIRECTORY_VARIABLE, None)
    if preload is not None:
        environment[RUN_DIRECTORY_VARIABLE] = str(run_directory)
        environment["LD_PRELOAD"] = _in_front(str(preload), environment.get("LD_PRELOAD"))
    if simulation is not None:
        environment[SIMULATED_VARIABLE] = simulation.setting
        directory = str(simulation.library_directory)
        environment["LD_LIBRARY_PATH"] = _in_front(directory, environment.get("LD_LIBRARY_PATH"))
    return environment


def _in_front(first: str, rest: str | None) -> str:
    kept = [part for part in (rest or "").split(":") if part and part != first]
    return ":".join([first, *kept])
