"""The part of the engine that deals with stores: what is written there, read from there, and kept ready in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kybernate.cuda.copying import ExtentCopy
from kybernate.engine.capture import Capture, StoredReport
from kybernate.engine.context import Parts
from kybernate.engine.extracting import Extracted
from kybernate.engine.host import Digests, this_host
from kybernate.engine.pooled import HostCopy, Pooled, StagedView
from kybernate.engine.reviving import Reviving
from kybernate.engine.staging import Stager, StageReport
from kybernate.engine.stored import Described, Kind, describe
from kybernate.engine.target import Target
from kybernate.model.cancelling import Cancellation
from kybernate.model.errors import BadInput, Conflict, NotFound, Unsupported
from kybernate.model.progress import ProgressCallback
from kybernate.model.types import Depth, WorkloadName
from kybernate.process.preflight import Connections
from kybernate.process.specs import Network
from kybernate.process.tree import Tree, attach
from kybernate.store import Manifest, Space, differences

log = logging.getLogger(__name__)


class Storing:
    """See the module; `Engine` is one. Thread-safe for different workloads."""

    def __init__(self, parts: Parts, scratch: Path | None) -> None:
        self._parts = parts
        self._extracted = None if scratch is None else Extracted(scratch)
        self._pooled = Pooled(parts.pool, unstaged=self._unstaged)
        self._stager = Stager(parts, self._pooled)
        self._digests = Digests()

    def _unstaged(self, uid: str) -> None:
        if self._extracted is not None:
            self._extracted.drop(uid)

    def _not_staged(self, uid: str) -> None:
        """Images are kept beside what is staged: without it nothing would ever delete them."""
        if not self.is_staged(uid):
            self._unstaged(uid)

    def snapshot(
        self,
        target: Target,
        space: Space,
        snapshot: str,
        *,
        kind: Kind = Kind.PARKED,
        labels: Mapping[str, str] | None = None,
        progress: ProgressCallback | None = None,
        cancel: Cancellation | None = None,
        connections: Connections = Connections.REFUSE,
        allow_changes: bool = False,
    ) -> StoredReport:
        """Write a workload that is paused at depth zero into a store. It stays as it is; so it does when this fails.

        An image is staged with it: all of it lies in the pool and on the disk just now, so that clones need not read it.

        Raises:
            Conflict: it isn't paused so, or the snapshot's name is taken.
            Unsupported: it can't be dumped; the message says why.
            NoRoom: the store's budget or disk is too small.
            Damaged, TierAway, WrongKey, Cancelled: the store's. KybernateError: a step failed.
        """
        copy = self._pooled.get(target.name)
        if copy is None or not copy.paused or copy.manifest.depth is not Depth.ZERO or not copy.manifest.complete:
            raise Conflict(
                f"workload {target.name} is not paused at depth zero", hint=f"`kybernate pause {target.name}` first"
            )
        return Capture(
            parts=self._parts,
            target=target,
            manifest=copy.manifest,
            space=space,
            snapshot=snapshot,
            kind=kind,
            scratch=self._images().scratch,
            digests=self._digests,
            labels=labels or {},
            connections=connections,
            allow_changes=allow_changes,
            progress=progress,
            cancel=cancel,
            keep=(lambda manifest, dumped: self._keep(copy, manifest, dumped)) if kind is Kind.IMAGE else None,
        ).run()

    def _keep(self, copy: HostCopy, manifest: Manifest, dumped: Path) -> None:
        """`dumped`: where the processes' images lie."""
        copies = [
            ExtentCopy(held.copy.size, held.copy.rdma, held.copy.slots.copy(), held.copy.hashes.copy())
            for held in copy.manifest.extents
        ]
        self._images().adopt(manifest.uid, dumped)  # before it is staged, since it goes with what is staged
        try:
            self._stager.adopt(manifest, copies)
        except Exception:  # the image is there; without this its first clone takes longer
            log.exception("image %s could not be staged", manifest.name)
            self._not_staged(manifest.uid)

    def describe(self, space: Space, snapshot: str) -> Described:
        """What a snapshot is of. Raises NotFound, Damaged, TooNew, WrongKey, TierAway."""
        return describe(space.manifest(snapshot))

    def refusals(self, space: Space, snapshot: str) -> list[str]:
        """Why a snapshot can't be resumed or cloned on this host, a sentence each; empty when it can.

        Reads the files it needs to compare them, each once. Raises as `describe`.
        """
        return self._refusals(space.manifest(snapshot))

    def _refusals(self, manifest: Manifest) -> list[str]:
        described = describe(manifest)
        lines = differences(manifest.needs, this_host(self._parts.copiers), digest_of=self._digests.of)
        if missing := sorted({extent.gpu for extent in described.extents} - set(self._parts.copiers)):
            lines.append(f"it has memory on {missing[0]}, which isn't here")
        return lines

    def stage(
        self,
        space: Space,
        snapshot: str,
        *,
        progress: ProgressCallback | None = None,
        cancel: Cancellation | None = None,
    ) -> StageReport:
        """Read a snapshot's GPU content into the pool, so that it can be resumed from RAM. Nothing is done where it is there.

        Raises:
            NoRoom: the pool is too small; the message holds the numbers, nothing was read.
            NotFound, Damaged, TooNew, WrongKey, TierAway, Cancelled: the store's; nothing is left in the pool.
        """
        began = time.perf_counter()
        manifest = space.manifest(snapshot)
        staged, read = self._stager.stage(space, manifest, progress=progress, cancel=cancel)
        self._pooled.unhold(staged)
        return StageReport(manifest.uid, manifest.name, read, time.perf_counter() - began)

    def staged(self) -> list[StagedView]:
        """Snapshots that are staged, least recently used first."""
        return self._pooled.staged()

    def is_staged(self, uid: str) -> bool:
        return any(view.uid == uid for view in self._pooled.staged())

    def drop_staged(self, uid: str) -> int:
        """Forget a staged snapshot unless it is being used. Returns the bytes of pool that became free."""
        return self._pooled.drop_staged(uid)

    def revive(
        self,
        space: Space,
        snapshot: str,
        name: WorkloadName,
        *,
        run_directory: Path,
        layers_at: Path | None = None,
        network: Network | None = None,
        progress: ProgressCallback | None = None,
        cancel: Cancellation | None = None,
        keep_staged: bool = False,
    ) -> Tree:
        """Make a workload of a snapshot, paused in RAM, for `resume`. Opens the broker's socket in its run directory.

        Args:
            run_directory: as for a launch.
            layers_at, network: as for a launch; None: as it was.
            keep_staged: leave the content staged, for further clones; they share it until they change it.

        Raises:
            BadInput: this host lacks what it needs; a sentence for each thing. Nothing was begun.
            Conflict: a workload of that name is there.
            NoRoom, NotFound, Damaged, TooNew, WrongKey, TierAway, Cancelled: as `stage`.
            KybernateError: CRIU failed; the message says why. Whatever it was, nothing is left behind.
        """
        manifest = space.manifest(snapshot)
        if self._pooled.get(name) is not None:
            raise Conflict(f"workload {name} has content in the pool already", hint="stop it, or choose another name")
        with suppress(NotFound):
            if attach(run_directory).alive:
                raise Conflict(f"workload {name} runs", hint="stop it, or choose another name")
        if lines := self._refusals(manifest):
            raise BadInput(f"snapshot {snapshot} can't run here: {'; '.join(lines)}")
        reviving = Reviving(
            parts=self._parts,
            pooled=self._pooled,
            stager=self._stager,
            space=space,
            stored=manifest,
            described=describe(manifest),
            name=name,
            run_directory=run_directory,
            extracted=self._images(),
            layers_at=layers_at,
            network=network,
            keep_staged=keep_staged,
            progress=progress,
            cancel=cancel,
        )
        try:
            tree = reviving.run()
        except BaseException:
            self._not_staged(manifest.uid)
            raise
        if not keep_staged:
            self._pooled.drop_staged(manifest.uid)
        return tree

    def _images(self) -> Extracted:
        if self._extracted is None:
            raise Unsupported("this engine was given no directory for processes' images")
        return self._extracted
