"""Bring a dumped workload back, here or elsewhere, once or many times at once.

Each restore makes a new house (supervisor, namespaces, cgroup, run directory, /dev/shm, layers) and has CRIU bring the
dumped processes back in it, with the pids they had. They see what they saw: their run directory at its old path, and in
it a new output.log, new sockets and a new identity.env, by which a clone can tell that it is one.
"""

from __future__ import annotations

import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from kybernate.model.errors import BadInput, KybernateError
from kybernate.model.types import WorkloadName
from kybernate.process import criu_commands, criu_images, images, kernel_setting, kernel_state, needs
from kybernate.process.criu import Criu, find_criu
from kybernate.process.images import TreeRecord
from kybernate.process.launching import launch
from kybernate.process.specs import OUTPUT_BYTES, LaunchSpec, Network, Restored
from kybernate.process.tree import Tree

LOG = "restore.log"
_TIMEOUT_S = 60.0
_SLOWEST_BYTES_S = 100 << 20


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did. Times in seconds."""

    tree: Tree
    record: TreeRecord
    seconds: float
    notes: tuple[str, ...]
    """What of it could not be set again as it was, in a line each."""


def restore(
    images_directory: Path,
    *,
    name: WorkloadName,
    run_directory: Path,
    layers_at: Path | None = None,
    network: Network | None = None,
    output_bytes: int = OUTPUT_BYTES,
    criu: Criu | None = None,
    timeout_s: float | None = None,
) -> RestoreReport:
    """Restore a dump as the workload `name`. When this returns, its processes run.

    Args:
        images_directory: a dump; it is only read, so any number may be restored from it at once.
        run_directory: STATE/workloads/NAME, as for a launch; it need not be where the dumped one was.
        layers_at: as for a launch.
        network: None: as it was.
        output_bytes: as for a launch.
        timeout_s: None: a minute, and more for a large dump.

    Raises:
        NotFound, BadInput: the dump isn't whole, or a file that it needs is missing here; nothing was done.
        Conflict: a workload of that name runs.
        Unsupported: no root, no CRIU; or its connections have bytes to send, and this kernel can't hold packets back.
        KybernateError: CRIU failed; the message says why. Nothing is left behind.
    """
    began = time.monotonic()
    record = images.verify(images_directory)
    if lacking := needs.differences(record.needs):
        more = f", and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise BadInput(f"workload {name} can't be restored here: {'; '.join(lacking[:3])}{more}")
    criu = criu or find_criu()
    program = criu.path.resolve()
    launched = record.launched
    kernel_state.read(images_directory)  # while nothing is done yet
    notes: list[str] = []
    spec = LaunchSpec(
        name=name,
        argv=launched.argv,
        run_directory=run_directory,
        directory=Path(launched.directory),
        environment=launched.environment,
        uid=launched.uid,
        gid=launched.gid,
        groups=launched.groups,
        network=network or Network(launched.network),
        layers=[Path(layer) for layer in launched.layers],
        layers_at=layers_at,
        output_bytes=output_bytes,
        restored=Restored(
            images=images_directory,
            pid=record.main_inside,
            last_pid=record.last_inside,
            unsent=criu_images.unsent(images_directory),
            run_directory=Path(record.run_directory),
            state_directory=Path(record.state_directory),
            shared_memory=images.SHARED_MEMORY,
            control=images.CONTROL,
            layers=[images.layer_archive(number) for number in range(len(launched.layers))],
            command=lambda images_, work: criu_commands.restore_arguments(program, images=images_, work=work),
            failure=lambda work: criu_commands.sentence(work / LOG),
            came_back=lambda work: notes.extend(kernel_setting.notes(work)),
            timeout_s=timeout_s or _TIMEOUT_S + record.bytes / _SLOWEST_BYTES_S,
        ),
    )
    _make_mount_point(spec, Path(record.state_directory))
    try:
        tree = launch(spec)
    except (tarfile.TarError, OSError) as e:
        raise KybernateError(f"workload {name} could not be restored: {e}") from e
    return RestoreReport(tree=tree, record=record, seconds=time.monotonic() - began, notes=tuple(notes))


def _make_mount_point(spec: LaunchSpec, around: Path) -> None:
    """The processes know paths below the state directory they were launched under; something must be there to cover.

    It is left there, empty: other clones may have theirs mounted on it, and lose that if it is deleted.
    """
    if not around.is_relative_to(spec.state_directory):
        try:
            around.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise BadInput(f"workload {spec.name} can't be restored: can't make {around}: {e.strerror}") from e
