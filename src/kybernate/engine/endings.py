"""Processes that end while a switch of theirs is under way: by themselves, or killed by somebody else.

What a switch notices of it first is a connection that breaks or memory that went with the process. Told like that it sounds as if
the switch had lost something; what happened is that the program ended, and what people need is its last words.
"""

from __future__ import annotations

from kybernate.engine.target import Target
from kybernate.model.errors import Conflict, WorkloadLost
from kybernate.model.types import HostPid
from kybernate.process import procfs


class ProgramEnded(WorkloadLost):
    """A process of the workload ended in the middle of a switch, for reasons of its own."""


def has_ended(pid: HostPid) -> bool:
    """Also when it is just about to: then it has no memory to lose any more."""
    found = procfs.stat(pid)
    return found is None or found.ending


def as_told(target: Target, error: Exception, *, doing: str) -> Exception:
    """`error`, or what is behind it: a process of the workload that ended meanwhile. `doing`: "paused", say."""
    if not isinstance(error, WorkloadLost | Conflict) or isinstance(error, ProgramEnded):
        return error
    ended = [process.pid for process in target.processes if has_ended(process.pid)]
    if not ended:
        return error
    ending = ProgramEnded(
        f"process {ended[0]} of workload {target.name} ended while it was being {doing}",
        hint=f"`kybernate logs {target.name}` has its last words",
    )
    ending.add_note(f"noticed as: {error.message}")
    return ending
