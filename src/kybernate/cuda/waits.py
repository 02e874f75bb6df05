"""Requests that wait for VRAM: how many there may be, and which still want their answer."""

from __future__ import annotations

import threading
from collections import Counter

from kybernate.cuda.listener import Request
from kybernate.model.types import WorkloadName

_WAITS_MAX = 1024
"""Requests waiting for room at once, each a thread."""
_WAITS_OF_ONE_MAX = 128
"""Likewise of one workload, so that none can take them all from the others."""


class Waits:
    """See the module. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[WorkloadName] = Counter()
        self._unanswered: set[Request] = set()

    def begin(self, request: Request) -> bool:
        """False: too many wait already."""
        workload = request.peer.workload
        with self._lock:
            if self._counts.total() >= _WAITS_MAX or self._counts[workload] >= _WAITS_OF_ONE_MAX:
                return False
            self._counts[workload] += 1
            self._unanswered.add(request)
            return True

    def end(self, request: Request) -> bool:
        """Whether it still wants its answer."""
        workload = request.peer.workload
        with self._lock:
            self._counts[workload] -= 1
            if not self._counts[workload]:
                del self._counts[workload]
            wanted = request in self._unanswered
            self._unanswered.discard(request)
            return wanted

    def take(self, workload: WorkloadName) -> set[Request]:
        """All of a workload's that wait; the caller answers them."""
        with self._lock:
            waiting = {request for request in self._unanswered if request.peer.workload == workload}
            self._unanswered -= waiting
        return waiting
