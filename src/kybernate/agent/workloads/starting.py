"""The start of a workload: by order, or anew where its state is of no use any more."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from kybernate.agent.records.events import Events
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.records.lifecycle import Event
from kybernate.agent.records.views import program
from kybernate.agent.workloads.launching import Launcher, first_entry, left_of
from kybernate.agent.workloads.starts import Starts
from kybernate.agent.workloads.targets import is_external_name
from kybernate.agent.workloads.threads import in_thread
from kybernate.agent.workloads.workloads import Workloads
from kybernate.model.api import RunRequest
from kybernate.model.caller import Caller
from kybernate.model.errors import BadInput, KybernateError, WorkloadLost
from kybernate.model.types import WorkloadName, workload_name
from kybernate.process.specs import LaunchSpec


class NoCopy(WorkloadLost):
    """Every copy of a workload's state is gone or damaged: all that can be done is to start it anew."""

    def __init__(self, message: str, *, hint: str | None = None, left: str | None = None) -> None:
        """`left`: the damaged snapshot that is there all the same."""
        super().__init__(message, hint=hint)
        self.left = left


class Starting:
    """Use it in the loop's thread."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        events: Events,
        clock: Callable[[], float],
        starts: Starts,
        workloads: Workloads,
        launcher: Launcher,
    ) -> None:
        self._ledger = ledger
        self._events = events
        self._clock = clock
        self._starts = starts
        self._workloads = workloads
        self._launcher = launcher

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
        old = self._ledger.get(name)
        if old is not None and old.ended:
            caller.require_owner(old.uid, f"the ended workload {name}")
        spec = self._launcher.spec(request, caller)
        if by_itself:
            self._starts.refuse_by_itself(name)
        self._starts.refuse()
        self._workloads.refuse_when_draining()
        entry = first_entry(request, name, now=self._clock(), why="its process is being started")
        self._ledger.add(
            replace(
                entry,
                uid=caller.uid,
                gid=caller.gid,
                stale=() if old is None else old.stale,
                kept=left_of(old),
                cold_start=request if request.cold_start else None,
            )
        )
        self._starts.allow(name)
        return await self._workloads.submit(name, "start", lambda: self._start(spec), detail=request)

    async def start_anew(self, name: WorkloadName, why: str, *, keep: str | None = None) -> Entry:
        """Start a workload from its beginning, since its state is of no use any more. In its owner task.

        Args:
            keep: a snapshot of that state, which nothing deletes but the workload's removal.

        Raises what the start does; it has ended then.
        """
        self._starts.refuse()
        lost = self._ledger.apply(name, Event.LOST, reason=why, evicted={}, pids=())
        request = lost.cold_start
        assert request is not None
        entry = first_entry(request, name, now=self._clock(), why=f"started anew: {why}")
        self._ledger.add(
            replace(
                entry,
                uid=lost.uid,
                gid=lost.gid,
                stale=lost.stale,
                kept=tuple(dict.fromkeys((*lost.kept, *([] if keep is None else [keep])))),
                cold_start=request,
            )
        )
        return await self._start(self._launcher.spec(request, Caller(pid=os.getpid(), uid=lost.uid, gid=lost.gid)))

    async def _start(self, spec: LaunchSpec) -> Entry:
        """In its owner task."""
        name = spec.name
        try:
            tree = await in_thread(f"start {name}", lambda: self._launcher.launch(spec))
        except Exception as e:
            reason = e.message if isinstance(e, KybernateError) else str(e)
            self._ledger.apply(name, Event.START_FAILED, reason=f"could not be started: {reason}")
            self._events.record("start-failed", reason, workload=name)
            if not isinstance(e, KybernateError):
                raise KybernateError(f"workload {name} could not be started: {e}") from e
            raise
        now = self._clock()
        self._workloads.adopt(name, tree)
        entry = self._ledger.apply(name, Event.STARTED, reason="started", last_use=now, running_since=now)
        self._events.record(
            "started",
            f"runs {program(spec.argv)}",  # events are everybody's to read, and arguments may hold secrets
            workload=name,
            data={"program": program(spec.argv), "uid": spec.uid, "left_out": list(tree.left_out)},
        )
        return entry
