"""What the agent knows of each workload beyond its life: what it needs, what its switches took, how long it had the GPU,
how a job ended. Kept in the agent's database, so that a new agent knows it, too.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from kybernate.agent.records.database import Database
from kybernate.model.types import GpuUuid, TierName, WorkloadName
from kybernate.policy.costs import Costs, Direction

log = logging.getLogger(__name__)

_EVERYBODY = "*"
"""In place of a name: what was measured of all of them."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Who had the GPU for how long. Seconds, and bytes times seconds."""

    resident_s: float = 0.0
    busy_s: float = 0.0
    byte_s: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.resident_s + other.resident_s, self.busy_s + other.busy_s, self.byte_s + other.byte_s)


@dataclass(frozen=True, slots=True)
class SwitchTime:
    """A measured switch: its moving average."""

    direction: Direction
    source: Annotated[TierName | None, Field(alias="place")]
    """Where it came from or went; `place` in the database."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Stats:
    """Of one workload."""

    fingerprint: str = ""
    """Of the program that runs, or ran last."""
    needs: Mapping[GpuUuid, int] = field(default_factory=dict)
    """VRAM that it held last, on each GPU."""
    took: tuple[SwitchTime, ...] = ()
    klass: str = ""
    usage: Usage = Usage()
    counted_until: float = 0.0
    """When the usage was last written, while it held VRAM; 0: it held none."""
    done: bool = False
    """A job that has ended and isn't to be started again by itself."""
    imaged: str = ""
    """Fingerprint of the program whose gold image was taken."""
    was_ready: bool = False
    """It has been ready since its start: it may be forwarded to as soon as it runs."""


@dataclass(frozen=True, slots=True)
class _Bandwidths:
    bandwidth: tuple[tuple[Direction, TierName | None, float], ...] = ()


_STATS: TypeAdapter[Stats] = TypeAdapter(Stats)
_BANDWIDTHS: TypeAdapter[_Bandwidths] = TypeAdapter(_Bandwidths)


class WorkloadStats:
    """Use it in one thread. `load` comes first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._all: dict[WorkloadName, Stats] = {}
        self.costs = Costs()

    def load(self) -> None:
        """Blocks. A record that another version wrote and this one can't read is left out."""
        seconds: dict[tuple[WorkloadName, Direction, TierName | None], float] = {}
        bandwidth: dict[tuple[Direction, TierName | None], float] = {}
        for name, record in self._database.read_now("SELECT name, record FROM serving"):
            try:
                if name == _EVERYBODY:
                    measured = _BANDWIDTHS.validate_json(record)
                    bandwidth = {(way, source): rate for way, source, rate in measured.bandwidth}
                    continue
                stats = _STATS.validate_json(record)
            except ValidationError as e:
                log.warning("can't read the statistics of workload %s: %s", name, e.errors()[0]["msg"])
                continue
            self._all[WorkloadName(name)] = stats
            seconds |= {(WorkloadName(name), took.direction, took.source): took.seconds for took in stats.took}
        self.costs = Costs(seconds=seconds, bandwidth=bandwidth)

    def of(self, name: WorkloadName) -> Stats:
        return self._all.get(name) or Stats()

    def all(self) -> Mapping[WorkloadName, Stats]:
        return self._all

    def update(self, name: WorkloadName, **changes: object) -> None:
        """Set fields, and write them."""
        old = self.of(name)
        new = dataclasses.replace(old, **changes)  # type: ignore[arg-type]
        if new != old or name not in self._all:
            self._all[name] = new
            self._write(name, _STATS.dump_json(new, by_alias=True))

    def record_costs(self, name: WorkloadName, costs: Costs) -> None:
        """Costs with one more switch of that workload."""
        self.costs = costs
        took = tuple(
            SwitchTime(way, source, seconds) for (who, way, source), seconds in costs.seconds.items() if who == name
        )
        self.update(name, took=took)
        rates = tuple((way, source, rate) for (way, source), rate in costs.bandwidth.items())
        self._write(_EVERYBODY, _BANDWIDTHS.dump_json(_Bandwidths(rates)))

    def _write(self, name: str, record: bytes) -> None:
        self._database.write(
            "INSERT INTO serving (name, record) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET record = excluded.record",
            (name, record.decode()),
        )
