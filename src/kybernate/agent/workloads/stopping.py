"""The end of all workloads, for an agent that is to leave none behind: starts are closed, every workload is stopped, and then it is
looked for processes. What lies below RAM has none and stays there; processes that we did not start aren't ours to end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from kybernate.agent.records.ledger import Ledger
from kybernate.agent.workloads.orders import Stored
from kybernate.agent.workloads.starts import Starts
from kybernate.agent.workloads.threads import in_thread
from kybernate.model.api import StoppedView
from kybernate.model.errors import Busy, KybernateError, NotFound
from kybernate.model.types import HostPid, WorkloadName
from kybernate.process.remains import end_remains, remains

log = logging.getLogger(__name__)


class Stop(Protocol):
    """`Serving.stop`."""

    def __call__(self, name: WorkloadName, *, grace_s: float, stored: Stored) -> Awaitable[StoppedView]: ...


async def stop_all(*, ledger: Ledger, starts: Starts, directory: Path, stop: Stop, grace_s: float) -> None:
    """Returns once no process of any workload lives. Starts stay closed then.

    Args:
        directory: where the run directories are.
        grace_s: between SIGTERM and SIGKILL.

    Raises:
        Busy: some live on; it names them. Starts are open again.
    """
    starts.close()
    try:
        why = await _stop_each(ledger, stop, grace_s)
        left = await in_thread("look who lives", lambda: _end_what_is_left(directory))
    except BaseException:
        starts.reopen()
        raise
    if left:
        starts.reopen()
        raise Busy(
            f"could not be ended: {list_left(left, why)}",
            hint="the agent stays up; `kybernate down` ends it all the same",
        )


async def _stop_each(ledger: Ledger, stop: Stop, grace_s: float) -> Mapping[WorkloadName, str]:
    """Returns why those that could not be stopped could not."""
    problems: dict[WorkloadName, str] = {}
    # Ended ones, too: a job may be about to be started again, and of a lost one processes may be left.
    names = [entry.name for entry in ledger.entries().values() if not entry.external]

    async def one(name: WorkloadName) -> None:
        try:
            await stop(name, grace_s=grace_s, stored=Stored.STAYS)
        except NotFound:
            pass  # removed meanwhile
        except KybernateError as e:
            problems[name] = e.message
            log.warning("workload %s could not be stopped: %s", name, e)

    await asyncio.gather(*(one(name) for name in names))
    return problems


def _end_what_is_left(workloads: Path) -> Mapping[WorkloadName, Sequence[HostPid]]:
    """In a thread: processes that no workload in the ledger answers for are killed."""
    for name in remains(workloads):
        try:
            end_remains(workloads / name)
        except (KybernateError, OSError) as e:
            log.warning("processes of workload %s could not be ended: %s", name, e)
    return remains(workloads)


def list_left(left: Mapping[WorkloadName, Sequence[HostPid]], why: Mapping[WorkloadName, str]) -> str:
    """Who is left, for people."""
    return "; ".join(
        f"{name} (process {', '.join(str(pid) for pid in pids)})" + (f": {why[name]}" if name in why else "")
        for name, pids in left.items()
    )
