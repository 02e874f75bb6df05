"""Who resumes a workload that lies in a place which several agents share: one of them, not two.

Before its processes are brought back an agent puts a claim beside the snapshot, which only one can, and removes it with the
snapshot, or when the restore failed. An agent is known by its machine and state directory, so one that died in the middle finds
its own claim and goes on. Whoever takes a snapshot away out of such a place claims it, too, and so does who resumes from another
copy. No claim lapses by itself: whether an agent is dead, or lives and can't be heard, only people know.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterable
from pathlib import Path

from kybernate.agent.records.ledger import Entry
from kybernate.agent.tiers.stores import Stores
from kybernate.model.errors import Busy, Conflict, KybernateError, NotFound
from kybernate.model.types import TierName
from kybernate.store import Damaged, Space, TierAway, TierWiped, TooNew, WrongKey
from kybernate.store.media import Absent

_MACHINE = Path("/etc/machine-id")


def agent_id(state_directory: Path, machine: Path = _MACHINE) -> str:
    """Host names repeat: machines made of one image are often called the same."""
    number = ""
    with contextlib.suppress(OSError):
        number = machine.read_text(encoding="utf-8", errors="replace").strip()[:12]
    return f"{socket.gethostname()}{f'/{number}' if number else ''}:{state_directory}"


def take(space: Space, snapshot: str, *, by: str, take_over: bool = False) -> None:
    """Claim a snapshot; does nothing in a place that is one agent's own. Blocks.

    Raises:
        Busy: another agent has it.
    """
    if not space.medium.shared:
        return
    key, content = _key(space, snapshot), _content(by)
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


class Taken(Conflict):
    """Where another agent could have taken a workload's state from, it isn't any more."""


class Claims:
    """One agent's, in all of its tiers. Its methods block: call them in a thread."""

    def __init__(self, stores: Stores, *, by: str) -> None:
        self._stores = stores
        self.by = by

    def take(self, space: Space, snapshot: str) -> None:
        """Raises NotFound: there is no such snapshot. Busy: another agent has it."""
        space.manifest(snapshot)  # before a claim of nothing is left there
        take(space, snapshot, by=self.by)

    def of(self, entry: Entry, snapshot: str, tier: TierName, *, take_over: bool) -> list[Space]:
        """Claim a workload's snapshot wherever others may find it, not only in the tier that it is read from.

        Args:
            take_over: also where another agent has it, or nobody can tell.

        Raises:
            Busy: another agent has it. Taken: another agent seems to have had it. TierAway and the like: nobody can tell.
        """
        claimed: list[Space] = []
        try:
            for other in dict.fromkeys((tier, entry.tier, *entry.also)):
                try:
                    space = self._stores.space(other)
                    if not space.medium.shared:
                        continue
                    if other is not tier:
                        self.still_there(entry, snapshot, other)
                    take(space, snapshot, by=self.by, take_over=take_over)
                    claimed.append(space)
                except (Taken, TierAway, TierWiped, WrongKey) as e:
                    if other is not tier and take_over:
                        continue
                    if other is not tier and not isinstance(e, Taken):
                        e.hint = f"`kybernate resume --take-over {entry.name}` takes the copy in {tier} and asks nobody"
                    raise
        except BaseException:
            self.release(claimed, snapshot)
            raise
        return claimed

    def still_there(self, entry: Entry, snapshot: str, tier: TierName) -> None:
        """Raises Taken, and what the tier says."""
        with contextlib.suppress(Damaged, TooNew):
            try:
                self._stores.space(tier).manifest(snapshot)
            except NotFound as e:
                raise Taken(
                    f"the copy of workload {entry.name} in {tier} has gone: another agent resumed it, or somebody removed it",
                    hint=f"if no other agent has it: `kybernate resume --take-over {entry.name}`",
                ) from e

    def release(self, claimed: Iterable[Space], snapshot: str) -> None:
        """Nothing came of it."""
        for space in claimed:
            with contextlib.suppress(KybernateError):
                release(space, snapshot, by=self.by)


def release(space: Space, snapshot: str, *, by: str) -> None:
    """It is gone, or nothing came of the claim. Another agent's, which has taken over, stays. Blocks."""
    if not space.medium.shared:
        return
    key = _key(space, snapshot)
    with contextlib.suppress(Absent):
        if space.medium.get(key) == _content(by):
            space.medium.delete(key)


def _content(by: str) -> bytes:
    return json.dumps({"by": by}).encode()


def _key(space: Space, snapshot: str) -> str:
    return f"{space.keys.tenant}/claims/{snapshot}"
