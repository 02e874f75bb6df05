"""The workloads of this node: start, end, stop, remove. Pausing and resuming are in orders/switching.py.

Every change runs in the workload's owner task (operations.py). The end of a process is one more operation in that line,
submitted by a watcher, so nothing else ever has to ask whether a workload died in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kybernate.agent.gear import Gear
from kybernate.agent.records.ledger import Entry
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.records.views import program, workload_view
from kybernate.agent.workloads.launches import launch_spec, left_of, starting
from kybernate.agent.workloads.operations import O, Owner, Standing
from kybernate.agent.workloads.orders import StopOrder, Stored
from kybernate.agent.workloads.targets import is_external_name
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.termination import WITHOUT_GPU_S, handles_its_end, logged, stays_stored, terminate
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.api import RunRequest, StoppedView, WorkloadView
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput, Busy, Conflict, KybernateError, NotFound
from kybernate.model.types import EndedBy, WorkloadName, WorkloadState, workload_name
from kybernate.process.launching import launch
from kybernate.process.reports import FULL, full
from kybernate.process.specs import LaunchSpec
from kybernate.process.tree import DOOR, Tree, attach, sweep

log = logging.getLogger(__name__)

T = TypeVar("T")

_STOPPED = {EndedBy.ORDER: "stopped by order", EndedBy.AGENT: "stopped by the agent"}


@dataclass(slots=True)
class Live:
    """What belongs to a workload beyond its ledger entry."""

    owner: Owner
    tree: Tree | None = None
    """None before the start, after the end, and for processes that we did not start."""


class Workloads:
    """Create it in the loop's thread; `tasks` keeps the owner tasks and the watchers."""

    def __init__(self, *, gear: Gear, tasks: Tasks) -> None:
        self.gear = gear
        self._tasks = tasks
        self._live: dict[WorkloadName, Live] = {}
        self._draining = False
        self._notices: set[asyncio.Event] = set()
        self.forget_snapshots: Callable[[WorkloadName], Awaitable[bool]] | None = None
        """Deletes what an ended workload has in the store, before it is forgotten. Whether nothing is left."""
        self.fall_back: Callable[[WorkloadName], Awaitable[bool]] | None = None
        """Lets a copy take the place of a paused workload whose processes have ended by no order. Whether there is one."""
        self.before_stop: Callable[[WorkloadName, float], Coroutine[Any, Any, None]] | None = None
        """Sees to whoever uses a workload that a person ends, within the grace."""
        self.resume_to_end: Callable[[WorkloadName, str], Awaitable[object]] | None = None
        """Resumes a paused one for the reason given, in its owner task, where that takes no room of others."""
        gear.ledger.observe(self._notify)

    # -- looking -------------------------------------------------------------------------------------------------

    def idle(self, name: WorkloadName) -> bool:
        live = self._live.get(name)
        return live is None or live.owner.idle

    def view(self, entry: Entry) -> WorkloadView:
        live = self._live.get(entry.name)
        tree = None if live is None else live.tree
        pids = list(entry.pids) if tree is None else [int(pid) for pid in tree.pids()]
        gpu = self.gear.gpu
        return workload_view(
            entry,
            resident_bytes=0 if gpu is None or entry.ended else gpu.room.vram.held(entry.name),
            pids=[] if entry.ended else pids,
            current=None if live is None else live.owner.current,
            progress=None if gpu is None else gpu.engine.progress(entry.name),
            job=self.gear.jobs.of(entry.name),
            staged=gpu is not None and any(view.snapshot == entry.snapshot for view in gpu.engine.staged()),
        )

    def tree(self, name: WorkloadName) -> Tree | None:
        live = self._live.get(name)
        return None if live is None else live.tree

    async def wait_ended(self, name: WorkloadName, timeout_s: float) -> Entry:
        """The entry once the workload has ended, or as it is when the time is over. Raises NotFound."""
        ledger = self.gear.ledger
        await self.wait_until(lambda: ledger.entry(name).ended, timeout_s)
        return ledger.entry(name)

    async def wait_until(self, true: Callable[[], bool], timeout_s: float | None) -> bool:
        """Look at each change of the ledger. Whether it became true in time. `timeout_s` None: as long as it takes."""
        notice = asyncio.Event()
        self._notices.add(notice)
        try:
            async with asyncio.timeout(timeout_s):
                while not true():
                    notice.clear()
                    await notice.wait()
        except TimeoutError:
            return False
        finally:
            self._notices.discard(notice)
        return True

    # -- orders --------------------------------------------------------------------------------------------------

    async def run(self, request: RunRequest, caller: Caller, *, by_itself: bool = False) -> Entry:
        """Start a workload; returns once its program runs.

        Args:
            by_itself: no person ordered it, so it isn't one that a person stopped.

        Raises:
            BadInput: the command can't be started.
            Conflict: a workload of that name is alive.
            Busy: the agent starts nothing any more.
        """
        name = workload_name(request.name)
        if is_external_name(name):
            raise BadInput(
                f"{name} names a process that was not started by Kybernate", hint="choose another name for the workload"
            )
        old = self.gear.ledger.get(name)
        if old is not None and old.ended:
            caller.require_owner(old.uid, f"the ended workload {name}")
        spec = launch_spec(self.gear, request, caller)
        if by_itself:
            self.gear.starts.refuse_by_itself(name)
        self.gear.starts.refuse()
        self._refuse_when_draining()
        entry = starting(request, name, now=self.gear.clock(), why="its process is being started")
        self.gear.ledger.add(
            replace(
                entry,
                uid=caller.uid,
                gid=caller.gid,
                stale=() if old is None else old.stale,
                kept=left_of(old),
                cold_start=request if request.cold_start else None,
            )
        )
        self.gear.starts.allow(name)
        return await self.submit(name, "start", lambda: self._start(spec), detail=request)

    async def start_anew(self, name: WorkloadName, why: str, *, keep: str | None = None) -> Entry:
        """Start a workload from its beginning, since its state is of no use any more. In its owner task.

        Args:
            keep: a snapshot of that state, which nothing deletes but the workload's removal.

        Raises what the start does; it has ended then.
        """
        self.gear.starts.refuse()
        lost = self.gear.ledger.apply(name, Event.LOST, reason=why, evicted={}, pids=())
        request = lost.cold_start
        assert request is not None
        entry = starting(request, name, now=self.gear.clock(), why=f"started anew: {why}")
        self.gear.ledger.add(
            replace(
                entry,
                uid=lost.uid,
                gid=lost.gid,
                stale=lost.stale,
                kept=tuple(dict.fromkeys((*lost.kept, *([] if keep is None else [keep])))),
                cold_start=request,
            )
        )
        return await self._start(launch_spec(self.gear, request, Caller(pid=os.getpid(), uid=lost.uid, gid=lost.gid)))

    async def stop(
        self,
        name: WorkloadName,
        *,
        grace_s: float,
        remove: bool = False,
        by: EndedBy = EndedBy.AGENT,
        stored: Stored = Stored.ENDS,
    ) -> StoppedView:
        """End it: SIGTERM, after the grace SIGKILL. An ended one is fine, a paused one is seen to as termination.py says.

        A person's stop comes by way of `Serving.stop`, which also sees to it that nothing starts it again.

        Args:
            stored: what becomes of one that lies below RAM.

        Raises:
            NotFound: no such workload.
            Conflict: an external process: it isn't ours to end.
        """
        entry = self.gear.ledger.entry(name)
        if entry.external:
            raise Conflict(
                f"{name} was not started by this agent", hint=f"end it with `kill {name.removeprefix('pid-')}`"
            )
        wanted = StopOrder(grace_s=grace_s, by=by, stored=stored)
        why = f"workload {name} is to be stopped"
        entry, note = await self.order(name, "stop", lambda order: self._stop(name, order), wanted, overtakes=why)
        if remove:
            await self.remove(name)
        stays = None if entry.ended else entry.tier
        return StoppedView(workload=name, exit_status=entry.exit_status, removed=remove, stays=stays, note=note)

    async def remove(self, name: WorkloadName) -> StoppedView:
        """Forget an ended workload and delete its output.

        Raises:
            NotFound: no such workload.
            Conflict: it is alive.
        """
        entry = await self.submit(name, "remove", lambda: self._remove(name))
        return StoppedView(workload=name, exit_status=entry.exit_status, removed=True)

    # -- the owner's line ----------------------------------------------------------------------------------------

    async def submit(
        self,
        name: WorkloadName,
        kind: str,
        work: Callable[[], Awaitable[T]],
        *,
        detail: object = None,
        begin_within_s: float | None = None,
    ) -> T:
        """Run `work` as this workload's next operation. Raises NotFound, Busy, and what `work` raises."""
        return await self._line(name).submit(kind, work, detail=detail, begin_within_s=begin_within_s)

    async def order(
        self,
        name: WorkloadName,
        kind: str,
        work: Callable[[Standing[O]], Awaitable[T]],
        order: O,
        *,
        begin_within_s: float | None = None,
        overtakes: str | None = None,
    ) -> T:
        """The same, by an order that others may strengthen."""
        line = self._line(name)
        return await line.order(kind, work, order, begin_within_s=begin_within_s, overtakes=overtakes)

    def _line(self, name: WorkloadName) -> Owner:
        self._refuse_when_draining()
        return self._owner(self.gear.ledger.entry(name).name).owner

    def adopt(self, name: WorkloadName, tree: Tree | None) -> None:
        """A workload another agent started, already in the ledger: own and watch it."""
        live = self._owner(name)
        live.tree = tree
        if tree is not None:
            self._watch(name, tree)

    def detach(self, name: WorkloadName) -> None:
        """Its processes are about to be ended, and that is not the workload's end. From any thread."""
        live = self._live.get(name)
        if live is not None:
            live.tree = None

    async def drain(self) -> None:
        """Take no more orders and wait for those that run. Half a switch is nothing to leave to a successor."""
        self._draining = True
        self.gear.jobs.cancel_all()
        for live in list(self._live.values()):
            live.owner.hurry("the agent goes down")
            await live.owner.wait_idle()

    def _owner(self, name: WorkloadName) -> Live:
        live = self._live.get(name)
        if live is None:
            live = self._live[name] = Live(Owner(name))
            self._tasks.keep(live.owner.run, name=f"owner of {name}")
        return live

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Busy("the agent is going down and takes no more orders", hint="start it again with `kybernate up`")

    def _notify(self, _old: Entry | None, _new: Entry | None) -> None:
        for notice in self._notices:
            notice.set()

    # -- operations: each runs in the owner task -----------------------------------------------------------------

    async def _start(self, spec: LaunchSpec) -> Entry:
        gear, name = self.gear, spec.name
        live = self._owner(name)
        try:
            live.tree = await in_thread(f"start {name}", lambda: self._launch(spec))
        except Exception as e:
            reason = e.message if isinstance(e, KybernateError) else str(e)
            gear.ledger.apply(name, Event.START_FAILED, reason=f"could not be started: {reason}")
            gear.events.record("start-failed", reason, workload=name)
            if not isinstance(e, KybernateError):
                raise KybernateError(f"workload {name} could not be started: {e}") from e
            raise
        now = gear.clock()
        entry = gear.ledger.apply(name, Event.STARTED, reason="started", last_use=now, running_since=now)
        gear.events.record(
            "started",
            f"runs {program(spec.argv)}",  # events are everybody's to read, and arguments may hold secrets
            workload=name,
            data={"program": program(spec.argv), "uid": spec.uid, "left_out": list(live.tree.left_out)},
        )
        self._watch(name, live.tree)
        return entry

    def _launch(self, spec: LaunchSpec) -> Tree:
        """In a thread. The run directory and the broker's door are there before the process is."""
        gpu = self.gear.gpu
        self.clear_place(spec.name)
        try:
            spec.run_directory.mkdir(parents=True, mode=0o755)
            if gpu is not None:
                gpu.broker.listen(spec.name, spec.run_directory / DOOR, uid=spec.uid, gid=spec.gid)
            return launch(spec)
        except BaseException as e:
            if gpu is not None:
                gpu.broker.stop_listening(spec.name)
            shutil.rmtree(spec.run_directory, ignore_errors=True)
            if isinstance(e, OSError) and e.errno in FULL:
                raise full(f"workload {spec.name} can't be started", spec.state_directory) from e
            raise

    def clear_place(self, name: WorkloadName) -> None:
        """In a thread: nothing of an earlier life of that name is left, which has ended or was lost."""
        if self.gear.gpu is not None:
            self.gear.gpu.engine.forget(name)
        run_directory = self.gear.state.run_directory(name)
        with contextlib.suppress(NotFound):
            attach(run_directory).remove()
        _delete(run_directory)

    def _watch(self, name: WorkloadName, tree: Tree) -> None:
        self._tasks.keep(lambda: self._report_end(name, tree), name=f"watcher of {name}")

    async def _report_end(self, name: WorkloadName, tree: Tree) -> None:
        await in_thread(f"watch {name}", tree.wait)
        owner = self._owner(name).owner
        with contextlib.suppress(KybernateError):
            await owner.submit("end", lambda: self._end(name, tree), detail=tree, order=False)

    async def _end(self, name: WorkloadName, tree: Tree) -> Entry:
        """The process tree has ended by itself or was killed; lets go of all it held."""
        entry = self.gear.ledger.entry(name)
        live = self._owner(name)
        if live.tree is not tree:
            return entry
        if entry.ended:  # lost while its processes lived: what they held is free now
            await in_thread(f"end {name}", lambda: self._let_go(name, tree))
            live.tree = None
            return entry
        if self.fall_back is not None and await self.fall_back(name):
            return self.gear.ledger.entry(name)
        return await self._finish(name, tree)

    async def _stop(self, name: WorkloadName, order: Standing[StopOrder]) -> tuple[Entry, str | None]:
        """Also what there is to say of its end."""
        gear = self.gear
        entry = gear.ledger.entry(name)
        tree = self.tree(name)
        if entry.state is WorkloadState.EXITED or (entry.ended and tree is None):
            return entry, None
        if (kept := stays_stored(gear.ledger, entry, tree, order.now.stored)) is not None:
            return kept
        no_gpu: str | None = None
        if tree is not None and entry.state is WorkloadState.PAUSED and order.now.grace_s:
            no_gpu = await self._resume_to_end(name, tree)
            entry, tree = gear.ledger.entry(name), self.tree(name)  # a resume that failed may have brought it elsewhere
            if (kept := stays_stored(gear.ledger, entry, tree, order.now.stored)) is not None:
                return kept
        most = math.inf if no_gpu is None else WITHOUT_GPU_S
        grace: Callable[[StopOrder], float] = lambda now: min(now.grace_s, most)  # noqa: E731 - typed
        if self.before_stop is not None and (grace_s := grace(order.now)):
            with contextlib.suppress(TimeoutError):
                await order.within(grace, self.before_stop(name, grace_s))
        stopped, grace_s = _STOPPED[order.now.by], grace(order.now)
        gear.ledger.apply(name, Event.STOP, reason=stopped, ended_by=order.now.by)
        gear.events.record("stop", f"stopping, {grace_s:g} s of grace", workload=name)
        if tree is None:
            begun = (
                "nothing of it was left"
                if entry.state is not WorkloadState.STARTING
                else f"{stopped}, before it had come"
            )
            reason = begun if entry.snapshot is None else f"{stopped}, while it lay in {entry.tier}"
            ended = gear.ledger.apply(name, Event.EXITED, reason=reason, evicted={}, depth=None, paused_by=None)
            gear.events.record("exited", reason, workload=name, data={"was": entry.state})
            return ended, None
        try:
            by_itself = await in_thread(f"stop {name}", lambda: terminate(tree, lambda: grace(order.now)))
        except KybernateError as e:
            gear.ledger.apply(name, Event.STOP_FAILED, reason=f"could not be stopped: {e.message}")
            gear.events.record("stop-failed", e.message, workload=name)
            raise
        note: str | None = None
        if no_gpu is not None and not by_itself:
            after = grace(order.now)
            note = f"it was paused and could not be resumed for its end, so it was killed after {after:g} s: {no_gpu}"
            gear.events.record("killed", note, workload=name)
        gear.ledger.update(name, ended_by=order.now.by)
        return await self._finish(name, tree), note

    async def _resume_to_end(self, name: WorkloadName, tree: Tree) -> str | None:
        """What keeps a paused workload, that has something to do at its end, from the GPU; None where nothing does."""
        if self.resume_to_end is None or not await in_thread(f"look at {name}", lambda: handles_its_end(tree)):
            return None
        try:
            await self.resume_to_end(name, "resumed, since it is to be stopped")
        except Exception as e:  # whatever kept it from the GPU, its end is what was ordered
            return e.message if isinstance(e, KybernateError) else repr(e)
        return None

    async def _finish(self, name: WorkloadName, tree: Tree) -> Entry:
        gear = self.gear
        status = await in_thread(f"end {name}", lambda: self._let_go(name, tree))
        self._owner(name).tree = None
        before = gear.ledger.entry(name)
        reason, by = f"its process ended with status {status}", EndedBy.ITSELF
        if before.state is WorkloadState.STOPPING and before.ended_by in _STOPPED:
            by = before.ended_by
            reason = f"{_STOPPED[by]}, exit status {status}"
        entry = gear.ledger.apply(
            name,
            Event.EXITED,
            reason=reason,
            exit_status=status,
            ended_by=by,
            evicted={},
            pids=(),
            depth=None,
            paused_by=None,
        )
        gear.events.record("exited", reason, workload=name, data={"exit_status": status, "was": before.state})
        return entry

    def _let_go(self, name: WorkloadName, tree: Tree) -> int | None:
        """In a thread: give back VRAM, host copy, door, cgroup. Each is tried even if the one before failed."""
        gpu = self.gear.gpu
        status: int | None = None
        with logged(f"looking how {name} ended"):
            status = tree.exit_status()
        with logged(f"removing the process tree of {name}"):
            tree.remove()
        if gpu is not None:
            with logged(f"closing the door of {name}"):
                gpu.broker.stop_listening(name)
            with logged(f"giving back the memory of {name}"):
                gpu.broker.drop(gpu.broker.extents(name))
            with logged(f"forgetting the host copy of {name}"):
                self.forget_copy(name)
            gpu.room.forget(name)
        return status

    def forget_copy(self, name: WorkloadName) -> None:
        """In a thread: the engine gives back the pool slots."""
        gpu = self.gear.gpu
        if gpu is not None and self.gear.ledger.get(name) is not None:
            gpu.engine.forget(name)

    async def _remove(self, name: WorkloadName) -> Entry:
        gear = self.gear
        entry = gear.ledger.entry(name)
        if entry.ended and self.tree(name) is not None:
            raise Conflict(f"processes of workload {name} are left", hint=f"`kybernate stop --remove {name}` ends them")
        if entry.ended and self.forget_snapshots is not None and not await self.forget_snapshots(name):
            left = ", ".join(gear.ledger.entry(name).stale)
            gear.events.record("snapshot-left", f"could not be deleted: {left}", workload=name)
        gear.ledger.remove(name)
        if not entry.external:
            await in_thread(f"remove {name}", lambda: _delete(gear.state.run_directory(name)))
        gear.events.record("removed", "removed", workload=name)
        return entry


def _delete(path: Path) -> None:
    """A run directory, and the cgroup of a launch that was cut off before anybody knew of its processes."""
    try:
        sweep(path)
    except KybernateError as e:
        log.warning("something of workload %s is left: %s", path.name, e)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
