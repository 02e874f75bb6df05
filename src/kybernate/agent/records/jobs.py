"""The long steps of the store that are under way: how far each is, and the word to stop it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from kybernate.model.api import JobView
from kybernate.model.cancelling import Cancellation
from kybernate.model.progress import Progress


@dataclass(eq=False, slots=True)
class Job:
    """One step. `tell` and `stop.cancel` may be called from any thread."""

    kind: str
    """As orders are called: `park`, `stage`, `move`, `verify` ..."""
    subject: str
    """The workload, snapshot or tier it is about."""
    yielding: bool = False
    """The agent's own idea: an order for its subject may stop it."""
    by_person: bool = False
    """A person's order, which isn't needless because of what the agent finds more likely."""
    stop: Cancellation = field(default_factory=Cancellation)
    began_at: float = field(default_factory=time.monotonic)
    parts: dict[str, Progress] = field(default_factory=dict)
    """By what they are called; some go on at the same time."""

    def tell(self, progress: Progress) -> None:
        """What the store calls."""
        self.parts = self.parts | {progress.what: progress}

    def view(self) -> JobView:
        parts = list(self.parts.values())
        seconds = time.monotonic() - self.began_at
        if not parts:
            return JobView(kind=self.kind, subject=self.subject, seconds=seconds)
        done = sum(part.done for part in parts)
        totals = [part.total for part in parts if part.total is not None]
        total = sum(totals) if len(totals) == len(parts) else None
        rate = done / max(part.seconds for part in parts) if done else 0.0
        return JobView(
            kind=self.kind,
            subject=self.subject,
            seconds=seconds,
            step=" and ".join(self.parts),
            bytes_done=done,
            bytes_total=total,
            bytes_per_s=rate,
            seconds_left=max(0, total - done) / rate if total is not None and rate else None,
        )


class Jobs:
    """All of one agent's. Use it in the loop's thread."""

    def __init__(self) -> None:
        self._running: list[Job] = []

    @contextlib.contextmanager
    def begin(self, kind: str, subject: str, *, yielding: bool = False, by_person: bool = False) -> Iterator[Job]:
        job = Job(kind, subject, yielding, by_person)
        self._running.append(job)
        try:
            yield job
        finally:
            self._running.remove(job)

    def of(self, subject: str) -> Job | None:
        """The newest one about that subject."""
        return next((job for job in reversed(self._running) if job.subject == subject), None)

    def views(self) -> list[JobView]:
        return [job.view() for job in self._running]

    def make_way(self, subject: str) -> None:
        """Somebody wants something else of it: stop what the agent does there by its own idea."""
        for job in self._running:
            if job.subject == subject and job.yielding:
                job.stop.cancel()

    def cancel(self, kind: str, subject: str) -> None:
        """This one, unless a person asked for it, turned out to be needless."""
        for job in self._running:
            if (job.kind, job.subject) == (kind, subject) and not job.by_person:
                job.stop.cancel()

    def cancel_all(self) -> None:
        """The agent goes down. What is cancelled is undone, and can be ordered again."""
        for job in self._running:
            job.stop.cancel()
