"""A thread for each piece of work, so that none waits for another.

With a bounded pool a resume that waits for VRAM could hold the very threads that the pause it waits for needs, and the
processes of one workload that answer slowly those of all others. A thread costs some 50 us; a switch takes a few of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Threads(Executor):
    """An executor without a queue. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._running: set[threading.Thread] = set()
        self._shut = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Raises RuntimeError after `shutdown`, or when the machine gives no more threads."""
        future: Future[T] = Future()

        def body() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as e:  # it is the waiter's
                future.set_exception(e)
            else:
                future.set_result(result)
            finally:
                with self._lock:
                    self._running.discard(threading.current_thread())

        thread = threading.Thread(target=body, name=self._name, daemon=True)
        with self._lock:
            if self._shut:
                raise RuntimeError("the engine was closed")
            self._running.add(thread)
        try:
            future.set_running_or_notify_cancel()
            thread.start()
        except BaseException:
            with self._lock:
                self._running.discard(thread)
            raise
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; with `wait`, until what runs has ended. Nothing is ever in line to be cancelled."""
        with self._lock:
            self._shut = True
            running = list(self._running)
        for thread in running if wait else ():
            if thread is not threading.current_thread():
                thread.join()
