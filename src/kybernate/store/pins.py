"""Which packs somebody relies on right now, so that garbage collection leaves them alone. In one process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from kybernate.store.packs import PackId


class Pins:
    """Thread-safe. Hold `lock` to look a pack up and pin it in one step."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._counts: Counter[PackId] = Counter()
        self._touched: set[PackId] | None = None

    def pin(self, pack: PackId) -> None:
        with self.lock:
            self._counts[pack] += 1
            if self._touched is not None:
                self._touched.add(pack)

    def unpin(self, packs: Iterable[PackId]) -> None:
        with self.lock:
            for pack in packs:
                self._counts[pack] -= 1
                if self._counts[pack] <= 0:
                    del self._counts[pack]

    def begin_sweep(self) -> None:
        """From now on until `end_sweep`, a pack pinned even for a moment counts as in use: a new manifest may name it."""
        with self.lock:
            self._touched = set(self._counts)

    def end_sweep(self) -> None:
        with self.lock:
            self._touched = None

    def in_use(self, pack: PackId) -> bool:
        """Whether it is pinned, or was during this sweep. Call it with `lock` held, and act before letting go of it."""
        return self._counts[pack] > 0 if self._touched is None else pack in self._touched


class PinSet:
    """What one reader or writer relies on."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self.packs: set[PackId] = set()

    def add(self, pack: PackId) -> None:
        with self._pins.lock:
            if pack not in self.packs:
                self.packs.add(pack)
                self._pins.pin(pack)

    def release(self) -> None:
        with self._pins.lock:
            self._pins.unpin(self.packs)
            self.packs = set()
