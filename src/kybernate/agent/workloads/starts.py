"""Whether workloads may be started: not while the agent ends them all or goes down, and none by itself that a person has stopped.

Asked where a workload enters the ledger or comes back from the store, so whoever began earlier meets it, too.
"""

from __future__ import annotations

from kybernate.model.errors import Busy, Conflict
from kybernate.model.types import WorkloadName


class Starts:
    """Use it in the loop's thread."""

    def __init__(self) -> None:
        self._closed = 0
        """By how many; each of them opens them again for itself only."""
        self._held: set[WorkloadName] = set()

    @property
    def closed(self) -> bool:
        """Nobody may start or resume anything."""
        return self._closed > 0

    def close(self) -> None:
        """From now on no start by anybody: persons, policies, requests, the agent itself."""
        self._closed += 1

    def reopen(self) -> None:
        """By whoever closed them."""
        self._closed -= 1

    def hold(self, name: WorkloadName) -> None:
        """A person has stopped it: it is not started by itself until `allow`."""
        self._held.add(name)

    def allow(self, name: WorkloadName) -> None:
        self._held.discard(name)

    def is_held(self, name: WorkloadName) -> bool:
        return name in self._held

    def refuse(self) -> None:
        """Raises Busy while they are closed."""
        if self._closed:
            raise Busy(
                "the agent is going down: it starts and resumes nothing more",
                hint="start it again with `kybernate up`",
            )

    def refuse_by_itself(self, name: WorkloadName) -> None:
        """For starts that no person ordered. Raises Busy while they are closed, Conflict for one that a person stopped."""
        self.refuse()
        if name in self._held:
            raise Conflict(f"workload {name} was stopped by order", hint=f"`kybernate start {name}` runs it again")
