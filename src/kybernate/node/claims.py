"""Who resumes a workload that lies in a place which several agents share: one of them, not two.

Before its processes are brought back an agent puts a claim beside the snapshot, which only one can, and removes it with the
snapshot, or when the restore failed. An agent is known by its host and state directory, so one that died in the middle finds
its own claim and goes on. No claim lapses by itself: whether an agent is dead, or lives and can't be heard, only people know.
"""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

from kybernate.model.errors import Busy
from kybernate.store import Space
from kybernate.store.media import Absent


def agent_id(state_directory: Path) -> str:
    return f"{socket.gethostname()}:{state_directory}"


def take(space: Space, snapshot: str, *, by: str, take_over: bool = False) -> None:
    """Claim a snapshot; does nothing in a place that is one agent's own. Blocks.

    Raises:
        Busy: another agent has it.
    """
    if not space.medium.shared:
        return
    key, content = _key(space, snapshot), json.dumps({"by": by}).encode()
    if space.medium.create(key, content):
        return
    try:
        there = space.medium.get(key)
    except Absent:
        there = b""
    if there == content:
        return
    if take_over:
        space.medium.delete(key)
        if space.medium.create(key, content):
            return
    holder = "unknown"
    with contextlib.suppress(ValueError, KeyError, TypeError):
        holder = str(json.loads(there)["by"])[:200]
    raise Busy(
        f"snapshot {snapshot} in {space.medium.where} is claimed by the agent {holder}, which resumes it",
        hint="wait; if that agent is gone for good and its workload doesn't run: resume with --take-over",
    )


def release(space: Space, snapshot: str) -> None:
    """It is gone, or nothing came of the claim. Blocks."""
    if space.medium.shared:
        space.medium.delete(_key(space, snapshot))


def _key(space: Space, snapshot: str) -> str:
    return f"{space.keys.tenant}/claims/{snapshot}"
