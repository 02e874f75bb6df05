"""How a workload's processes are ended by order: SIGTERM, its grace, SIGKILL.

A paused one can't do its last things while its CUDA calls are held. So it is resumed first where it has a handler for SIGTERM and
its VRAM is free; nobody else is paused for it. Where there is no room it gets only a moment, for what needs no GPU.
One that lies below RAM has no process to end: its snapshot is all that there is of it, and stays where nobody gives it up.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator

from kybernate.agent.records.ledger import USER, Entry, Ledger
from kybernate.agent.workloads.orders import Stored
from kybernate.model.errors import Busy
from kybernate.model.types import TierName, WorkloadState
from kybernate.process import procfs
from kybernate.process.tree import Tree

log = logging.getLogger(__name__)

WITHOUT_GPU_S = 2.0
"""A handler that isn't through by then waits for the GPU, most likely: it would for all of its grace."""
_LOOK_S = 0.1
"""How soon a grace that was cut short is noticed."""
_KILL_S = 20.0
"""How long processes that were killed may take to be gone: the kernel frees their GPU memory in that time."""


def stays_stored(ledger: Ledger, entry: Entry, tree: Tree | None, stored: Stored) -> tuple[Entry, str] | None:
    """Of one that lies below RAM and stays there: its entry, and what there is to say. None: it is to be ended."""
    below = entry.state is WorkloadState.PAUSED and entry.tier is not TierName.RAM and entry.snapshot is not None
    if tree is not None or not below or stored is Stored.ENDS:
        return None
    if stored is Stored.HELD and entry.paused_by != USER:
        ledger.update(entry.name, paused_by=USER, reason=f"{entry.reason}; stopped by order")
    note = f"no process of it was left; `kybernate stop --remove {entry.name}` deletes its snapshot, too"
    return ledger.entry(entry.name), note


def handles_its_end(tree: Tree) -> bool:
    """Whether any of its processes does something of its own at SIGTERM. Blocks."""
    return any(procfs.catches(pid, signal.SIGTERM) for pid in tree.pids())


def terminate(tree: Tree, grace: Callable[[], float]) -> bool:
    """Whether it ended by itself. Blocks.

    Args:
        grace: how many seconds it has from the beginning; asked again and again, since it may become less.

    Raises:
        Busy: even killed processes stay.
    """
    by_itself = True
    if tree.alive:
        # Not process.terminate: a workload that stays frozen would get the signal only after the grace.
        tree.signal(signal.SIGTERM)
        tree.thaw()
        by_itself = _ends_within(tree, grace)
        if not by_itself:
            tree.kill()
    tree.wait(_KILL_S)
    return by_itself


def _ends_within(tree: Tree, grace: Callable[[], float]) -> bool:
    began = time.monotonic()
    while True:
        left = began + grace() - time.monotonic()
        try:
            tree.wait(max(0.0, min(left, _LOOK_S)))
        except Busy:
            if left <= _LOOK_S and began + grace() <= time.monotonic():
                return False
        else:
            return True


@contextlib.contextmanager
def logged(what: str) -> Iterator[None]:
    """What fails in here is written down, and the next thing is done all the same."""
    try:
        yield
    except Exception:
        log.exception("%s failed", what)
