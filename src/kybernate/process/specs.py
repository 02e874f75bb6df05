"""What a workload is to be started with, or brought back from a dump with; checked here, before anything is done."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from kybernate.model.errors import BadInput
from kybernate.model.types import MIB, WorkloadName, workload_name
from kybernate.process.tree import CONTROL

_SOCKET_PATH_MAX = 107
_LONGEST_SOCKET = f"{CONTROL}/4194304.sock"

LAYERS = "layers"
"""Directory of the writable layers, below the run directory."""


OUTPUT_BYTES = 16 * MIB
"""What stays of a workload's output if nothing else is said."""


class Network(enum.StrEnum):
    """What a workload sees of the network."""

    NONE = "none"
    """A network of its own in which only loopback is up."""
    HOST = "host"
    """The host's."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What CRIU brings back instead of a program that is started. Made by `restoring`."""

    images: Path
    """The dump's directory."""
    pid: int
    """Of the first process, as it sees itself."""
    last_pid: int
    unsent: int
    """Bytes that its connections had not sent yet."""
    run_directory: Path
    """Where the processes know their run directory; this one is shown to them there."""
    state_directory: Path
    """Hidden around it."""
    shared_memory: str
    """Name of the tar of /dev/shm in the dump."""
    shared_memory_bytes: int
    control: str
    """Name of the tar of the run directory's part that is the workload's."""
    layers: Sequence[str]
    """Names of the tars of the layers in the dump, one for each layer."""
    lay: Callable[[str, Path], None]
    """Lays one of these tars into an empty directory."""
    serving: Callable[[Path], AbstractContextManager[object]]
    """Gives the dump's files in a directory (`image_stream`), for a block."""
    command: Callable[[int], Sequence[str]]
    """CRIU's command line, given the descriptor of that directory, where its log is to be, too."""
    failure: Callable[[Path], str]
    """What went wrong, in a sentence, given the directory with the log."""
    came_back: Callable[[Path], None]
    """Told when it is whole, given the same directory."""
    timeout_s: float


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """What to start. The run directory is STATE/workloads/NAME; STATE is what the workload won't see.

    Raises:
        BadInput: a name, path, argument or variable that can't be right.
    """

    name: WorkloadName
    argv: Sequence[str]
    run_directory: Path
    directory: Path = Path("/")
    """Working directory."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The whole environment. KYBERNATE_WORKLOAD and KYBERNATE_RUN_DIRECTORY are added."""
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    groups: Sequence[int] = ()
    network: Network = Network.NONE
    isolated: bool = True
    """False: no namespaces and no cgroup, as without root."""
    layers: Sequence[Path] = ()
    """Directories of which the workload sees the host's content, but writes into a layer of its own, RUN/layers/N: the
    host's files stay as they are, a dump takes the layer along, clones don't see each other's. Elsewhere it writes
    the host's files, as any program does. What is mounted below a layer isn't seen in it."""
    layers_at: Path | None = None
    """Keep the layers here instead of below the run directory, which often lies in RAM. Laid anew at each launch."""
    io_uring: bool = False
    """It may use io_uring, and can't be dumped while it does."""
    output_bytes: int = OUTPUT_BYTES
    """Of output.log, the newest so many stay."""
    restored: Restored | None = None
    """Start nothing, but have CRIU bring processes back; `argv` and `environment` are those they were started with."""

    def __post_init__(self) -> None:
        workload_name(self.name)
        if not (self.argv and self.argv[0]):
            raise BadInput(f"workload {self.name}: no command", hint="say what to run")
        if any("\0" in text for text in (*self.argv, *self.environment, *self.environment.values())):
            raise BadInput(f"workload {self.name}: a NUL byte in the command or its environment")
        if bad := [name for name in self.environment if not name or "=" in name]:
            raise BadInput(f"workload {self.name}: bad variable name {bad[0]!r}")
        for what, path in (("directory", self.directory), ("run directory", self.run_directory)):
            if not path.is_absolute() or ".." in path.parts:
                raise BadInput(f"workload {self.name}: the {what} {path} must be absolute and without '..'")
        if self.run_directory.name != self.name or len(self.run_directory.parts) < 4:
            raise BadInput(
                f"workload {self.name}: bad run directory {self.run_directory}", hint="use STATE/workloads/NAME"
            )
        if len(os.fsencode(self.run_directory / _LONGEST_SOCKET)) > _SOCKET_PATH_MAX:
            raise BadInput(
                f"workload {self.name}: the run directory {self.run_directory} is too long for a socket's path",
                hint="use a shorter state directory",
            )
        self._check_layers()
        if min(self.uid, self.gid, *self.groups) < 0:
            raise BadInput(f"workload {self.name}: a negative user or group number")

    def _check_layers(self) -> None:
        if self.layers_at is not None and (not self.layers_at.is_absolute() or ".." in self.layers_at.parts):
            raise BadInput(f"workload {self.name}: the directory {self.layers_at} must be absolute and without '..'")
        for layer in self.layers:
            if not layer.is_absolute() or ".." in layer.parts or len(layer.parts) < 2:
                raise BadInput(f"workload {self.name}: no layer can be laid over {layer}", hint="name a directory")
            for place in (self.run_directory, self.layers_at):
                if place is not None and place.is_relative_to(layer):
                    raise BadInput(
                        f"workload {self.name}: no layer can be laid over {layer}: {place}, where it would be kept, is in it"
                    )

    @property
    def state_directory(self) -> Path:
        return self.run_directory.parents[1]

    @property
    def layer_directories(self) -> list[tuple[Path, Path]]:
        """Of each layer: what is written, and a directory of the kernel's beside it."""
        base = self.layers_at or self.run_directory / LAYERS
        return [(base / str(number), base / f"{number}.work") for number in range(len(self.layers))]
