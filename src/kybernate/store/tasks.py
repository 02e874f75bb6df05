"""Tasks in threads, of which only so many wait at once; the first error stops those to come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class BoundedTasks:
    """Tasks run in threads of their own. Any thread may submit some."""

    def __init__(self, threads: int, name: str, failed: Callable[[], None]) -> None:
        """
        Args:
            threads: at once; twice as many tasks may be under way or wait for one.
            name: what the threads' names begin with.
            failed: called once, in a task's thread, after the first error: wakes whoever waits for what won't come.
        """
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._room = threading.Semaphore(2 * threads)
        self._failed = failed
        self._error: BaseException | None = None

    def submit(self, task: Callable[..., None], *arguments: Any) -> None:
        """Blocks while too many wait. Raises the first error of any task."""
        self._room.acquire()
        if self._error is not None:
            self._room.release()
            raise self._error
        self._executor.submit(task, *arguments).add_done_callback(self._done)

    def check(self) -> None:
        """Raises the first error of any task so far."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait for all. Raises the first error of any task."""
        self.wait()
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait for all, whatever became of them. Nothing may be submitted afterwards."""
        self._executor.shutdown(wait=True)

    def _done(self, future: Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None and self._error is None:
            self._error = error
            self._failed()
        self._room.release()
