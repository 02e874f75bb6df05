"""What the controller knows of each workload until the agent ends; workload_stats.py has what outlives that.

Three parts, each with those who write it: `ActionsUnderWay` (action_runner.py, bringup and restarts through it), `Requested`
(user_orders.py) and `Outcomes` (what came of actions: observe.py, failures.py, refusals.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kybernate.model.types import GpuUuid, WorkloadName
from kybernate.policy.node_state import Phase


@dataclass(frozen=True, slots=True)
class Acting:
    """An action of the policy that is being carried out on a workload."""

    phase: Phase
    """What it is on its way to: COMING or LEAVING."""
    since: float


class ActionsUnderWay:
    """On whom an action is being carried out."""

    def __init__(self) -> None:
        self._acting: dict[WorkloadName, Acting] = {}
        self._starting: set[WorkloadName] = set()
        self._replacing: set[WorkloadName] = set()

    def of(self, name: WorkloadName) -> Acting | None:
        return self._acting.get(name)

    def any_of(self, names: Iterable[WorkloadName]) -> bool:
        return any(name in self._acting for name in names)

    def begin(self, actions: Mapping[WorkloadName, Acting]) -> None:
        self._acting.update(actions)

    def end(self, actions: Mapping[WorkloadName, Acting]) -> None:
        """Those that `begin` was given; a victim released early may have another action by now, which stays."""
        for name, mine in actions.items():
            if self._acting.get(name) is mine:
                del self._acting[name]

    def release(self, name: WorkloadName) -> None:
        """Another action may be begun on it from now on."""
        self._acting.pop(name, None)

    def is_starting(self, name: WorkloadName) -> bool:
        """It was begun from nothing, and is not through yet: `Bringup.start` itself says when it may be asked."""
        return name in self._starting

    def set_starting(self, name: WorkloadName, starting: bool) -> None:
        (self._starting.add if starting else self._starting.discard)(name)

    def is_replacing(self, name: WorkloadName) -> bool:
        """It is being ended, since its program was changed in the file."""
        return name in self._replacing

    def set_replacing(self, name: WorkloadName, replacing: bool) -> None:
        (self._replacing.add if replacing else self._replacing.discard)(name)


class Requested:
    """What persons ordered."""

    def __init__(self) -> None:
        self._requested: set[WorkloadName] = set()
        self._stopped: dict[WorkloadName, int] = {}

    def __contains__(self, name: WorkloadName) -> bool:
        """Its resume, or its start."""
        return name in self._requested

    def add(self, name: WorkloadName) -> None:
        self._requested.add(name)

    def discard(self, name: WorkloadName) -> None:
        self._requested.discard(name)

    def stopped(self) -> list[tuple[WorkloadName, int]]:
        """Models that a person stopped, and how many requests had come by then: one that comes later starts it again."""
        return list(self._stopped.items())

    def set_stopped(self, name: WorkloadName, requests: int | None) -> None:
        """None: it isn't any more."""
        if requests is None:
            self._stopped.pop(name, None)
        else:
            self._stopped[name] = requests


class Outcomes:
    """What came of actions."""

    def __init__(self) -> None:
        self._been_up: set[WorkloadName] = set()
        self._refused: set[WorkloadName] = set()
        self._short: dict[WorkloadName, Mapping[GpuUuid, int]] = {}

    def has_been_up(self, name: WorkloadName) -> bool:
        """Since the agent knows it."""
        return name in self._been_up

    def set_been_up(self, name: WorkloadName, up: bool) -> None:
        (self._been_up.add if up else self._been_up.discard)(name)

    def is_refused(self, name: WorkloadName) -> bool:
        """Workers were told that it can't be had, because of a failure."""
        return name in self._refused

    def set_refused(self, name: WorkloadName, refused: bool) -> None:
        (self._refused.add if refused else self._refused.discard)(name)

    def shortage(self, name: WorkloadName) -> Mapping[GpuUuid, int]:
        """So much free VRAM was too little for its resume, and a little more; in bytes. Empty: none is known."""
        return self._short.get(name, {})

    def set_shortage(self, name: WorkloadName, sizes: Mapping[GpuUuid, int] | None) -> None:
        """None: it has ended, and so has what was known of it."""
        if sizes is None:
            self._short.pop(name, None)
        else:
            self._short[name] = sizes


@dataclass(frozen=True, slots=True)
class ControllerState:
    """The three parts together, for whoever reads all of them."""

    actions: ActionsUnderWay = field(default_factory=ActionsUnderWay)
    requested: Requested = field(default_factory=Requested)
    outcomes: Outcomes = field(default_factory=Outcomes)
