"""Results of benchmarks: one schema for all of them, and the facts of the host they were measured on.

`value` is the median of all repetitions; `n`, `min` and `max` say how much it is worth. Nothing is invented: a fact
that can't be read is the empty string, a case that wasn't measured isn't there.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the value is compared with, measured in the same run."""

    name: str
    value: float
    n: int

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "value": _rounded(self.value), "n": self.n}


@dataclass(frozen=True, slots=True)
class Case:
    """One number of a benchmark: the median of `samples`, in `unit`."""

    case: str
    unit: str
    samples: tuple[float, ...]
    baseline: Baseline | None = None
    floor: float | None = None
    """What the machine itself allows, measured in the same run; for times, the link's."""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    def as_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "unit": self.unit,
            "value": _rounded(self.value),
            "n": len(self.samples),
            "min": _rounded(min(self.samples)),
            "max": _rounded(max(self.samples)),
            "baseline": self.baseline.as_json() if self.baseline else None,
            "floor": None if self.floor is None else _rounded(self.floor),
            **self.notes,
        }


def document(bench: str, cases: Sequence[Case], *, simulated: bool, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The whole content of `bench/results/NAME.json`."""
    return {
        "bench": bench,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "simulated": simulated,
        "host": host(simulated=simulated),
        "notes": list(notes),
        "cases": [case.as_json() for case in cases],
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: a run that is killed leaves the last result as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def wide_console() -> Console:
    """For tables; where nobody watches, wide enough that no line is folded."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def commit() -> str:
    """What $KYBERNATE_COMMIT says (a tree copied without its git), else the bundle, else git, else the empty string."""
    if named := os.environ.get("KYBERNATE_COMMIT"):
        return named
    with contextlib.suppress(OSError):
        return (Path(sys.prefix) / "share" / "kybernate" / "COMMIT").read_text().strip()
    here = Path(__file__).resolve().parent
    revision = _output(["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"])
    if not revision:
        return ""
    dirty = _output(
        ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no", "--", ":/src", ":/native"]
    )
    return f"{revision}+changes" if dirty else revision


def host(*, simulated: bool) -> dict[str, Any]:
    gpu = driver = cuda = ""
    if simulated:
        gpu = "simulated"
    else:
        gpu, _, driver = _output(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]).partition(
            ", "
        )
        driver = driver.splitlines()[0] if driver else ""
        for word in _output(["nvidia-smi"]).split("CUDA Version:")[1:]:
            cuda = word.split()[0]
    return {
        "gpu": gpu,
        "driver": driver,
        "cuda": cuda,
        "kernel": platform.release(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _rounded(value: float) -> float | int:
    """Six significant digits: more would pretend."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
