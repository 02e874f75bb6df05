"""Resume: a paused workload gets VRAM and goes on where it stopped.

    create extents -> thaw -> restore, unlock -> map -> open
      `--> fill, check ---------------------´

Extents are created first: a GPU without room refuses before anything of the workload was touched. They are made piece by
piece and filled from the first one on; where another workload is just leaving (`grant`), as its memory becomes free. Filling
and the residual's restore run at the same time. Before the gates open the GPU hashes what it was filled with and compares it
with the manifest. The host copy stays in the pool afterwards, as the clean copy of the next pause.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue

from kybernate.cuda import residual, wire
from kybernate.cuda.control import Control
from kybernate.cuda.copying import Batch, CopyEngine, CopyStats, ExtentCopy
from kybernate.cuda.extents import Extent
from kybernate.cuda.packets import close_all
from kybernate.cuda.planning import Hashes
from kybernate.cuda.residual import ResidualState
from kybernate.engine.context import Clock, Parts, connections, every, roll_back
from kybernate.engine.copies import HeldExtent, Manifest
from kybernate.engine.endings import has_ended
from kybernate.engine.pause import FREEZE_SECONDS
from kybernate.engine.progress import Progress
from kybernate.engine.target import Target, residual_pids
from kybernate.engine.undo import UndoStack
from kybernate.model.errors import KybernateError
from kybernate.model.types import ExtentId, GpuUuid, HostPid, SwitchReport

PIECE_BYTES = 2 << 30
"""Created and filled at a time where VRAM comes piece by piece: long enough to hide the making of the next."""

CHECK_BYTES = 4 << 30
"""Checked at a time, while later extents are still being filled."""

VramGrant = Callable[[GpuUuid, int], None]
"""Blocks until so many bytes of VRAM may be taken; raises NoRoom when that won't be."""


class ContentDiffers(KybernateError):
    """What came back to VRAM is not what had left it."""


@dataclass(slots=True)
class Line:
    """One GPU's extents on their way from being made to being filled."""

    gpu: GpuUuid
    extents: Sequence[HeldExtent]
    ready: SimpleQueue[Batch | BaseException | None] = field(default_factory=SimpleQueue)
    """None: that was all."""

    def batches(self) -> Iterator[Batch]:
        while (batch := self.ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch


@dataclass(slots=True)
class ResumeOperation:
    """One resume under way."""

    parts: Parts
    target: Target
    manifest: Manifest
    timeout_s: float
    grant: VramGrant | None = None
    unmanaged: Mapping[GpuUuid, int] = field(default_factory=dict)
    """Bytes that processes without our library had: the driver's restore takes them for itself."""
    progress: Progress | None = None
    clock: Clock = field(default_factory=Clock)
    undo: UndoStack = field(default_factory=UndoStack)
    made: dict[ExtentId, Extent] = field(default_factory=dict)
    fds: dict[ExtentId, int] = field(default_factory=dict)
    """Descriptors to hand to the processes, made while the rest is filled."""
    begun: threading.Event = field(default_factory=threading.Event)
    """The first of the room has come, or none will."""
    lines: list[Line] = field(default_factory=list)
    making: list[Future[None]] = field(default_factory=list)
    filling: list[Future[CopyStats]] = field(default_factory=list)
    exporting: list[Future[None]] = field(default_factory=list)
    rehashed: dict[ExtentId, Hashes] = field(default_factory=dict)
    """Under this agent's own key, where the manifest's is another's: so that the copy counts as clean from now on."""
    committed: bool = False
    """The processes have all of their memory: from here on it runs, whatever happens."""

    @property
    def extents(self) -> list[Extent]:
        """In the manifest's order."""
        return [self.made[held.id] for held in self.manifest.extents]

    def run(self) -> SwitchReport:
        """Do it all.

        Raises:
            NoRoom: VRAM is too small; the workload is paused as before.
            WorkloadLost: the driver could not restore a process.
            ProgramEnded: one of its processes ended meanwhile.
            KybernateError: a step failed and was undone; the workload is paused as before.
        """
        self._refuse_unreachable()
        with ExitStack() as hanging_up:  # after the undo, which has to talk to the processes too
            hanging_up.callback(lambda: close_all(self.fds.values()))
            try:
                self._create()
                self._thaw()
                stats = self._fill_and_restore()
                controls = hanging_up.enter_context(connections(self.target.processes))
                self._map(controls)
                self._open(controls)
            except Exception as error:
                self._settle()
                reported = roll_back(self.undo, error, committed=self.committed, target=self.target, doing="resumed")
                if reported is not error:
                    raise reported from error.__cause__
                raise
        return self._report(stats)

    def _refuse_unreachable(self) -> None:
        """A process that can't be given its memory must not be let go on without it."""
        reachable = {process.pid for process in self.target.processes}
        if missing := {held.pid for held in self.manifest.extents} - reachable:
            raise KybernateError(
                f"process {min(missing)} of {self.target.name} has no control socket any more",
                hint="it was removed from its run directory; stop the workload",
            )

    def _thaw(self) -> None:
        with self.clock.step("thaw"):
            if self.target.tree.frozen:
                self.undo.push("freeze", self._freeze_again)
                self.target.tree.thaw()
        self.parts.faults.at("resume.thawed")

    def _freeze_again(self) -> None:
        if self.target.tree.pids():
            self.target.tree.freeze(FREEZE_SECONDS)

    def _create(self) -> None:
        """Begin to fill, and with all the room there, make everything: what doesn't fit fails here."""
        self.undo.push("free the new extents", lambda: self.parts.broker.drop(list(self.made.values())))
        groups: dict[GpuUuid, list[HeldExtent]] = defaultdict(list)
        for held in self.manifest.extents:
            groups[held.gpu].append(held)
        submit = self.parts.executor.submit
        self.lines = [Line(gpu, extents) for gpu, extents in groups.items()]
        self.filling = [submit(self._fill, line) for line in self.lines]
        with self.clock.step("create"):
            if self.grant is not None:
                self.making = [submit(self._make_all, line) for line in self.lines]
            else:
                for line in self.lines:
                    self._make_all(line)
        self.parts.faults.at("resume.created")

    def _make_all(self, line: Line) -> None:
        """All extents of one GPU, for `_fill` to take; piece by piece as room comes."""
        try:
            for piece in pieces(line.extents):
                if self.grant is not None:
                    self.grant(line.gpu, sum(held.copy.size for held in piece))
                self.begun.set()
                line.ready.put(self._make(piece))
            line.ready.put(None)
        except BaseException as error:
            line.ready.put(error)
            raise
        finally:
            self.begun.set()

    def _make(self, wanted: Sequence[HeldExtent]) -> Batch:
        alike: dict[tuple[HostPid, GpuUuid, bool], list[HeldExtent]] = defaultdict(list)
        for held in wanted:
            alike[held.pid, held.gpu, held.copy.rdma].append(held)
        for (pid, gpu, rdma), group in alike.items():
            extents = self.parts.broker.create(
                workload=self.target.name,
                pid=pid,
                gpu=self.parts.copiers[gpu].gpu,
                sizes=[held.copy.size for held in group],
                ids=[held.id for held in group],
                rdma=rdma,
            )
            self.made.update((extent.id, extent) for extent in extents)
        mine = [self.made[held.id] for held in wanted]
        self.exporting.append(self.parts.executor.submit(self._export, mine))
        return mine, [held.copy for held in wanted]

    def _export(self, extents: Sequence[Extent]) -> None:
        """A descriptor takes the driver a millisecond: made while the content comes."""
        for extent in extents:
            self.fds[extent.id] = self.parts.broker.export(extent)

    def _fill_and_restore(self) -> list[CopyStats]:
        if self.grant is not None and self.making:
            # The one that leaves is being checkpointed until then: the driver does the two at once in no less time,
            # and the sooner that one is done, the sooner its memory comes.
            self.begun.wait()
            if self.making[0].done():
                self.making[0].result()
        self._restore()
        with self.clock.step("fill"):
            for made in [*self.making, *self.exporting]:
                made.result()
            stats = [future.result() for future in self.filling]
        self.parts.faults.at("resume.filled")
        return stats

    def _settle(self) -> None:
        """Nothing may work on the extents any more when an undo takes them away."""
        for making in self.making:
            making.exception()
        for line in self.lines:
            line.ready.put(None)
        for filling in self.filling:
            filling.exception()
        for exporting in self.exporting:
            exporting.exception()

    def _fill(self, line: Line) -> CopyStats:
        """Fill all of one GPU's extents, and check what is filled while the rest follows."""
        copier = self.parts.copiers[line.gpu]
        checks: list[Future[None]] = []
        unchecked: list[Extent] = []
        left = len(line.extents)
        copies = {held.id: held.copy for held in line.extents}

        def filled(extents: Sequence[Extent]) -> None:
            nonlocal left, unchecked
            left -= len(extents)
            if self.progress is not None:
                self.progress.add(sum(extent.size for extent in extents))
            unchecked += extents
            if not left or sum(extent.size for extent in unchecked) >= CHECK_BYTES:
                part, unchecked = unchecked, []
                checks.append(
                    self.parts.executor.submit(self._check, copier, part, [copies[extent.id] for extent in part])
                )

        try:
            stats = copier.fill(line.batches(), done=filled)
        finally:
            for check in checks:
                check.exception()
        for check in checks:
            check.result()
        return stats

    def _check(self, copier: CopyEngine, extents: Sequence[Extent], copies: Sequence[ExtentCopy]) -> None:
        """Hash the GPU's content and compare it with what left."""
        wrong = copier.differing(extents, copies, self.manifest.key)
        if wrong:
            total = sum(extent.chunks for extent in extents)
            raise ContentDiffers(
                f"{wrong} of {total} chunks of {self.target.name} differ from what was paused",
                hint="the host copy or the link is damaged; the workload stays paused",
            )
        if self.manifest.key is not None:
            own = copier.hashes(extents)
            self.rehashed.update(zip((extent.id for extent in extents), own, strict=True))
        self.parts.faults.at("resume.checked")

    def _restore(self) -> None:
        """Bring back each process's residual, from whichever state an earlier attempt left it in."""
        pids = residual_pids(self.target.tree)
        states = {pid: residual.state(pid) for pid in pids}
        away = [pid for pid in pids if states[pid] is ResidualState.CHECKPOINTED]
        shut = away + [pid for pid in pids if states[pid] is ResidualState.LOCKED]
        if away and self.grant is not None:
            for gpu, size in self.unmanaged.items():
                self.grant(gpu, size)
        with self.clock.step("restore"):
            if away:
                residual.restore_all(away)
                self.undo.push("checkpoint again", lambda: residual.checkpoint_all(away))
            self.parts.faults.at("resume.restored")
            if shut:
                residual.unlock_all(shut)
                self.undo.push("lock again", lambda: residual.lock_all(shut, self.timeout_s))
        self.parts.faults.at("resume.unlocked")

    def _map(self, controls: dict[HostPid, Control]) -> None:
        by_pid: dict[HostPid, list[Extent]] = defaultdict(list)
        for extent in self.extents:
            by_pid[extent.pid].append(extent)

        def one(pid: HostPid) -> None:
            control = controls[pid]
            state = control.status().state
            if state is not wire.ProcessState.RELEASED:
                if state is wire.ProcessState.OPEN:  # another program (exec): its predecessor's memory is nobody's
                    self.parts.broker.drop(by_pid[pid])
                return
            mine = by_pid[pid]
            control.map([wire.Record(e.id, 0, e.size, e.gpu.uuid_bytes) for e in mine], [self.fds[e.id] for e in mine])

        def take_back() -> None:
            every(self.parts.executor, take_back_one, list(controls))

        def take_back_one(pid: HostPid) -> None:
            if has_ended(pid):
                return
            control = controls[pid]
            control.reopen()
            state = control.status().state
            if state is wire.ProcessState.QUIET:
                control.release()
            if state is not wire.ProcessState.OPEN:
                control.discard()

        with self.clock.step("map"):
            self.undo.push("unmap again", take_back)
            every(self.parts.executor, one, list(controls))
        self.parts.faults.at("resume.mapped")

    def _open(self, controls: dict[HostPid, Control]) -> None:
        with self.clock.step("open"):
            self.committed = True
            self.undo.commit()
            self.parts.store.remove(self.target.name)
            self._make_own()
            every(self.parts.executor, Control.open, list(controls.values()))
        self.parts.faults.at("resume.opened")

    def _make_own(self) -> None:
        if self.manifest.key is not None:
            self.manifest.become_own(self.rehashed)

    def _report(self, stats: Sequence[CopyStats]) -> SwitchReport:
        return SwitchReport(
            workload=self.target.name,
            operation="resume",
            depth=self.manifest.depth,
            backend=self.target.backend,
            seconds=self.clock.seconds,
            bytes_total=sum(extent.size for extent in self.extents),
            bytes_copied=sum(s.bytes_copied for s in stats),
            bytes_zero=sum(e.size for e in self.extents) - sum(s.bytes_copied for s in stats),
            steps=tuple(self.clock.steps),
        )


def pieces(extents: Sequence[HeldExtent]) -> Iterator[list[HeldExtent]]:
    """Cut a list so that each part is about PIECE_BYTES; an extent larger than that is a part of its own."""
    part: list[HeldExtent] = []
    size = 0
    for held in extents:
        if part and size + held.copy.size > PIECE_BYTES:
            yield part
            part, size = [], 0
        part.append(held)
        size += held.copy.size
    if part:
        yield part
