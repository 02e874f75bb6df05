"""The workloads of this node: the processes of each, and its orders, in line.

Every change runs in the workload's owner task (operations.py). The end of a process is one more operation in that line, submitted
by a watcher, so nothing else ever has to ask whether a workload died in the middle. What starts and ends them is in starting.py and
ending.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kybernate.agent.records.jobs import Jobs
from kybernate.agent.records.ledger import Entry, Ledger
from kybernate.agent.workloads.operations import O, Operation, Owner, RunningOrder
from kybernate.agent.workloads.tasks import Tasks
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.errors import Busy, KybernateError
from kybernate.model.layout import StateDirectory
from kybernate.model.types import WorkloadName
from kybernate.process.tree import Tree

T = TypeVar("T")

OnEnded = Callable[[WorkloadName, Tree], Awaitable[Entry]]
"""What is done once the processes of a workload have ended. In its owner task."""


@dataclass(slots=True)
class _Live:
    """What belongs to a workload beyond its ledger entry."""

    owner: Owner
    tree: Tree | None = None
    """None before the start, after the end, and for processes that we did not start."""


class Workloads:
    """Create it in the loop's thread; `tasks` keeps the owner tasks and the watchers."""

    def __init__(self, *, ledger: Ledger, jobs: Jobs, state: StateDirectory, tasks: Tasks, on_ended: OnEnded) -> None:
        self._ledger = ledger
        self._jobs = jobs
        self._state = state
        self._tasks = tasks
        self._on_ended = on_ended
        self._live: dict[WorkloadName, _Live] = {}
        self._draining = False
        self._notices: set[asyncio.Event] = set()

    # -- looking -------------------------------------------------------------------------------------------------

    def idle(self, name: WorkloadName) -> bool:
        live = self._live.get(name)
        return live is None or live.owner.idle

    def current(self, name: WorkloadName) -> Operation | None:
        """What is done to it just now."""
        live = self._live.get(name)
        return None if live is None else live.owner.current

    def tree(self, name: WorkloadName) -> Tree | None:
        live = self._live.get(name)
        return None if live is None else live.tree

    def run_directory(self, name: WorkloadName) -> Path:
        return self._state.run_directory(name)

    async def wait_ended(self, name: WorkloadName, timeout_s: float) -> Entry:
        """The entry once the workload has ended, or as it is when the time is over. Raises NotFound."""
        await self.wait_until(lambda: self._ledger.entry(name).ended, timeout_s)
        return self._ledger.entry(name)

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

    def changed(self, _old: Entry | None, _new: Entry | None) -> None:
        """Observer of the ledger."""
        for notice in self._notices:
            notice.set()

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
        work: Callable[[RunningOrder[O]], Awaitable[T]],
        order: O,
        *,
        begin_within_s: float | None = None,
        overtakes: str | None = None,
    ) -> T:
        """The same, by an order that others may strengthen."""
        line = self._line(name)
        return await line.order(kind, work, order, begin_within_s=begin_within_s, overtakes=overtakes)

    def make_way(self, name: WorkloadName) -> None:
        """Somebody wants something of it: what the agent does there by its own idea is stopped."""
        self._jobs.make_way(name)

    def refuse_when_draining(self) -> None:
        """Raises Busy: no more orders are taken."""
        if self._draining:
            raise Busy("the agent is going down and takes no more orders", hint="start it again with `kybernate up`")

    async def drain(self) -> None:
        """Take no more orders and wait for those that run. Half a switch is nothing to leave to a successor."""
        self._draining = True
        self._jobs.cancel_all()
        for live in list(self._live.values()):
            live.owner.hurry("the agent goes down")
            await live.owner.wait_idle()

    def _line(self, name: WorkloadName) -> Owner:
        self.refuse_when_draining()
        return self._of(self._ledger.entry(name).name).owner

    def _of(self, name: WorkloadName) -> _Live:
        live = self._live.get(name)
        if live is None:
            live = self._live[name] = _Live(Owner(name))
            self._tasks.keep(live.owner.run, name=f"owner of {name}")
        return live

    # -- their processes -----------------------------------------------------------------------------------------

    def adopt(self, name: WorkloadName, tree: Tree | None) -> None:
        """Own a workload that is in the ledger, and watch its processes where it has any."""
        self._of(name).tree = tree
        if tree is not None:
            self._tasks.keep(lambda: self._report_end(name, tree), name=f"watcher of {name}")

    def detach(self, name: WorkloadName) -> None:
        """Its processes are about to be ended, and that is not the workload's end; or they are gone. From any thread."""
        live = self._live.get(name)
        if live is not None:
            live.tree = None

    async def _report_end(self, name: WorkloadName, tree: Tree) -> None:
        await in_thread(f"watch {name}", tree.wait)
        with contextlib.suppress(KybernateError):
            await self._of(name).owner.submit("end", lambda: self._on_ended(name, tree), detail=tree, order=False)
