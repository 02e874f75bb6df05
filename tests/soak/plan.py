"""What a round does, as a function of its seed alone: steps that name workloads by number and moments by seconds.

A step that makes no sense when its turn comes (nothing is paused, no image is there) is passed over, so any selection of
a plan's steps is a plan, and a failing one can be made shorter by leaving steps out.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from kybernate.model.types import TierName


class Order(enum.StrEnum):
    """What is asked of an agent."""

    RUN = "run"
    PAUSE = "pause"
    RESUME = "resume"
    MOVE = "move"
    KEEP = "keep"
    """A move that leaves the copy where it lay."""
    PREFETCH = "prefetch"
    SNAPSHOT = "snapshot"
    CLONE = "clone"
    REMOVE_IMAGE = "remove-image"
    VERIFY = "verify"
    GC = "gc"
    STOP = "stop"
    ELSEWHERE = "elsewhere"
    """The other agent resumes what lies in the bucket."""


class Fault(enum.StrEnum):
    """What happens meanwhile. Those of the second part last until `Step.heal`."""

    NONE = "none"
    KILL_AGENT = "kill-agent"
    END_AGENT = "end-agent"
    """By SIGTERM, as a service manager does."""
    KILL_CRIU = "kill-criu"
    KILL_DUMPER = "kill-dumper"
    KILL_WORKLOAD = "kill-workload"
    KILL_SUPERVISOR = "kill-supervisor"
    REBOOT = "reboot"
    """The agent, all its processes and its run directory are gone; disk and bucket stay."""

    SERVER_DIES = "server-dies"
    SERVER_REFUSES = "server-refuses"
    SERVER_STALLS = "server-stalls"
    SERVER_FAILS = "server-fails"
    SERVER_CUTS = "server-cuts"
    SERVER_SLOW = "server-slow"
    DISK_FULL = "disk-full"


@dataclass(frozen=True, slots=True)
class Step:
    number: int
    orders: tuple[tuple[Order, int, TierName], ...]
    """Given at the same time. The number picks the workload or image, modulo how many there are."""
    fault: Fault
    delay_s: float
    """From the orders to the fault."""
    heal: bool
    """Whether what lasts ends after this step."""

    def __str__(self) -> str:
        orders = " + ".join(f"{order} {which} {tier}" for order, which, tier in self.orders)
        fault = "" if self.fault is Fault.NONE else f"; {self.fault} after {self.delay_s:.3f} s"
        return f"{self.number}: {orders}{fault}{'; heal' if self.heal else ''}"


_ORDERS = {
    Order.RUN: 3,
    Order.PAUSE: 8,
    Order.RESUME: 7,
    Order.MOVE: 2,
    Order.KEEP: 1,
    Order.PREFETCH: 2,
    Order.SNAPSHOT: 2,
    Order.CLONE: 2,
    Order.REMOVE_IMAGE: 1,
    Order.VERIFY: 1,
    Order.GC: 2,
    Order.STOP: 1,
    Order.ELSEWHERE: 2,
}
_FAULTS = {
    Fault.NONE: 8,
    Fault.KILL_AGENT: 8,
    Fault.END_AGENT: 1,
    Fault.KILL_CRIU: 3,
    Fault.KILL_DUMPER: 2,
    Fault.KILL_WORKLOAD: 1,
    Fault.KILL_SUPERVISOR: 1,
    Fault.REBOOT: 1,
    Fault.SERVER_DIES: 1,
    Fault.SERVER_REFUSES: 1,
    Fault.SERVER_STALLS: 1,
    Fault.SERVER_FAILS: 1,
    Fault.SERVER_CUTS: 1,
    Fault.SERVER_SLOW: 1,
    Fault.DISK_FULL: 2,
}
_TIERS = (TierName.RAM, TierName.NVME, TierName.NVME, TierName.OBJECT, TierName.OBJECT)
_WITH_HELPERS = (Order.PAUSE, Order.PAUSE, Order.SNAPSHOT, Order.RESUME, Order.CLONE)
_LONGEST_S = 2.5
"""Most orders are through by then, also on a busy machine."""


def plan(seed: int, *, steps: int) -> list[Step]:
    """The first `steps` steps of a seed; a longer plan begins as a shorter one does."""
    chance = random.Random(seed)

    def order() -> tuple[Order, int, TierName]:
        [kind] = chance.choices(list(_ORDERS), list(_ORDERS.values()))
        return kind, chance.randrange(12), chance.choice(_TIERS)

    made = [_first(chance)]
    for number in range(1, steps):
        orders = tuple(order() for _ in range(chance.choice((1, 1, 1, 2, 2, 3))))
        [fault] = chance.choices(list(_FAULTS), list(_FAULTS.values()))
        if fault in (Fault.KILL_CRIU, Fault.KILL_DUMPER):  # something that has such helpers
            orders = ((chance.choice(_WITH_HELPERS), *orders[0][1:2], chance.choice(_TIERS[1:])), *orders[1:])
        # As many in the first tenths of a second, where most happens, as later.
        delay_s = _LONGEST_S * chance.random() ** 3
        made.append(Step(number, orders, fault, delay_s, heal=chance.random() < 0.6))
    return made


def _first(chance: random.Random) -> Step:
    orders = tuple((Order.RUN, chance.randrange(12), TierName.RAM) for _ in range(2))
    return Step(0, orders, Fault.NONE, 0.0, heal=False)
