"""The end of a workload: by order, or because its processes have ended; and its removal."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.workloads.launching import Launcher
from kybernate.agent.workloads.operations import RunningOrder
from kybernate.agent.workloads.orders import StopOrder, Stored
from kybernate.agent.workloads.runtime import GpuRuntime
from kybernate.agent.workloads.termination import WITHOUT_GPU_S, handles_its_end, logged, stays_stored, terminate
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import StoppedView
from kybernate.model.errors import Conflict, KybernateError
from kybernate.model.types import EndedBy, WorkloadName, WorkloadState
from kybernate.process.tree import Tree

_STOPPED = {EndedBy.ORDER: "stopped by order", EndedBy.AGENT: "stopped by the agent"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndHooks:
    """What others do about a workload's end. All but `forget_vram` in its owner task."""

    resume_to_end: Callable[[WorkloadName, str], Awaitable[object]]
    """Resumes a paused one for the reason given, where that takes no room of others."""
    before_stop: Callable[[WorkloadName, float], Coroutine[Any, Any, None]]
    """Sees to whoever uses a workload that is ended by order, within the grace in seconds."""
    fall_back: Callable[[WorkloadName], Awaitable[bool]]
    """Lets a copy take the place of a paused workload whose processes have ended by no order. Whether there is one."""
    forget_snapshots: Callable[[WorkloadName], Awaitable[bool]]
    """Deletes what an ended workload has in the store, before it is forgotten. Whether nothing is left."""
    forget_vram: Callable[[WorkloadName], None]
    """What is remembered of its VRAM is void. In a thread."""


class Ending:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        gpu: GpuRuntime | None,
        workloads: Workloads,
        launcher: Launcher,
        hooks: EndHooks,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._gpu = gpu
        self._workloads = workloads
        self._launcher = launcher
        self._hooks = hooks

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
        entry = self._ledger.entry(name)
        if entry.external:
            raise Conflict(
                f"{name} was not started by this agent", hint=f"end it with `kill {name.removeprefix('pid-')}`"
            )
        wanted = StopOrder(grace_s=grace_s, by=by, stored=stored)
        why = f"workload {name} is to be stopped"
        entry, note = await self._workloads.order(
            name, "stop", lambda order: self._stop(name, order), wanted, overtakes=why
        )
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
        entry = await self._workloads.submit(name, "remove", lambda: self._remove(name))
        return StoppedView(workload=name, exit_status=entry.exit_status, removed=True)

    # -- each of these runs in the owner task --------------------------------------------------------------------

    async def ended(self, name: WorkloadName, tree: Tree) -> Entry:
        """The process tree has ended by itself or was killed: all that it held is given back."""
        entry = self._ledger.entry(name)
        if self._workloads.tree(name) is not tree:
            return entry
        if entry.ended:  # lost while its processes lived: what they held is free now
            await in_thread(f"end {name}", lambda: self._give_back(name, tree))
            self._workloads.detach(name)
            return entry
        if await self._hooks.fall_back(name):
            return self._ledger.entry(name)
        return await self._finish(name, tree)

    async def _stop(self, name: WorkloadName, order: RunningOrder[StopOrder]) -> tuple[Entry, str | None]:
        """Also what there is to say of its end."""
        ledger, events = self._ledger, self._events
        entry = ledger.entry(name)
        tree = self._workloads.tree(name)
        if entry.state is WorkloadState.EXITED or (entry.ended and tree is None):
            return entry, None
        if (kept := stays_stored(ledger, entry, tree, order.now.stored)) is not None:
            return kept
        no_gpu: str | None = None
        if tree is not None and entry.state is WorkloadState.PAUSED and order.now.grace_s:
            no_gpu = await self._resume_to_end(name, tree)
            # A resume that failed may have brought it elsewhere.
            entry, tree = ledger.entry(name), self._workloads.tree(name)
            if (kept := stays_stored(ledger, entry, tree, order.now.stored)) is not None:
                return kept
        longest = math.inf if no_gpu is None else WITHOUT_GPU_S
        grace: Callable[[StopOrder], float] = lambda now: min(now.grace_s, longest)  # noqa: E731 - typed
        if grace_s := grace(order.now):
            with contextlib.suppress(TimeoutError):
                await order.within(grace, self._hooks.before_stop(name, grace_s))
        stopped, grace_s = _STOPPED[order.now.by], grace(order.now)
        ledger.apply(name, Event.STOP, reason=stopped, ended_by=order.now.by)
        events.record("stop", f"stopping, {grace_s:g} s of grace", workload=name)
        if tree is None:
            begun = (
                "nothing of it was left"
                if entry.state is not WorkloadState.STARTING
                else f"{stopped}, before it had come"
            )
            reason = begun if entry.snapshot is None else f"{stopped}, while it lay in {entry.tier}"
            ended = ledger.apply(name, Event.EXITED, reason=reason, evicted={}, depth=None, paused_by=None)
            events.record("exited", reason, workload=name, data={"was": entry.state})
            return ended, None
        try:
            by_itself = await in_thread(f"stop {name}", lambda: terminate(tree, lambda: grace(order.now)))
        except KybernateError as e:
            ledger.apply(name, Event.STOP_FAILED, reason=f"could not be stopped: {e.message}")
            events.record("stop-failed", e.message, workload=name)
            raise
        note: str | None = None
        if no_gpu is not None and not by_itself:
            after = grace(order.now)
            note = f"it was paused and could not be resumed for its end, so it was killed after {after:g} s: {no_gpu}"
            events.record("killed", note, workload=name)
        ledger.update(name, ended_by=order.now.by)
        return await self._finish(name, tree), note

    async def _resume_to_end(self, name: WorkloadName, tree: Tree) -> str | None:
        """What keeps a paused workload, that has something to do at its end, from the GPU; None where nothing does."""
        if not await in_thread(f"look at {name}", lambda: handles_its_end(tree)):
            return None
        try:
            await self._hooks.resume_to_end(name, "resumed, since it is to be stopped")
        except Exception as e:  # whatever kept it from the GPU, its end is what was ordered
            return e.message if isinstance(e, KybernateError) else repr(e)
        return None

    async def _finish(self, name: WorkloadName, tree: Tree) -> Entry:
        status = await in_thread(f"end {name}", lambda: self._give_back(name, tree))
        self._workloads.detach(name)
        before = self._ledger.entry(name)
        reason, by = f"its process ended with status {status}", EndedBy.ITSELF
        if before.state is WorkloadState.STOPPING and before.ended_by in _STOPPED:
            by = before.ended_by
            reason = f"{_STOPPED[by]}, exit status {status}"
        entry = self._ledger.apply(
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
        self._events.record("exited", reason, workload=name, data={"exit_status": status, "was": before.state})
        return entry

    def _give_back(self, name: WorkloadName, tree: Tree) -> int | None:
        """In a thread: VRAM, host copy, the broker's socket, cgroup. Each is tried even if the one before failed."""
        gpu = self._gpu
        status: int | None = None
        with logged(f"looking how {name} ended"):
            status = tree.exit_status()
        with logged(f"removing the process tree of {name}"):
            tree.remove()
        if gpu is not None:
            with logged(f"closing the broker's socket of {name}"):
                gpu.broker.stop_listening(name)
            with logged(f"giving back the memory of {name}"):
                gpu.broker.drop(gpu.broker.extents(name))
            with logged(f"forgetting the host copy of {name}"):
                gpu.engine.forget(name)
            self._hooks.forget_vram(name)
        return status

    async def _remove(self, name: WorkloadName) -> Entry:
        entry = self._ledger.entry(name)
        if entry.ended and self._workloads.tree(name) is not None:
            raise Conflict(f"processes of workload {name} are left", hint=f"`kybernate stop --remove {name}` ends them")
        if entry.ended and not await self._hooks.forget_snapshots(name):
            left = ", ".join(self._ledger.entry(name).stale)
            self._events.record("snapshot-left", f"could not be deleted: {left}", workload=name)
        self._ledger.remove(name)
        if not entry.external:
            await in_thread(f"remove {name}", lambda: self._launcher.delete_directory(name))
        self._events.record("removed", "removed", workload=name)
        return entry
