"""Reviving: a stored workload's processes are brought back, paused, with its content in the pool.

    look -> (stage | extract the small images -> CRIU, which is given the memory) -> freeze -> bind -> save the manifest

What comes out is an ordinary workload that is paused in RAM, whether this agent resumes it or a later one. Its processes
have run for a moment before they are frozen, up to the gates of their first GPU call. Until its manifest is saved, a
failure takes everything back.
"""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from kybernate import store
from kybernate.cuda.copying import ExtentCopy
from kybernate.engine.context import Parts
from kybernate.engine.copies import HeldExtent, Manifest
from kybernate.engine.extracting import Extracted
from kybernate.engine.host_memory import FromStore, is_whole
from kybernate.engine.pause import FREEZE_SECONDS
from kybernate.engine.pooled import HostCopy, Pooled, Staged
from kybernate.engine.staging import Stager
from kybernate.engine.stored import Described
from kybernate.engine.undo import UndoStack
from kybernate.model.cancelling import Cancellation
from kybernate.model.errors import KybernateError
from kybernate.model.progress import ProgressCallback
from kybernate.model.types import Depth, HostPid, WorkloadName
from kybernate.process.restoring import restore
from kybernate.process.specs import Network
from kybernate.process.tree import BROKER_SOCKET, Tree
from kybernate.store import open_reader

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Reviving:
    """One revival under way."""

    parts: Parts
    pooled: Pooled
    stager: Stager
    space: store.Space
    stored: store.Manifest
    described: Described
    name: WorkloadName
    run_directory: Path
    extracted: Extracted
    layers_at: Path | None = None
    network: Network | None = None
    keep_staged: bool = False
    progress: ProgressCallback | None = None
    cancel: Cancellation | None = None
    undo: UndoStack = field(default_factory=UndoStack)

    def run(self) -> Tree:
        """Do it all.

        Raises:
            NoRoom: the pool is too small for its content.
            Conflict: a workload of that name runs.
            Damaged, TierAway, Cancelled: the store's. Anything else but Damaged says nothing against the snapshot.
            KybernateError: CRIU failed, or another step. Nothing is left behind, whatever it was.
        """
        staging = self.parts.executor.submit(
            self.stager.stage, self.space, self.stored, progress=self.progress, cancel=self.cancel
        )
        try:
            tree = self._restore(staging)
            staged, _ = staging.result()
            self._save(tree, staged)
            self.undo.commit()
        except BaseException as e:
            failed = staging.exception()  # it may fail for its own part, and let go is what it holds
            self.undo.roll_back()
            if isinstance(failed, store.Damaged) and not isinstance(e, store.Damaged):
                raise failed from e  # this no other attempt mends
            raise
        finally:
            if staging.exception() is None:
                self.pooled.unhold(staging.result()[0])
        self.parts.faults.at("revive.saved")
        return tree

    def _restore(self, staging: Future[tuple[Staged, int]]) -> Tree:
        with (
            self.extracted.using(self.space, self.stored, keep=self.keep_staged, cancel=self.cancel) as images,
            open_reader(self.space, self.stored.name, progress=self.progress) as reader,
            self.cancel.forwarded_to(reader.cancel) if self.cancel is not None else nullcontext(),
        ):
            if not self.run_directory.exists():
                self.undo.push("delete its run directory", self._delete_run_directory)
                self.run_directory.mkdir(mode=0o755, parents=True)
            # Before any of its processes runs: they may ask for memory at once.
            self.parts.broker.listen(
                self.name, self.run_directory / BROKER_SOCKET, uid=self.described.owner, gid=self.described.group
            )
            self.undo.push("stop listening", lambda: self.parts.broker.stop_listening(self.name))
            if self.cancel is not None:
                self.cancel.check(f"reviving {self.name}")
            if staging.done():
                staging.result()  # where that failed, no process need be made
            restored = restore(
                images,
                name=self.name,
                run_directory=self.run_directory,
                source=None if is_whole(self.stored, images) else FromStore(reader),
                layers_at=self.layers_at,
                network=self.network,
                output_bytes=self.parts.output_bytes,
            )
        tree = restored.tree
        self.undo.push("end its processes", tree.remove)
        for note in restored.notes:
            log.warning("workload %s is not as it was: %s", self.name, note)
        tree.freeze(FREEZE_SECONDS)
        self.parts.faults.at("revive.restored")
        return tree

    def _delete_run_directory(self) -> None:
        try:
            shutil.rmtree(self.run_directory)
        except FileNotFoundError:
            pass
        except OSError as e:
            raise KybernateError(f"can't delete {self.run_directory}: {e.strerror} ({e.filename})") from e

    def _save(self, tree: Tree, staged: Staged) -> None:
        """From here on it is a workload that is paused in RAM."""
        pids: dict[int, HostPid] = {}
        for extent in self.described.extents:
            if extent.pid not in pids:
                pids[extent.pid] = self._host_pid(tree, extent.pid)
        extents = [
            HeldExtent(
                pid=pids[extent.pid],
                id=extent.id,
                address=extent.address,
                gpu=extent.gpu,
                copy=ExtentCopy(copy.size, copy.rdma, copy.slots.copy(), copy.hashes.copy()),
                done=True,
            )
            for extent, copy in zip(self.described.extents, staged.copies, strict=True)
        ]
        own = next(iter(self.parts.copiers.values())).key
        foreign = None if self.described.key == own else self.described.key
        manifest = Manifest(self.name, Depth.ZERO, extents, key=foreign)
        slots = manifest.slots()
        self.parts.pool.share(slots)
        self.undo.push("give back pool slots", lambda: self.pooled.drop(self.name))
        self.pooled.put(self.name, HostCopy(manifest, paused=True))
        self.undo.push("remove the manifest", lambda: self.parts.store.remove(self.name))
        self.parts.store.save(manifest)

    def _host_pid(self, tree: Tree, inside: int) -> HostPid:
        pid = tree.host_pid(inside)
        if pid is None:
            raise KybernateError(f"process {inside} of {self.described.snapshot} was not brought back")
        return pid
