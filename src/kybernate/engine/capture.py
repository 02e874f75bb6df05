"""Capture: a paused workload is written into a store, GPU content and processes, and stays as it is.

    look -> (dump the processes, their memory into the store | write the extents) -> write the small images -> commit

The extents go from the pool's slots to the store without a copy of ours, the processes' memory from CRIU (`host_memory`).
Nothing is visible before `commit`, and nothing of the workload is changed by any of it: ending it is the caller's step, once
its ledger says that it lies there.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from kybernate import store
from kybernate.cuda import simulated
from kybernate.cuda.control import Control
from kybernate.cuda.hashing import HashKey
from kybernate.cuda.planning import NO_SLOT
from kybernate.engine.context import Clock, Parts, connections, every
from kybernate.engine.copies import HeldExtent, Manifest
from kybernate.engine.extracting import FULL
from kybernate.engine.host import Digests, driver_release, needs_of
from kybernate.engine.host_memory import IntoStore
from kybernate.engine.pause import FREEZE_SECONDS
from kybernate.engine.stored import HASHES, PROCESS, DescribedExtent, Kind, StoredGpu, pack_hashes, state_of
from kybernate.engine.target import Target, residual_pids
from kybernate.model.cancelling import Cancellation
from kybernate.model.errors import KybernateError, NoRoom, Unsupported
from kybernate.model.progress import ProgressCallback
from kybernate.model.types import CHUNK_BYTES, HostPid, StepTiming
from kybernate.process import images, procfs
from kybernate.process.connections import half_connections
from kybernate.process.dumping import DumpReport, dump
from kybernate.process.preflight import Connections, dumpable
from kybernate.process.sharing import describe
from kybernate.process.tree import Tree
from kybernate.store import SnapshotWriter, Space, open_writer

_SETTLE_S = 2.0
_POLL_S = 0.005
_RESERVE_BYTES = 64 << 20
"""Guessed for the processes' images in the progress, besides their memory."""


@dataclass(frozen=True, slots=True)
class StoredReport:
    """What a snapshot took. Sizes in bytes, times in seconds."""

    workload: str
    snapshot: str
    uid: str
    """The snapshot's own; its copies in other tiers share it."""
    tier: str
    """Where it lies, in words."""
    seconds: float
    bytes_total: int
    """Content of all extents and files, zeros included."""
    bytes_process: int
    """Of that, the processes' images."""
    bytes_stored: int
    """Really written: without zeros and what was there already, compressed."""
    frozen_s: float
    """How long the workload stood still for it; 0 where it was frozen anyway."""
    closed: tuple[str, ...]
    """Connections that were closed by choice, in a line each."""
    notes: tuple[str, ...]
    """What will be another in a workload that comes out of it, in a line each."""
    steps: tuple[StepTiming, ...]


@dataclass(slots=True)
class Capture:
    """One snapshot being taken."""

    parts: Parts
    target: Target
    manifest: Manifest
    space: Space
    snapshot: str
    kind: Kind
    scratch: Path
    digests: Digests
    labels: Mapping[str, str] = field(default_factory=dict)
    connections: Connections = Connections.REFUSE
    allow_changes: bool = False
    progress: ProgressCallback | None = None
    cancel: Cancellation | None = None
    keep: Callable[[store.Manifest, Path], None] | None = None
    """Gets the processes' images once the snapshot is there, as `Extracted` has them; else they are deleted."""
    clock: Clock = field(default_factory=Clock)

    def run(self) -> StoredReport:
        """Do it all.

        Raises:
            Unsupported: it can't be dumped; the message says why. Nothing was touched.
            Conflict: the snapshot's name is taken, or the workload has ended.
            KybernateError: a step failed; the workload is as it was, and there is no snapshot.
        """
        tree = self._tree()
        gpus = [simulation.path for simulation in simulated.present()]
        if problems := dumpable(
            tree,
            connections=self.connections,
            allow_changes=self.allow_changes,
            gpu_directories=[str(gpu) for gpu in gpus],
        ):
            raise Unsupported(f"workload {tree.name} can't be dumped: {'; '.join(problems)}")
        self._settle(tree)
        work, kept = self._work_directory(tree), False
        try:
            total = sum(held.copy.size for held in self.manifest.extents) + _memory_bytes(tree)
            with (
                open_writer(self.space, self.snapshot, total=total, progress=self.progress) as writer,
                self.cancel.forwarded_to(writer.cancel) if self.cancel is not None else nullcontext(),
            ):
                dumped, extents = self._write(tree, writer, work / PROCESS, [str(gpu) for gpu in gpus])
                record = images.verify(work / PROCESS, bulk_elsewhere=True)
                self.parts.faults.at("capture.dumped")
                with self.clock.step("write the dump"):
                    writer.add_directory(PROCESS, work / PROCESS)
                    writer.add_bytes(HASHES, pack_hashes([held.copy.hashes for held in self.manifest.extents]))
                self.parts.faults.at("capture.written")
                with self.clock.step("commit"):
                    stored_gpus = self._gpus(extents, tree)
                    committed = writer.commit(
                        state=state_of(
                            kind=self.kind,
                            workload=self.target.name,
                            backend=self.target.backend,
                            owner=record.launched.uid,
                            group=record.launched.gid,
                            gpus=stored_gpus,
                            key=self._key(),
                        ),
                        needs=needs_of(
                            record,
                            stored_gpus,
                            driver_release([copier.gpu for copier in self.parts.copiers.values()]),
                            self.digests,
                        ),
                        labels=self.labels,
                    )
                stored = writer.stored
            self.parts.faults.at("capture.committed")
            if self.keep is not None:
                kept = True
                self.keep(committed, work)
        finally:
            if not kept:
                shutil.rmtree(work, ignore_errors=True)
        return self._report(dumped, record.bytes, committed.uid, committed.size, stored)

    def _work_directory(self, tree: Tree) -> Path:
        """For the dump."""
        try:
            return Path(tempfile.mkdtemp(prefix=f"capture-{tree.name}-", dir=self.scratch))
        except OSError as e:
            text = f"the processes of {tree.name} can't be dumped into {self.scratch}: {e.strerror}"
            raise (NoRoom(text) if e.errno in FULL else KybernateError(text)) from e

    def _write(
        self, tree: Tree, writer: SnapshotWriter, directory: Path, gpu_directories: Sequence[str]
    ) -> tuple[DumpReport, list[DescribedExtent]]:
        """What is large: extents and processes, at the same time."""
        sink = IntoStore(writer)
        dumping = self.parts.executor.submit(self._dump, tree, sink, directory, gpu_directories)
        try:
            with self.clock.step("write"):
                extents = self._write_extents(tree, writer)
            with self.clock.step("dump"):
                dumped = dumping.result()
                sink.add()
                return dumped, extents
        except BaseException:
            writer.cancel()
            dumping.exception()  # it writes into the directory
            raise

    def _dump(self, tree: Tree, sink: IntoStore, directory: Path, gpu_directories: Sequence[str]) -> DumpReport:
        report = dump(
            tree,
            directory,
            sink=sink,
            hold=True,
            connections=self.connections,
            allow_changes=self.allow_changes,
            gpu_directories=gpu_directories,
        )
        # Some GB of libraries are read for their hashes, the first time: now, while the extents are written.
        needs_of(report.record, (), None, self.digests)
        return report

    def _tree(self) -> Tree:
        if not isinstance(self.target.tree, Tree):
            raise Unsupported(
                f"{self.target.name} was not started by Kybernate, so its processes can't be stored",
                hint="start it with `kybernate run`",
            )
        return self.target.tree

    def _settle(self, tree: Tree) -> None:
        """Let go of what an agent that died had open to processes that it froze: its own ends closed, theirs can't be dumped."""
        if not tree.frozen or not half_connections(tree):
            return
        with self.clock.step("settle"):
            tree.thaw()
            try:
                with connections(self.target.processes) as controls:
                    every(self.parts.executor, Control.hang_up, list(controls.values()))
                deadline = time.monotonic() + _SETTLE_S
                while half_connections(tree) and time.monotonic() < deadline:
                    time.sleep(_POLL_S)
            finally:
                tree.freeze(FREEZE_SECONDS)

    def _write_extents(self, tree: Tree, writer: SnapshotWriter) -> list[DescribedExtent]:
        inside: dict[HostPid, int] = {}
        extents = []
        for held in self.manifest.extents:
            if held.pid not in inside:
                inside[held.pid] = self._inside(tree, held.pid)
            extent = _extent(held, inside[held.pid])
            pool = self.parts.pool
            views = [None if slot == NO_SLOT else pool.view(slot) for slot in held.copy.slots.tolist()]
            writer.add_extent(views, about=extent.about())
            extents.append(extent)
        return extents

    def _inside(self, tree: Tree, pid: HostPid) -> int:
        number = tree.inside_pid(pid)
        if number is None:
            raise KybernateError(f"process {pid} of {self.target.name} has ended while it was paused")
        return number

    def _gpus(self, extents: Sequence[DescribedExtent], tree: Tree) -> list[StoredGpu]:
        """Those it has memory on; all there are where only the driver knows."""
        used = {extent.gpu for extent in extents}
        everywhere = not used and bool(residual_pids(tree))
        return [
            StoredGpu(uuid=uuid, index=copier.gpu.index, name=copier.gpu.name, memory_bytes=copier.gpu.total_bytes)
            for uuid, copier in self.parts.copiers.items()
            if everywhere or uuid in used
        ]

    def _key(self) -> HashKey:
        if self.manifest.key is not None:
            return self.manifest.key
        return next(iter(self.parts.copiers.values())).key

    def _report(self, dumped: DumpReport, process: int, uid: str, total: int, stored: int) -> StoredReport:
        return StoredReport(
            workload=self.target.name,
            snapshot=self.snapshot,
            uid=uid,
            tier=self.space.medium.where,
            seconds=self.clock.seconds,
            bytes_total=total,
            bytes_process=process,
            bytes_stored=stored,
            frozen_s=dumped.frozen_s,
            closed=dumped.closed,
            notes=(*dumped.notes, *(describe(dumped.record.shared) if self.kind is Kind.IMAGE else ())),
            steps=tuple(self.clock.steps),
        )


def _extent(held: HeldExtent, inside: int) -> DescribedExtent:
    assert len(held.copy.slots) * CHUNK_BYTES == held.copy.size
    return DescribedExtent(inside, held.id, held.address, held.gpu, held.copy.rdma, held.copy.size)


def _memory_bytes(tree: Tree) -> int:
    """About as much as the processes' images will have, for the progress."""
    return _RESERVE_BYTES + sum(procfs.own_bytes(pid) for pid in tree.pids())
