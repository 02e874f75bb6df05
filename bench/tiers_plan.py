"""What bench/tiers.py is to measure, and where its stages put what they found: shared by the parts.

A stage is a process of its own and writes each number down as soon as it has it, so that one which hangs, or takes the whole
machine with it, loses nothing of what was measured before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kybernate.benchmarks.agent import OwnAgent, available_ram
from kybernate.benchmarks.results import Case
from kybernate.model.quantities import format_size
from kybernate.model.types import CHUNK_BYTES, GIB, MIB

SPARE_DISK_BYTES = 3 * GIB
"""Left free: the machine's own."""
SCRATCH = "kybernate-bench-"
_SAMPLE_S = 0.02


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. Sizes in bytes."""

    directory: Path
    """On the disk that is measured."""
    bucket: Path | None
    """Where the S3 server keeps its files; None: in RAM, so that its disk isn't what is measured."""
    python: str
    """Interpreter with PyTorch; of the programs on the real GPU."""
    process_bytes: int
    model_bytes: int
    turn_bytes: int
    """Of one turn against fio or another client."""
    logical_bytes: int
    """Of the snapshots that lie on the disk while the agent's memory is measured."""
    rounds: int
    process_rounds: int
    cold_rounds: int
    clone_rounds: int
    simulated_bytes: int | None = None

    @property
    def simulated(self) -> bool:
        return self.simulated_bytes is not None


class Recorder:
    """One stage's numbers: a line of JSON each, in a file that the parent reads. A case said again replaces the first."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def case(self, case: Case) -> None:
        self._write({"case": case.as_json()})
        value = format_size(int(case.value)) if case.unit == "B" else f"{case.value:.3f} {case.unit}"
        self.say(f"{case.case}: {value}")

    def seconds(self, name: str, samples: list[float], **notes: Any) -> None:
        """A time, measured so often so far."""
        self.case(Case(name, "s", tuple(samples), notes=notes))

    def note(self, text: str) -> None:
        self._write({"note": text})
        self.say(text)

    def say(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def _write(self, content: dict[str, Any]) -> None:
        self._file.write(json.dumps(content) + "\n")
        self._file.flush()


def program_environment(plan: Plan) -> dict[str, str]:
    """Of the programs on the GPU: their interpreter's own packages, none of those that we were started with."""
    return {} if plan.simulated else {"PYTHONPATH": ""}


def size_name(size: int) -> str:
    """As in the names of cases; what is no whole number of GiB is said in MiB."""
    return f"{size // GIB}GiB" if size % GIB == 0 else f"{size // MIB}MiB"


def fitting(wanted: int, directory: Path, *, spare: int = SPARE_DISK_BYTES) -> int:
    """`wanted`, or as many whole GiB (small sizes: chunks) as the place has room for besides `spare`."""
    free = shutil.disk_usage(directory).free - spare
    if wanted <= free:
        return wanted
    step = GIB if wanted >= GIB else CHUNK_BYTES
    return max(0, free // step * step)


@contextlib.contextmanager
def scratch(parent: Path, what: str) -> Iterator[Path]:
    """A directory for one stage; gone afterwards."""
    place = parent / f"{SCRATCH}{what}-{os.getpid()}"
    clear_scratch(place)
    place.mkdir()
    try:
        yield place
    finally:
        clear_scratch(place)


@contextlib.contextmanager
def ram_disk(parent: Path, what: str, size: int) -> Iterator[Path]:
    """The same in RAM: a mount of its own, since workloads have another /dev/shm and the host's may be small."""
    with scratch(parent, what) as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", SCRATCH, str(place)], check=True)
        yield place


def clear_scratch(place: Path) -> None:
    """Also of a stage that was killed."""
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=False)
    shutil.rmtree(place, ignore_errors=True)


def total_ram() -> int:
    """Bytes that the machine has now."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def file_system(directory: Path) -> str:
    """What a directory lies on, in words."""
    device = directory.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == number:
            kind, source = fields[fields.index("-") + 1 : fields.index("-") + 3]
            return f"{kind} on {source}, {shutil.disk_usage(directory).free / GIB:.1f} GiB free"
    return "a file system of its own"


# -- memory --------------------------------------------------------------------------------------------------------------


def anonymous_bytes(pid: int) -> int:
    """A process's own memory: neither files it has mapped nor shared memory, so without the pool; 0 when it has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0


@dataclass(slots=True)
class Watch:
    """`with Watch(agent) as watch:` the most memory that was used meanwhile. Bytes.

    `system` is the machine's: by how much less was available than at the beginning, page cache that can be dropped not
    counted. `agent` is what the agent's own memory grew by.
    """

    agent: OwnAgent
    system: int = 0
    own: int = 0
    _before: tuple[int, int] = (0, 0)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._before = available_ram(), anonymous_bytes(self.agent.pid)
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join()

    def _look(self) -> None:
        available, own = self._before
        while not self._over.is_set():
            self.system = max(self.system, available - available_ram())
            self.own = max(self.own, anonymous_bytes(self.agent.pid) - own)
            time.sleep(_SAMPLE_S)
