"""Bring a dumped workload back, here or elsewhere, once or many times at once.

Each restore makes a new house (supervisor, namespaces, cgroup, run directory, /dev/shm, layers) and has CRIU bring the
dumped processes back in it, with the pids they had. They see what they saw: their run directory at its old path, and in
it a new output.log, new sockets and a new identity.env, by which a clone can tell that it is one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kybernate.model.errors import BadInput, Conflict, KybernateError
from kybernate.model.types import WorkloadName
from kybernate.process import (
    archives,
    criu_commands,
    criu_images,
    images,
    kernel_setting,
    kernel_state,
    needs,
    sharing,
)
from kybernate.process.bulk import Source, is_bulk
from kybernate.process.criu import Criu, find_criu
from kybernate.process.directory_bulk import DirectoryBulk
from kybernate.process.image_server import Serving
from kybernate.process.image_stream import PIPE_BYTES, Whole
from kybernate.process.images import Shared, TreeRecord
from kybernate.process.launching import launch
from kybernate.process.specs import OUTPUT_BYTES, LaunchSpec, Network, Restored
from kybernate.process.tree import Tree

LOG = "restore.log"
_TIMEOUT_S = 60.0
_SLOWEST_BYTES_S = 100 << 20
FILES_BYTES = 192 << 20
"""So much memory is given to CRIU in files, which lie beside its log meanwhile: out of a pipe it can't place pages where they
belong at once, but moves each mapping there. Measured, 65,000 mappings take 2.3 s instead of 0.3."""
_TURN = threading.Lock()


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
    source: Source | None = None,
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
        source: where its bulk comes from; None: it lies in the directory, too.
        layers_at: as for a launch.
        network: None: as it was.
        output_bytes: as for a launch.
        timeout_s: None: a minute, and more for a large dump.

    Raises:
        NotFound, BadInput: the dump isn't whole, or a file that it needs is missing here; nothing was done.
        Conflict: a workload of that name runs; or another life has a Unix socket or a lock that this one had.
        Unsupported: no root, no CRIU; or its connections have bytes to send, and this kernel can't hold packets back.
        KybernateError: CRIU failed; the message says why. Nothing is left behind.
        whatever the source raised.
    """
    began = time.monotonic()
    record = images.verify(images_directory, bulk_elsewhere=source is not None)
    given = _Given(images_directory, source or DirectoryBulk(images_directory), record)
    if lacking := [*needs.differences(record.needs), *sharing.missing(record.shared)]:
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
            shared_memory_bytes=record.files.get(images.SHARED_MEMORY, 0),
            control=images.CONTROL,
            layers=[images.layer_archive(number) for number in range(len(launched.layers))],
            lay=given.lay,
            serving=given.serving,
            command=lambda work: criu_commands.restore_arguments(program, work=work, stream=given.streams),
            failure=lambda work: criu_commands.sentence(work / LOG),
            came_back=lambda work: notes.extend(kernel_setting.notes(work)),
            timeout_s=timeout_s or _TIMEOUT_S + record.bytes / _SLOWEST_BYTES_S,
        ),
    )
    try:
        with _in_turn(name, record.shared):
            _make_mount_point(spec, Path(record.state_directory))
            tree = launch(spec)
    except (tarfile.TarError, OSError, KybernateError) as e:
        if isinstance(cause := given.error, KybernateError):  # CRIU knows only that there came no more
            raise cause from e
        if isinstance(e, KybernateError):
            raise
        raise KybernateError(f"workload {name} could not be restored: {cause or e}") from e
    if (error := given.error) is not None:  # CRIU took what came to an end too early for the whole
        tree.remove()
        if isinstance(error, KybernateError):
            raise error
        raise KybernateError(f"workload {name} could not be restored: {error}") from error
    return RestoreReport(tree=tree, record=record, seconds=time.monotonic() - began, notes=tuple(notes))


class _Given:
    """The files of a dump, for one restore."""

    def __init__(self, directory: Path, source: Source, record: TreeRecord) -> None:
        self._directory = directory
        self._source = source
        self._record = record
        self._errors: list[BaseException] = []

    @property
    def error(self) -> BaseException | None:
        """What went wrong first on this side of the pipes."""
        return self._errors[0] if self._errors else None

    @property
    def streams(self) -> bool:
        """Whether CRIU gets its images out of pipes."""
        return sum(size for name, size in self._record.files.items() if is_bulk(name)) > FILES_BYTES

    @contextlib.contextmanager
    def serving(self, at: Path) -> Iterator[None]:
        """See `Restored.serving`."""
        if not self.streams:
            self._lay_files(at)
        server = Serving(
            at,
            directory=self._directory,
            source=self._source,
            names=self._record.files,
            zeros=self._record.zeros,
        )
        try:
            with server:
                yield
        finally:
            if server.error is not None:
                self._errors.append(server.error)

    def lay(self, archive: str, directory: Path) -> None:
        """See `Restored.lay`."""
        with self._given(archive) as file:
            archives.lay(file, directory)

    def _lay_files(self, at: Path) -> None:
        for name in self._record.files:
            if not is_bulk(name):
                try:
                    os.link(self._directory / name, at / name)
                except OSError:  # another file system
                    shutil.copyfile(self._directory / name, at / name)
            elif not name.endswith(".tar"):
                with self._given(name) as file, (at / name).open("xb") as out:
                    shutil.copyfileobj(file, out, PIPE_BYTES)

    @contextlib.contextmanager
    def _given(self, name: str) -> Iterator[Whole]:
        """One of the bulk, as CRIU reads it."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        zeros = self._record.zeros.get(name, ())

        def send() -> None:
            try:
                self._source.send(name, writer, zeros)
            except BaseException as e:  # it belongs to who restores
                self._errors.append(e)
            finally:
                os.close(writer)

        sending = threading.Thread(target=send, name=f"kybernate-{name}")
        sending.start()
        try:
            with Whole(reader, self._record.files.get(name, 0) + sum(length for _, length in zeros)) as file:
                yield file
                file.finish()
        finally:
            sending.join()


@contextlib.contextmanager
def _in_turn(name: WorkloadName, shared: Sequence[Shared]) -> Iterator[None]:
    """One restore after the other, where lives would get in each other's way: CRIU makes a deleted file again at its old path,
    for a moment, and between a look at a lock and taking it nobody else may.

    Raises:
        Conflict: somebody holds what it would need.
    """
    with _TURN if any(each.exclusive for each in shared) else contextlib.nullcontext():
        if held := sharing.held_by_others(shared):
            more = f", and {len(held) - 3} more" if len(held) > 3 else ""
            raise Conflict(
                f"workload {name} can't be restored while another life has what it had: {'; '.join(held[:3])}{more}",
                hint="end that program; or have a layer there (--private-tmp for /tmp), of which each life has its own",
            )
        yield


def _make_mount_point(spec: LaunchSpec, around: Path) -> None:
    """The processes know paths below the state directory they were launched under; something must be there to cover.

    It is left there, empty: other clones may have theirs mounted on it, and lose that if it is deleted.
    """
    if not around.is_relative_to(spec.state_directory):
        try:
            around.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise BadInput(f"workload {spec.name} can't be restored: can't make {around}: {e.strerror}") from e
